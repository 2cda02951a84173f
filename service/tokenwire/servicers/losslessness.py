"""Whether a tokenizer keeps all of a text, so that the bytes of a text bound the number of its tokens from below.

Read from tokenizer.json (the tokenizers library's own format). Only what is known to keep everything counts: where a
part is not named here, the answer is no.
"""

from collections.abc import Callable
from typing import Any

import msgspec

MAX_CHARACTER_BYTES = 4
"""UTF-8 bytes of one character: what an unknown token that is not fused stands for at most."""

_KEEPING_PRE_TOKENIZERS = ("ByteLevel", "Metaspace", "Digits")
_KEEPING_BEHAVIORS = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")

_TEXT_BYTES = [byte for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]
"""Bytes that occur in UTF-8. Vocabularies may leave the others out; SmolLM2's does."""


class _AddedToken(msgspec.Struct):
    lstrip: bool = False
    rstrip: bool = False


class _Model(msgspec.Struct):
    type: str | None = None
    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False


class _File(msgspec.Struct):
    """The parts that matter; msgspec passes over vocabulary and merges."""

    model: _Model
    added_tokens: list[_AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


def keeps_all_text(tokenizer_json: str, has_token: Callable[[str], bool]) -> bool:
    """Whether every byte of any text is part of a token, none standing for more than its entry or one character.

    False for tokenizers that may drop text (control characters, unknown characters without an unknown token), shorten
    it (a normalizer that collapses white space or composes) or let one token stand for a text of any length (fused
    unknown characters; added tokens that take the white space beside them). ``has_token``: whether the vocabulary
    holds an entry.
    """
    try:
        file = msgspec.json.decode(tokenizer_json, type=_File)
    except msgspec.DecodeError:
        return False
    return (
        not any(token.lstrip or token.rstrip for token in file.added_tokens)
        and all(map(_normalizer_keeps, _members(file.normalizer, "normalizers")))
        and all(map(_pre_tokenizer_keeps, _members(file.pre_tokenizer, "pretokenizers")))
        and _model_keeps(file, has_token)
    )


def _members(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The members of a sequence, which may hold sequences."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [inner for member in part.get(name, []) for inner in _members(member, name)]


def _normalizer_keeps(part: dict[str, Any]) -> bool:
    if part.get("type") == "Replace":
        text = part.get("pattern", {}).get("String")
        return isinstance(text, str) and len(str(part.get("content", "")).encode()) >= len(text.encode())
    return part.get("type") in ("Prepend", "ByteLevel")


def _pre_tokenizer_keeps(part: dict[str, Any]) -> bool:
    if part.get("type") in ("Split", "Punctuation"):
        return part.get("behavior") in _KEEPING_BEHAVIORS
    return part.get("type") in _KEEPING_PRE_TOKENIZERS


def _model_keeps(file: _File, has_token: Callable[[str], bool]) -> bool:
    model = file.model
    if model.type != "BPE":
        return False
    parts = [*_members(file.normalizer, "normalizers"), *_members(file.pre_tokenizer, "pretokenizers")]
    if any(part.get("type") == "ByteLevel" for part in parts) and all(map(has_token, _byte_characters())):
        return True
    if model.byte_fallback and all(has_token(f"<0x{byte:02X}>") for byte in _TEXT_BYTES):
        return True
    return model.unk_token is not None and not model.fuse_unk


def _byte_characters() -> list[str]:
    """The characters that stand for the bytes of texts in byte-level vocabularies (GPT-2's ``bytes_to_unicode``)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    shifted = iter(range(256, 512))
    characters = [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]
    return [characters[byte] for byte in _TEXT_BYTES]
