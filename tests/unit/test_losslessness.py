"""Tokenizers that keep all text bound it by their tokens; of the others a long text may be a few tokens."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.grpc.fakes import model_info, tokenizer_json
from tokenwire.servicers.text import NativeText

LONG = 10_000
NO_PARTS: dict[str, Any] = {"added_tokens": [], "normalizer": None, "pre_tokenizer": None, "decoder": None}
CHARACTERS = {"vocab": {"a": 0, " ": 1, "▁": 2, "<unk>": 3}, "unk_token": "<unk>"}
FALLBACK = {"vocab": {f"<0x{byte:02X}>": byte for byte in range(256)}, "byte_fallback": True}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
COLLAPSE = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
ADDED = {"id": 264, "content": "<e>", "special": True, "single_word": False, "normalized": False}


def of(model: dict[str, Any] | None = None, **parts: Any) -> NativeText:
    """The byte-level tokenizer of the fakes with other parts; with ``model`` one that starts from nothing else."""
    file = json.loads(tokenizer_json())
    file |= parts if model is None else NO_PARTS | parts
    file["model"] |= model or {}
    return NativeText(model_info(tokenizer_json=json.dumps(file)))


def count(text: NativeText, prompt: str) -> int:
    return len(text.encode(prompt, add_special_tokens=True, parse_special_tokens=True))


KEEPING = {
    "byte level": of(),
    "byte fallback, fused": of({**FALLBACK, "fuse_unk": True}),
    "one unknown token per character": of(CHARACTERS),
    "replaced spaces": of(CHARACTERS, normalizer={"type": "Sequence", "normalizers": [REPLACE]}),
    "split and isolated": of(
        CHARACTERS,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
            ],
        },
    ),
}


@pytest.mark.parametrize("name", KEEPING)
@settings(deadline=None)
@given(prompt=st.text())
@example(prompt=" " * 99)
@example(prompt="\U0010ffff" * 99)
def test_tokens_bound_the_bytes_of_a_text(name: str, prompt: str) -> None:
    bound = KEEPING[name].max_bytes_per_token
    assert bound is not None
    assert len(prompt.encode()) <= bound * count(KEEPING[name], prompt)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (of(normalizer=COLLAPSE), "a" + " " * LONG),
        (
            of(normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": " "}, COLLAPSE]}),
            " " * LONG,
        ),
        (of(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}), "a" + " " * LONG),
        (of({**CHARACTERS, "fuse_unk": True}), "é" * LONG),
        (of({"vocab": {"a": 0}}), "a" + "é" * LONG),
        (of(CHARACTERS, pre_tokenizer={"type": "WhitespaceSplit"}), "a" + " " * LONG),
        (
            of(
                CHARACTERS,
                pre_tokenizer={"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
            ),
            "a" + " " * LONG,
        ),
        (of(added_tokens=[ADDED | {"lstrip": False, "rstrip": True}]), "<e>" + " " * LONG),
    ],
)
def test_where_a_long_text_may_be_a_few_tokens_there_is_no_bound(text: NativeText, prompt: str) -> None:
    assert count(text, prompt) < 10
    assert text.max_bytes_per_token is None
