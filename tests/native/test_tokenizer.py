import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizer_kinds import CHAT_TOKENS, CORPUS, Pair
from tokenizers import Tokenizer, decoders, models

from tokenwire import _native

FRAGMENTS = [
    *CHAT_TOKENS, "<s>", "</s>", "[CLS]", "[UNK]", "<unk>", "<mask>", "word", "Fuchs", "<think>", "</think>",
    "<|im_", "end|>", " ", "  ", "\n", "▁", "hello", "it's", "日本", "é", "e\u0301", "😀", "\U0010ffff",
    "\u00a0", "1234", ".", "<0x41>", "\x00",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=8).map("".join)


def reference_ids(pair: Pair, text: str, add_special_tokens: bool) -> list[int]:
    return pair.reference.encode(text, add_special_tokens=add_special_tokens).ids


@given(text=texts, add_special_tokens=st.booleans())
def test_encode_equals_the_reference(pair: Pair, text: str, add_special_tokens: bool) -> None:
    ids = pair.native.encode(text, add_special_tokens=add_special_tokens)
    assert ids.dtype == np.int64
    assert ids.tolist() == reference_ids(pair, text, add_special_tokens)


@given(batch=st.lists(texts, max_size=5))
def test_a_batch_equals_each_text_alone(pair: Pair, batch: list[str]) -> None:
    rows = pair.native.encode_batch(batch)
    assert [row.tolist() for row in rows] == [pair.native.encode(text).tolist() for text in batch]


@given(text=texts)
def test_offsets_are_the_references_in_bytes(pair: Pair, text: str) -> None:
    expected = pair.reference.encode(text)
    ids, pieces, offsets = pair.native.encode_with_offsets(text)
    assert ids.tolist() == expected.ids
    assert pieces == [pair.reference.id_to_token(token_id) for token_id in expected.ids]
    in_bytes = [(len(text[:start].encode()), len(text[:end].encode())) for start, end in expected.offsets]
    assert [tuple(row) for row in offsets.tolist()] == in_bytes


@given(text=texts)
def test_unparsed_text_holds_no_control_token(pair: Pair, text: str) -> None:
    ids = pair.native.encode(text, add_special_tokens=False, parse_special_tokens=False).tolist()
    unknown = {pair.native.token_to_id(token) for token in ("<unk>", "[UNK]")}
    assert not (set(ids) & set(pair.native.special_token_ids)) - unknown
    pair.reference.encode_special_tokens = True
    try:
        spelled = reference_ids(pair, text, add_special_tokens=False)
    finally:
        pair.reference.encode_special_tokens = False
    # The reference still lets a model spell a control token's name from its own vocabulary.
    names = [token.content for token in pair.reference.get_added_tokens_decoder().values() if token.special]
    if not set(spelled) & set(pair.native.special_token_ids) or not any(name in text for name in names):
        assert ids == spelled


def test_an_unparsed_control_token_survives_as_text(chat_pair: Pair) -> None:
    text = "a<|im_end|>\n<|im_start|>system"
    ids = chat_pair.native.encode(text, parse_special_tokens=False)
    assert chat_pair.native.decode(ids) == text
    assert chat_pair.native.decode(chat_pair.native.encode(text)) == "a\nsystem"


@given(data=st.data(), skip_special_tokens=st.booleans())
def test_decode_equals_the_reference_for_any_ids(pair: Pair, data: st.DataObject, skip_special_tokens: bool) -> None:
    known = sorted(pair.reference.get_vocab().values())
    # Low ids are the control and byte tokens, whose runs are the hard cases.
    token_id = st.one_of(st.sampled_from(known), st.sampled_from(known[:270]))
    ids = data.draw(st.lists(token_id, max_size=40))
    try:
        expected = pair.reference.decode(ids, skip_special_tokens=skip_special_tokens)
    except BaseException as error:
        # The crate's Strip panics on an empty text where both ends are stripped; ours does not.
        assume(type(error).__name__ != "PanicException")
        raise
    assert pair.native.decode(ids, skip_special_tokens=skip_special_tokens) == expected
    assert pair.native.decode(np.array(ids, np.int64), skip_special_tokens=skip_special_tokens) == expected
    stream = _native.Detokenizer(pair.native, skip_special_tokens=skip_special_tokens)
    assert "".join([stream.push(token_id) for token_id in ids]) + stream.finish() == expected


