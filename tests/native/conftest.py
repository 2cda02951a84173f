"""Tokenizers, trained once per run, and how many examples hypothesis draws (HYPOTHESIS_PROFILE=deep for more)."""

import os

import pytest
from hypothesis import HealthCheck, settings
from tokenizer_kinds import KINDS, Pair, make_pair

settings.register_profile("quick", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", parent=settings.get_profile("quick"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(scope="session", params=list(KINDS))
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param)


@pytest.fixture(scope="session")
def chat_pair() -> Pair:
    """The byte-level tokenizer with ChatML control tokens."""
    return make_pair("byte-level")


@pytest.fixture(scope="session")
def chat_pairs() -> dict[str, Pair]:
    """Every kind of tokenizer, with the ChatML control tokens."""
    return {name: make_pair(name) for name in KINDS}
