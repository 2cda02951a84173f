"""Parameters: the ranges of generation.proto, and every violation in one report."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwire import _native

VOCAB = 100
HUGE = 10**60

BAD_SAMPLING: list[tuple[str, Any, str]] = [
    *[("temperature", value, "temperature") for value in (0.0, -1.0, math.nan, math.inf, -math.inf)],
    *[("repetition_penalty", value, "repetition_penalty") for value in (0.0, -0.1, math.nan, math.inf)],
    *[("top_k", value, "top_k") for value in (-1, VOCAB + 1, HUGE, -HUGE)],
    *[("top_p", value, "top_p") for value in (0.0, -0.5, 1.0000001, math.nan, math.inf)],
    *[("typical_p", value, "typical_p") for value in (0.0, -0.5, 1.0000001, math.nan)],
    *[("min_p", value, "min_p") for value in (-1e-9, 1.0000001, math.nan, math.inf)],
    *[("presence_penalty", value, "presence_penalty") for value in (-2.001, 2.001, math.nan, math.inf)],
    *[("frequency_penalty", value, "frequency_penalty") for value in (-2.001, 2.001, math.nan, -math.inf)],
    *[("logit_bias", {token: 1.0}, f"logit_bias[{token}]") for token in (-1, VOCAB)],
    *[("logit_bias", {3: value}, "logit_bias[3]") for value in (100.1, -100.1, math.nan, math.inf)],
    *[("suppress_tokens", [0, token], "suppress_tokens[1]") for token in (-1, VOCAB, HUGE, -HUGE)],
    *[("seed", value, "seed") for value in (2**63, -(2**63) - 1, HUGE)],
    *[("logprobs", value, "logprobs") for value in (-1, VOCAB + 1)],
    *[("vocab_size", value, "vocab_size") for value in (0, -1, 2**32)],
    *[("top_h", value, "top_h") for value in (0.0, -0.5, 1.0000001, math.nan)],
    *[(name, value, name) for name in ("epsilon_cutoff", "eta_cutoff") for value in (-1e-9, 1.0, math.nan, math.inf)],
    *[("min_tokens_to_keep", value, "min_tokens_to_keep") for value in (0, -1)],
    *[("encoder_repetition_penalty", value, "encoder_repetition_penalty") for value in (0.0, -1.0, math.nan, math.inf)],
    *[
        (name, value, name)
        for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size")
        for value in (-1, -HUGE)
    ],
    *[("sequence_bias", [((3,), value)], "sequence_bias[0].bias") for value in (100.1, -100.1, math.nan, math.inf)],
    *[("sequence_bias", [((1, token), 1.0)], "sequence_bias[0][1]") for token in (-1, VOCAB, HUGE)],
    ("sequence_bias", [((), 1.0)], "sequence_bias[0]"),
    ("sequence_bias", [((1, 2), 1.0), ((2,), 1.0), ([1, 2], -1.0)], "sequence_bias[2]"),
    *[("bad_words_ids", [[1], [2, token]], "bad_words_ids[1][1]") for token in (-1, VOCAB)],
    ("bad_words_ids", [[1], []], "bad_words_ids[1]"),
    *[("begin_suppress_tokens", [token], "begin_suppress_tokens[0]") for token in (-1, VOCAB)],
    *[("allowed_token_ids", [token], "allowed_token_ids[0]") for token in (-1, VOCAB)],
    ("allowed_token_ids", [], "allowed_token_ids"),
    *[("forced_bos_token_id", token, "forced_bos_token_id") for token in (-1, VOCAB, HUGE)],
    *[("guidance_scale", value, "guidance_scale") for value in (-100.1, 100.1, math.nan, math.inf)],
]

BAD_STOPPING: list[tuple[str, Any, str]] = [
    *[("max_new_tokens", value, "max_new_tokens") for value in (0, -1)],
    *[("min_new_tokens", value, "min_new_tokens") for value in (-1, 11, HUGE)],
    *[("eos_token_ids", [1, token], "eos_token_id[1]") for token in (-1, VOCAB)],
    *[("stop_token_ids", [token], "stop_token_ids[0]") for token in (-1, VOCAB, HUGE)],
    ("stop_strings", ["a", ""], "stop_strings[1]"),
    ("min_length", -1, "min_length"),
    *[("forced_eos_token_ids", [token], "forced_eos_token_id[0]") for token in (-1, VOCAB)],
    *[
        ("exponential_decay_length_penalty", (0, value), "exponential_decay_length_penalty.decay_factor")
        for value in (0.0, -1.0, math.nan, math.inf)
    ],
    ("exponential_decay_length_penalty", (-1, 1.0), "exponential_decay_length_penalty.start_index"),
]

GOOD_SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 1e-300, "repetition_penalty": 1e300},
    {"top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1},
    {"top_k": VOCAB, "top_p": 1e-9, "min_p": 1.0, "typical_p": 1e-9},
    {"presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {0: -100, VOCAB - 1: 100.0}},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1, "logprobs": 0, "processed_logprobs": True},
    {"logprobs": VOCAB, "suppress_tokens": np.array([0, 99])},
    {"vocab_size": 8},
    {"top_h": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.999, "min_tokens_to_keep": 1, "guidance_scale": -100},
    {"top_h": None, "allowed_token_ids": None, "forced_bos_token_id": None, "logprobs": None, "logit_bias": None},
    {"allowed_token_ids": [0], "forced_bos_token_id": VOCAB - 1, "guidance_scale": 100.0},
    {"sequence_bias": (((0, 1), 100.0), ([0], -100)), "bad_words_ids": ([0], (1, 99)), "no_repeat_ngram_size": 10**9},
]


def violations(call: Any, /, **arguments: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(_native.InvalidParametersError) as caught:
        call(**arguments)
    assert isinstance(caught.value, ValueError)
    for field, rule, value in caught.value.violations:
        assert f"{field}: {rule}, got {value}" in str(caught.value)
    return caught.value.violations


@pytest.mark.parametrize(("name", "value", "field"), BAD_SAMPLING)
def test_sampling_refuses_naming_field_rule_and_value(name: str, value: Any, field: str) -> None:
    found = violations(_native.SamplingParams, **{"vocab_size": VOCAB, name: value})
    assert [entry[0] for entry in found] == [field]
    assert found[0][1].startswith("must")
    assert found[0][2]


@pytest.mark.parametrize(("name", "value", "field"), BAD_STOPPING)
def test_stopping_refuses_naming_field_rule_and_value(name: str, value: Any, field: str) -> None:
    found = violations(_native.StoppingParams, **{"vocab_size": VOCAB, "max_new_tokens": 10, name: value})
    assert [entry[0] for entry in found] == [field]
    assert found[0][1].startswith("must")


@given(st.lists(st.sampled_from(BAD_SAMPLING), min_size=1, unique_by=lambda bad: bad[0]))
def test_all_violations_come_in_one_report(bad: list[tuple[str, Any, str]]) -> None:
    bad = [entry for entry in bad if entry[0] != "vocab_size"] or BAD_SAMPLING[:1]
    found = violations(_native.SamplingParams, vocab_size=VOCAB, **{name: value for name, value, _ in bad})
    assert sorted(entry[0] for entry in found) == sorted(field for _, _, field in bad)


def test_one_list_may_hold_several_violations() -> None:
    found = violations(_native.SamplingParams, vocab_size=VOCAB, suppress_tokens=[-1, 5, 100], logit_bias={100: 200.0})
    assert found == [
        ("logit_bias[100]", "must be from -100 to 100", "200"),
        ("logit_bias[100]", "must be a token id from 0 to 99", "100"),
        ("suppress_tokens[0]", "must be a token id from 0 to 99", "-1"),
        ("suppress_tokens[2]", "must be a token id from 0 to 99", "100"),
    ]


def test_no_default_is_outside_the_range_of_a_small_vocabulary() -> None:
    _native.SamplingParams(vocab_size=1)
    assert violations(_native.SamplingParams, vocab_size=8, top_k=9) == [("top_k", "must be from 0 to 8", "9")]


@pytest.mark.parametrize("arguments", GOOD_SAMPLING)
def test_the_edges_of_every_range_are_accepted(arguments: dict[str, Any]) -> None:
    _native.SamplingParams(**{"vocab_size": VOCAB, "do_sample": True, **arguments})


def test_stopping_accepts_its_edges() -> None:
    _native.StoppingParams(vocab_size=VOCAB, max_new_tokens=1)
    _native.StoppingParams(
        vocab_size=VOCAB,
        max_new_tokens=5,
        min_new_tokens=5,
        eos_token_ids=np.array([0, 99]),
        stop_token_ids=(99,),
        stop_strings=["é", "\n"],
        include_stop_string=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": "hot"},
        {"top_k": 1.5},
        {"suppress_tokens": 3},
        {"unknown": 1},
        {"sequence_bias": [(1, 2.0)]},
        {"sequence_bias": 1},
        {"bad_words_ids": [1]},
        {"logit_bias": [1]},
        {"logit_bias": {1: "much"}},
        {"do_sample": None},
        {"forced_bos_token_id": 1.5},
    ],
)
def test_wrong_types_are_type_errors_that_name_the_argument(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"'{next(iter(arguments))}'"):
        _native.SamplingParams(vocab_size=VOCAB, **arguments)


def test_what_has_no_default_must_be_given() -> None:
    with pytest.raises(TypeError, match="'vocab_size'"):
        _native.SamplingParams()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'max_new_tokens'"):
        _native.StoppingParams(vocab_size=VOCAB)  # type: ignore[call-arg]
