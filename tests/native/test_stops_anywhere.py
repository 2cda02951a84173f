"""Stop strings in text that is cut into tokens anywhere, inside characters as well; and transformers' own cases."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import forcing, make_generation, token

from tokenwire import _native

LETTERS = st.text("stopab é日😀", max_size=12)
STOPS = st.lists(
    st.one_of(
        st.sampled_from(["stop", "stopat", "ss", "st", "a", "é", "日本"]), st.text("stopé日😀", min_size=1, max_size=5)
    ),
    min_size=1,
    max_size=3,
    unique=True,
)


def byte_letters() -> list[str]:
    """The letter that a byte-level vocabulary writes for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


BYTE_LETTERS = byte_letters()


def tokenizer_of(pieces: list[bytes]) -> tuple[_native.Tokenizer, list[int]]:
    """A tokenizer with these entries, and their ids."""
    entries = ["".join(BYTE_LETTERS[byte] for byte in piece) for piece in pieces]
    vocab = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": entries[0]}
    source = {"version": "1.0", "added_tokens": [], "decoder": decoder, "model": model}
    return _native.Tokenizer.from_json(json.dumps(source)), [vocab[entry] for entry in entries]


def first_match(data: bytes, stops: list[str]) -> tuple[int, int, str] | None:
    """Start, end and string of the match that ends first; of several that end there, of the longest."""
    found = [(data.index(stop.encode()), stop) for stop in stops if stop.encode() in data]
    ends = [(start + len(stop.encode()), start, stop) for start, stop in found]
    end, start, stop = min(ends, default=(0, 0, ""))
    return (start, end, stop) if stop else None


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[bytes], list[str]]:
    """A text, the tokens it is cut into, and stop strings, of which it holds one more often than not."""
    stops = draw(STOPS)
    text = draw(LETTERS) + draw(st.sampled_from([*stops, ""])) + draw(LETTERS) + "x"
    data = text.encode()
    cuts = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=len(data)))})
    return text, [data[start:end] for start, end in pairwise(cuts)], stops


def fallback_tokenizer_of(pieces: list[bytes]) -> tuple[_native.Tokenizer, list[int]]:
    """The same, where a piece of one byte is a byte-fallback token: a run of those is text once it is over."""
    entries = [f"<0x{piece[0]:02X}>" if len(piece) == 1 else piece.decode() for piece in pieces]
    vocab = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": entries[0]}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    source = {"version": "1.0", "added_tokens": [], "decoder": decoder, "model": model}
    return _native.Tokenizer.from_json(json.dumps(source)), [vocab[entry] for entry in entries]


@st.composite
def fallback_texts(draw: st.DrawFn) -> tuple[str, list[bytes], list[str]]:
    """A text of tokens that are characters, and of characters that are cut into bytes."""
    text, _, stops = draw(cut_texts())
    pieces = []
    for character in text:
        data = character.encode()
        pieces += [data[at : at + 1] for at in range(len(data))] if draw(st.booleans()) else [data]
    return text, pieces, stops


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(case=cut_texts(), include=st.booleans())
def test_a_stop_string_is_found_wherever_tokens_cut_it(case: tuple[str, list[bytes], list[str]], include: bool) -> None:
    assert_found(case, tokenizer_of(case[1]), include)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(case=fallback_texts(), include=st.booleans())
def test_a_stop_string_is_found_in_a_run_of_byte_tokens(
    case: tuple[str, list[bytes], list[str]], include: bool
) -> None:
    assert_found(case, fallback_tokenizer_of(case[1]), include)


def assert_found(
    case: tuple[str, list[bytes], list[str]], made: tuple[_native.Tokenizer, list[int]], include: bool
) -> None:
    text, pieces, stops = case
    tokenizer, ids = made
    assert tokenizer.decode(ids) == text
    generation = _native.Generation(
        tokenizer,
        [0],
        _native.SamplingParams(vocab_size=tokenizer.vocab_size),
        _native.StoppingParams(
            vocab_size=tokenizer.vocab_size,
            max_new_tokens=len(ids),
            stop_strings=stops,
            include_stop_string=include,
        ),
    )
    sampler, emissions = _native.Sampler(), []
    for token_id in ids:
        if not generation.is_finished:
            emissions += sampler.step(forcing(token_id, vocab_size=tokenizer.vocab_size), [generation])
    got, stop = "".join(emission.text for emission in emissions), emissions[-1].stop_string
    match = first_match(text.encode(), stops)
    if match is None:
        assert (got, stop, emissions[-1].finish_reason) == (text, None, "length")
        return
    start, end, wanted = match
    assert (stop, emissions[-1].finish_reason) == (wanted, "stop_string")
    assert got.encode() == text.encode()[: end if include else start]
    # The token that completes the match is the last.
    assert len(b"".join(pieces[: len(emissions) - 1])) < end <= len(b"".join(pieces[: len(emissions)]))


@pytest.mark.parametrize("words", [["st", "op"], ["st", "opera"], ["las", "topper"], ["s", "to", "pped"]])
def test_the_cases_of_transformers_documentation_match(words: list[str]) -> None:
    generation = make_generation(stopping={"stop_strings": ["stop"], "max_new_tokens": len(words) + 1})
    sampler, emissions = _native.Sampler(), []
    for word in words:
        emissions += sampler.step(forcing(token(word)), [generation])
    assert [emission.finish_reason for emission in emissions] == [None] * (len(words) - 1) + ["stop_string"]
    assert emissions[-1].stop_string == "stop"
    assert "".join(emission.text for emission in emissions) == "".join(words).partition("stop")[0]


@pytest.mark.parametrize(
    ("prompt", "word", "stop"), [("stop", "at", "stopat"), ("stop", "at", "stop"), ("st", "op", "stop")]
)
def test_what_was_prompt_is_no_part_of_a_match(prompt: str, word: str, stop: str) -> None:
    generation = make_generation(prompt=[token(prompt)], stopping={"stop_strings": [stop], "max_new_tokens": 1})
    (emission,) = _native.Sampler().step(forcing(token(word)), [generation])
    assert (emission.text, emission.finish_reason, emission.stop_string) == (word, "length", None)
