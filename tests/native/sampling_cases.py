"""Generations over a tokenizer of one word per id, for tests of choosing and stopping."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwire import _native

VOCAB = 16
SPECIAL = 15
"""The id of ``</s>``, the one special token."""

_WORDS = {
    **{word: id_ for id_, word in enumerate(["a", "b", "st", "op", "opera", "las", "topper", "s", "to", "pped", "at"])},
    "stop": 11,
    " ": 12,
    "é": 13,
    "x": 14,
    "</s>": SPECIAL,
}


def make_tokenizer() -> _native.Tokenizer:
    special = {"id": SPECIAL, "content": "</s>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return _native.Tokenizer.from_json(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [special | flags],
                "decoder": {"type": "Fuse"},
                "model": {"type": "WordLevel", "vocab": _WORDS, "unk_token": "a"},
            }
        )
    )


TOKENIZER = make_tokenizer()


def token(word: str) -> int:
    return _WORDS[word]


def make_generation(
    *,
    vocab_size: int = VOCAB,
    prompt: list[int] | None = None,
    stopping: dict[str, Any] | None = None,
    sequence_index: int = 0,
    skip_special_tokens: bool = True,
    **sampling: Any,
) -> _native.Generation:
    return _native.Generation(
        TOKENIZER,
        [0] if prompt is None else prompt,
        _native.SamplingParams(vocab_size=vocab_size, **sampling),
        _native.StoppingParams(vocab_size=vocab_size, **{"max_new_tokens": 10**6, **(stopping or {})}),
        sequence_index=sequence_index,
        skip_special_tokens=skip_special_tokens,
    )


def forcing(*tokens: int, vocab_size: int = VOCAB) -> NDArray[np.float32]:
    """Logits ``[len(tokens), vocab]`` that leave one token per row."""
    logits = np.full((len(tokens), vocab_size), -np.inf, dtype=np.float32)
    logits[np.arange(len(tokens)), list(tokens)] = 0
    return logits
