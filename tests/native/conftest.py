"""Tokenizers, trained once per run."""

from collections.abc import Callable

import pytest
from chat_cases import SPECIAL_TOKENS
from tokenizer_kinds import KINDS, Pair, make_pair

from tokenwire import _native


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
