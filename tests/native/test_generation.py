"""How a sequence ends, and that its joined text is exactly the decoded tokens, cut at the stop string."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_cases import SPECIAL, TOKENIZER, VOCAB, forcing, make_generation, token

from tokenwire import _native


def run(generation: _native.Generation, words: list[str]) -> list[_native.Emission]:
    """Forces the words one after the other until the sequence ends."""
    sampler, emissions = _native.Sampler(), []
    for word in words:
        if not generation.is_finished:
            emissions += sampler.step(forcing(token(word)), [generation])
    return emissions


def text_of(emissions: list[_native.Emission]) -> str:
    return "".join(emission.text for emission in emissions)


STOPS: list[tuple[list[str], list[str], bool, str, str | None]] = [
    # words, stop strings, include, text, which matched
    (["st", "op"], ["stop"], False, "", "stop"),
    (["st", "opera"], ["stop"], False, "", "stop"),
    (["las", "topper"], ["stop"], False, "la", "stop"),
    (["s", "to", "pped"], ["stop"], False, "", "stop"),
    (["s", "to", "pped"], ["stop"], True, "stop", "stop"),
    (["a", "st", "opera"], ["stop"], True, "astop", "stop"),
    (["stop", "at"], ["stopat"], False, "", "stopat"),
    (["stop", "at"], ["stopb", "x"], False, "stopat", None),
    (["a", "st", "st", "op"], ["stop"], False, "ast", "stop"),
    (["s", "to", "a"], ["stop"], False, "stoa", None),
    (["é", "x"], ["éx"], False, "", "éx"),
]


@pytest.mark.parametrize(("words", "stops", "include", "text", "matched"), STOPS)
def test_stop_strings(words: list[str], stops: list[str], include: bool, text: str, matched: str | None) -> None:
    stopping = {"stop_strings": stops, "include_stop_string": include, "max_new_tokens": len(words)}
    emissions = run(make_generation(stopping=stopping), words)
    assert text_of(emissions) == text
    assert emissions[-1].stop_string == matched
    assert emissions[-1].finish_reason == ("stop_string" if matched else "length")
    assert len(emissions) == len(words), "the token that completes the match is counted"


def test_a_stop_string_never_matches_across_the_prompt() -> None:
    generation = make_generation(prompt=[token("st")], stopping={"stop_strings": ["stop"], "max_new_tokens": 1})
    (emission,) = run(generation, ["op"])
    assert (emission.text, emission.finish_reason) == ("op", "length")


@pytest.mark.parametrize(
    ("words", "stops", "text", "matched"),
    [(["a", "s", "to"], ["stop"], "asto", None), (["a", "é"], ["stop"], "aé", None), ([], ["stop"], "", None)],
)
def test_an_early_end_releases_what_is_held_back(
    words: list[str], stops: list[str], text: str, matched: str | None
) -> None:
    generation = make_generation(stopping={"stop_strings": stops})
    emissions = run(generation, words)
    end = generation.end()
    assert text_of(emissions) + end.text == text
    assert (end.token_id, end.stop_string, end.error) == (-1, matched, "the sequence was ended")
    assert end.finish_reason == ("stop_string" if matched else None)
    assert generation.is_finished
    with pytest.raises(ValueError, match="finished"):
        generation.end()
    with pytest.raises(ValueError, match="finished"):
        _native.Sampler().step(forcing(token("a")), [generation])


def test_text_that_may_become_a_match_is_held_back_and_released() -> None:
    emissions = run(make_generation(stopping={"stop_strings": ["stop"]}), ["a", "s", "to", "b"])
    assert [emission.text for emission in emissions] == ["a", "", "", "stob"]


ENDS: list[tuple[dict[str, Any], list[str], str, int | None]] = [
    ({"eos_token_ids": [SPECIAL]}, ["a", "</s>"], "eos", SPECIAL),
    ({"eos_token_ids": [SPECIAL], "max_new_tokens": 2}, ["a", "</s>"], "eos", SPECIAL),
    ({"eos_token_ids": [3, 1]}, ["a", "b"], "eos", 1),
    ({"stop_token_ids": [1]}, ["a", "b"], "stop_token", 1),
    ({"stop_token_ids": [1], "max_new_tokens": 2}, ["a", "b"], "stop_token", 1),
    ({"stop_token_ids": [1], "eos_token_ids": [1]}, ["a", "b"], "eos", 1),
    ({"max_new_tokens": 2}, ["a", "b"], "length", None),
    ({"max_new_tokens": 2, "stop_strings": ["ab"]}, ["a", "b"], "stop_string", None),
    ({"stop_token_ids": [1], "stop_strings": ["ab"]}, ["a", "b"], "stop_token", 1),
]


@pytest.mark.parametrize(("stopping", "words", "reason", "stop_token_id"), ENDS)
def test_what_ended_it_is_reported(
    stopping: dict[str, Any], words: list[str], reason: str, stop_token_id: int | None
) -> None:
    generation = make_generation(stopping=stopping)
    emissions = run(generation, words)
    assert [emission.finish_reason for emission in emissions] == [None] * (len(words) - 1) + [reason]
    assert emissions[-1].stop_token_id == stop_token_id
    assert generation.is_finished
    assert generation.num_generated == len(words)


@pytest.mark.parametrize("skip", [True, False])
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12))
def test_the_joined_text_is_the_decoded_tokens(skip: bool, ids: list[int]) -> None:
    stopping = {"eos_token_ids": [SPECIAL], "stop_token_ids": [token("x")], "max_new_tokens": len(ids)}
    generation = make_generation(stopping={**stopping, "stop_strings": ["absent"]}, skip_special_tokens=skip)
    sampler, emissions = _native.Sampler(), []
    for id_ in ids:
        if not generation.is_finished:
            emissions += sampler.step(forcing(id_), [generation])
    made = [emission.token_id for emission in emissions]
    assert made == ids[: len(made)]
    assert text_of(emissions) == TOKENIZER.decode(made, skip_special_tokens=skip)


@given(st.lists(st.integers(0, VOCAB - 2), min_size=1, max_size=12), st.sampled_from(["stop", "ab", "a", "éb", "ss"]))
def test_the_joined_text_ends_at_the_first_stop_string(ids: list[int], stop: str) -> None:
    whole = TOKENIZER.decode(ids)
    for include in (False, True):
        stopping = {"stop_strings": [stop], "include_stop_string": include, "max_new_tokens": len(ids)}
        generation = make_generation(stopping=stopping)
        sampler, emissions = _native.Sampler(), []
        for id_ in ids:
            if not generation.is_finished:
                emissions += sampler.step(forcing(id_), [generation])
        before, found, _ = whole.partition(stop)
        assert text_of(emissions) == (before + found if include else before)
        assert emissions[-1].stop_string == (stop if found else None)


def test_eos_is_out_of_reach_before_the_minimum() -> None:
    generation = make_generation(stopping={"eos_token_ids": [SPECIAL], "min_new_tokens": 3})
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, SPECIAL] = 10
    sampler = _native.Sampler()
    reasons = [sampler.step(logits, [generation])[0].finish_reason for _ in range(4)]
    assert reasons == [None, None, None, "eos"]


def test_penalties_count_the_answer_and_only_repetition_the_prompt() -> None:
    logits = np.array([[2.0, 1.9, 1.8] + [0.0] * 13], dtype=np.float32)
    sampler = _native.Sampler()

    def answer(**settings: Any) -> list[int]:
        generation = make_generation(prompt=[0, 0], **settings)
        return [sampler.step(logits, [generation])[0].token_id for _ in range(4)]

    assert answer() == [0, 0, 0, 0]
    assert answer(repetition_penalty=1.5) == [1, 2, 0, 0]
    assert answer(presence_penalty=0.15) == [0, 1, 0, 0]
    assert answer(frequency_penalty=0.15) == [0, 1, 0, 2]


@pytest.mark.parametrize("prompt", [[-1], [VOCAB], [0, 2**70]])
def test_prompt_ids_outside_the_vocabulary_are_refused(prompt: list[int]) -> None:
    with pytest.raises(_native.InvalidParametersError) as caught:
        make_generation(prompt=prompt)
    ((field, rule, _),) = caught.value.violations
    assert field == f"prompt_ids[{len(prompt) - 1}]"
    assert rule == "must be a token id from 0 to 15"


def test_prompts_may_be_arrays() -> None:
    for prompt in (np.array([1, 2]), np.array([1, 2], dtype=np.int32), np.arange(6)[::2], (1, 2), []):
        assert make_generation(prompt=prompt).num_generated == 0  # type: ignore[arg-type]


def test_a_failed_row_releases_what_was_held_back() -> None:
    generation = make_generation(stopping={"stop_strings": ["stop"]})
    run(generation, ["s"])
    (emission,) = _native.Sampler().step(np.full((1, VOCAB), np.nan, dtype=np.float32), [generation])
    assert (emission.text, emission.finish_reason, emission.token_id) == ("s", None, -1)
    assert generation.is_finished
