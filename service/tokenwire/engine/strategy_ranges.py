"""Ranges of the settings that steer the engine and not the logits; those of the logits live in Rust (`ranges`)."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from tokenwire.engine.settings import GenerationOverrides

MAX_DRAFT_TOKENS = 64
"""Tokens that prompt lookup or a draft model may propose per step."""
MAX_MATCHING_NGRAM_SIZE = 16
MAX_LENGTH_PENALTY = 10.0


def _integer(low: int, high: int | None = None) -> tuple[Callable[[Any], bool], str]:
    if high is None:
        return lambda value: value >= low, f"must be at least {low}"
    return lambda value: low <= value <= high, f"must be from {low} to {high}"


def _amount(limit: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: abs(value) <= limit, f"must be from -{limit:g} to {limit:g}"


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    # Rust has no lengths of prompt and answer together: they are lengths of the answer once the prompt is known.
    "max_length": _integer(1),
    "max_time": (lambda value: value > 0 and math.isfinite(value), "must be above 0 and finite"),
    "num_return_sequences": _integer(1),
    "num_beams": _integer(1),
    "length_penalty": _amount(MAX_LENGTH_PENALTY),
    "prompt_lookup_num_tokens": _integer(0, MAX_DRAFT_TOKENS),
    "max_matching_ngram_size": _integer(1, MAX_MATCHING_NGRAM_SIZE),
    "num_assistant_tokens": _integer(0, MAX_DRAFT_TOKENS),
}


def out_of_strategy_range(overrides: GenerationOverrides) -> Iterator[tuple[str, str, str]]:
    """``(field, rule, value)`` of every set value that is outside its range."""
    for name, (holds, rule) in _RANGES.items():
        value = getattr(overrides, name)
        if value is not None and not holds(value):
            yield name, rule, str(value)