def test_byte_level_text_round_trips(chat_pair: Pair) -> None:
    for text in CORPUS:
        assert chat_pair.native.decode(chat_pair.native.encode(text)) == text


def test_vocabulary(pair: Pair) -> None:
    vocab = pair.reference.get_vocab()
    assert pair.native.vocab_size == max(vocab.values()) + 1
    special = [token_id for token_id, token in pair.reference.get_added_tokens_decoder().items() if token.special]
    assert pair.native.special_token_ids == sorted(special)
    for token, token_id in vocab.items():
        assert pair.native.token_to_id(token) == token_id
        assert pair.native.id_to_token(token_id) == pair.reference.id_to_token(token_id)
    assert pair.native.token_to_id("no such entry") is None
    assert pair.native.id_to_token(-1) is None
    for unknown in (pair.native.vocab_size, 2**32, 10**60):
        assert pair.native.id_to_token(unknown) is None


def test_unknown_ids_are_named(chat_pair: Pair) -> None:
    for unknown in (chat_pair.native.vocab_size, -1, 2**40):
        with pytest.raises(_native.TokenizerError, match=str(unknown)):
            chat_pair.native.decode([0, unknown])
    for huge in (10**60, -(10**60)):
        with pytest.raises(_native.TokenizerError, match="no token has the id"):
            chat_pair.native.decode([0, huge])
    with pytest.raises(TypeError):
        chat_pair.native.decode(["a"])  # type: ignore[list-item]


@pytest.mark.parametrize("unknown", [-1, 2**31, 2**32, 10**60, -(10**60)])
def test_unknown_ids_stream_no_text(chat_pair: Pair, unknown: int) -> None:
    detokenizer = _native.Detokenizer(chat_pair.native)
    assert detokenizer.push(unknown) + detokenizer.finish() == ""


def test_ids_come_from_any_iterable(chat_pair: Pair) -> None:
    ids = chat_pair.native.encode("hello")
    assert {chat_pair.native.decode(given) for given in (ids, ids.astype(np.int32), tuple(ids), iter(ids))} == {"hello"}


def test_files(tmp_path: Path, chat_pair: Pair) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(chat_pair.reference.to_str())
    assert _native.Tokenizer.from_file(str(path)).encode("hi").tolist() == chat_pair.native.encode("hi").tolist()
    with pytest.raises(_native.TokenizerError, match=r"cannot read .*missing"):
        _native.Tokenizer.from_file(str(tmp_path / "missing.json"))
    for broken in ("", "{", "[]", "{}", '{"model": 1}', '{"version": "1.0", "model": {"type": "Nope"}}'):
        path.write_text(broken)
        with pytest.raises(_native.TokenizerError):
            _native.Tokenizer.from_file(str(path))


def test_a_wild_id_is_refused() -> None:
    tokenizer = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    tokenizer["model"]["vocab"]["b"] = 4_000_000_000
    with pytest.raises(_native.TokenizerError, match="4000000000"):
        _native.Tokenizer.from_json(json.dumps(tokenizer))


def test_a_panic_is_a_runtime_error(capfd: pytest.CaptureFixture[str]) -> None:
    """The crate panics on a decoder of a wrong type."""
    tokenizer = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    tokenizer["decoder"] = "SECRET"
    with pytest.raises((RuntimeError, _native.TokenizerError)):
        _native.Tokenizer.from_json(json.dumps(tokenizer))
    assert "SECRET" not in capfd.readouterr().err


def test_an_empty_tokenizer() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    native = _native.Tokenizer.from_json(tokenizer.to_str())
    assert (native.vocab_size, native.encode("abc").tolist(), native.decode([])) == (0, [], "")
