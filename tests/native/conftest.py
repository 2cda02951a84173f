"""Tokenizers, trained once per run, and how many examples hypothesis draws (HYPOTHESIS_PROFILE=deep for more)."""

import os
from collections.abc import Callable

import pytest
from chat_cases import SPECIAL_TOKENS
from hypothesis import HealthCheck, settings
from tokenizer_kinds import KINDS, Pair, make_pair

from tokenwire import _native

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


@pytest.fixture(scope="session")
def compiled(chat_pair: Pair) -> Callable[[str], _native.ChatTemplate]:
    cache: dict[str, _native.ChatTemplate] = {}

    def compile_once(source: str) -> _native.ChatTemplate:
        if source not in cache:
            template = _native.ChatTemplate(source, tokenizer=chat_pair.native, special_tokens=SPECIAL_TOKENS)
            cache[source] = template
        return cache[source]

    return compile_once
