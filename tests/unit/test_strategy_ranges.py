"""Ranges of the settings that steer the engine: the last value inside and the first outside, at each end."""

import math
from typing import Any

import pytest

from tokenwire.engine.ranges import out_of_range
from tokenwire.engine.settings import GenerationOverrides

TINY = 5e-324
RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "max_length": ([1, 2**31 - 1], [0, -1]),
    "max_time": ([TINY, 1e308], [0.0, -1.0, math.inf, math.nan]),
    "guidance_scale": ([-100.0, 0.0, 100.0], [-100.5, 100.5, math.nan, math.inf, -math.inf]),
    "num_return_sequences": ([1, 1000], [0, -1]),
    "num_beams": ([1, 1000], [0, -1]),
    "length_penalty": ([-10.0, 0.0, 10.0], [-10.5, 10.5, math.nan, math.inf, -math.inf]),
    "prompt_lookup_num_tokens": ([0, 64], [-1, 65]),
    "max_matching_ngram_size": ([1, 16], [0, 17]),
    "num_assistant_tokens": ([0, 64], [-1, 65]),
}


def fields(name: str, value: Any) -> list[str]:
    return [violation.field for violation in out_of_range(GenerationOverrides(**{name: value}), vocab_size=100)]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (inside, _) in RANGES.items() for value in inside])
def test_inside(name: str, value: Any) -> None:
    assert fields(name, value) == []


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, outside) in RANGES.items() for value in outside]
)
def test_outside(name: str, value: Any) -> None:
    assert fields(name, value) == [name]
