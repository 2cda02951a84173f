"""Every setting has its range, and each value outside is named."""

import math
from typing import Any

import pytest

from tokenwire.engine.ranges import out_of_range
from tokenwire.engine.settings import GenerationOverrides

VOCAB = 1000
FLAGS = ("do_sample", "include_stop_string")
LISTS = ("stop_strings", "eos_token_ids", "stop_token_ids", "logit_bias", "suppress_tokens")
NUMBERS = [name for name in GenerationOverrides.__struct_fields__ if name not in (*FLAGS, *LISTS)]
FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def fields(**values: Any) -> list[str]:
    return [violation.field for violation in out_of_range(GenerationOverrides(**values), vocab_size=VOCAB)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_lower_bound(name: str) -> None:
    assert fields(**{name: -(2**64)}) == [name]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1000.0])
def test_every_fraction_refuses_what_is_no_number_and_what_is_far_outside(name: str, value: float) -> None:
    assert fields(**{name: value}) == [name]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"max_new_tokens": 1, "max_length": 1, "min_new_tokens": 0, "top_k": 0, "seed": -(2**63)}, []),
        ({"max_new_tokens": 0}, ["max_new_tokens"]),
        ({"max_length": 0}, ["max_length"]),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, ["min_new_tokens"]),
        ({"temperature": 0.0}, ["temperature"]),
        ({"top_k": VOCAB}, []),
        ({"top_k": VOCAB + 1}, ["top_k"]),
        ({"top_p": 1.0, "typical_p": 1.0, "min_p": 0.0}, []),
        ({"top_p": 0.0, "typical_p": 0.0, "min_p": 1.5}, ["top_p", "min_p", "typical_p"]),
        ({"seed": 2**63}, ["seed"]),
        ({"presence_penalty": -2.0, "frequency_penalty": 2.0}, []),
        ({"presence_penalty": -2.5, "frequency_penalty": 2.5}, ["presence_penalty", "frequency_penalty"]),
        ({"eos_token_ids": (VOCAB,)}, ["eos_token_id[0]"]),
        ({"stop_token_ids": (1, -1)}, ["stop_token_ids[1]"]),
        ({"suppress_tokens": (VOCAB, 0, VOCAB)}, ["suppress_tokens[0]", "suppress_tokens[2]"]),
        ({"stop_strings": ("a", "")}, ["stop_strings[1]"]),
        ({"logit_bias": {0: 100.0, VOCAB - 1: -100.0}}, []),
        ({"logit_bias": {VOCAB: 1.0}}, [f"logit_bias[{VOCAB}]"]),
        ({"logit_bias": {1: math.nan}}, ["logit_bias[1]"]),
        ({"temperature": 0.0, "top_p": 1.5, "max_new_tokens": 0}, ["temperature", "top_p", "max_new_tokens"]),
    ],
)
def test_what_is_out_of_range(values: dict[str, Any], expected: list[str]) -> None:
    assert fields(**values) == expected


def test_the_length_bounds_the_fewest_tokens() -> None:
    overrides = GenerationOverrides(min_new_tokens=9)
    assert out_of_range(overrides, vocab_size=VOCAB, max_new_tokens=9) == []
    (violation,) = out_of_range(overrides, vocab_size=VOCAB, max_new_tokens=8)
    assert (violation.field, violation.rule, violation.value) == ("min_new_tokens", "must be from 0 to 8", "9")
