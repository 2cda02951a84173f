"""Token ranges of every kind of tokenizer: they tile the text, and their bytes are its bytes."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import CORPUS, Pair

from tokenwire import _native

TEXT = st.text(max_size=20) | st.sampled_from(CORPUS)
Aligned = list[tuple[int, bytes, int, int]]


def align(pair: Pair, ids: list[int], *, skip_special_tokens: bool) -> Aligned:
    aligner = _native.Aligner(pair.native, skip_special_tokens=skip_special_tokens)
    aligned = [token for token_id in ids for token in aligner.push(token_id)]
    return aligned + aligner.finish()


def check(aligned: Aligned, ids: list[int], text: str) -> None:
    assert [token_id for token_id, *_ in aligned] == ids
    ends = [0, *(end for *_, end in aligned)]
    assert [start for _, _, start, _ in aligned] == ends[:-1]
    assert ends[-1] == len(text.encode()) if ids else text == ""
    if "\ufffd" not in text:
        assert b"".join(data for _, data, _, _ in aligned) == text.encode()


@given(data=st.data(), skip_special_tokens=st.booleans())
def test_ranges_of_any_ids(pair: Pair, data: st.DataObject, skip_special_tokens: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, pair.native.vocab_size - 1), max_size=20))
    text = pair.native.decode(ids, skip_special_tokens=skip_special_tokens)
    check(align(pair, ids, skip_special_tokens=skip_special_tokens), ids, text)


@given(text=TEXT)
def test_ranges_of_an_encoded_text(pair: Pair, text: str) -> None:
    ids: list[int] = pair.native.encode(text).tolist()
    check(align(pair, ids, skip_special_tokens=False), ids, pair.native.decode(ids, skip_special_tokens=False))


def test_ids_without_an_entry_have_no_bytes(chat_pair: Pair) -> None:
    known = chat_pair.native.encode("x").tolist()
    for unknown in (-1, chat_pair.native.vocab_size, 2**32, 10**60):
        aligner = _native.Aligner(chat_pair.native)
        aligned = [*aligner.push(unknown), *aligner.push(known[0]), *aligner.finish()]
        assert [(data, start, end) for _, data, start, end in aligned] == [(b"", 0, 0), (b"x", 0, 1)]
