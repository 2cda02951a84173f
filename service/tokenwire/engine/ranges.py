"""Which settings are outside their range: what Rust says, whose parameters hold the ranges."""

import math

import msgspec

from tokenwire import _native
from tokenwire.config import MAX_DRAFT_TOKENS
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.errors import Violation

MAX_NEW_TOKENS = 2**31 - 1
"""What GenerationConfig's max_new_tokens can say at most, an int32."""

SAMPLING_NAMES = (
    "do_sample",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "watermark",
    "renormalize_logits",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "logit_bias",
    "sequence_bias",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "allowed_token_ids",
    "forced_bos_token_id",
    "remove_invalid_values",
    "guidance_scale",
    "seed",
)
"""Settings that ``_native.SamplingParams`` takes under the same names."""

STOPPING_NAMES = (
    "min_new_tokens",
    "min_length",
    "eos_token_ids",
    "forced_eos_token_ids",
    "exponential_decay_length_penalty",
    "stop_token_ids",
    "stop_strings",
    "include_stop_string",
)
"""Settings that ``_native.StoppingParams`` takes under the same names."""

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("num_return_sequences", 1, math.inf),
    ("num_beams", 1, math.inf),
    ("length_penalty", -_native.MAX_LENGTH_PENALTY, _native.MAX_LENGTH_PENALTY),
    ("prompt_lookup_num_tokens", 0, MAX_DRAFT_TOKENS),
    ("max_matching_ngram_size", 1, 16),
    ("num_assistant_tokens", 0, MAX_DRAFT_TOKENS),
)
"""Settings of the strategies, which are no business of the sampler; where the end is infinite, ModelLimits has it."""


def out_of_range(
    overrides: GenerationOverrides, *, vocab_size: int, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[Violation]:
    """Every set value that is outside its range, under GenerationConfig's name of the field.

    Elements of lists and maps are named with index or key: ``stop_token_ids[1]``. ``max_new_tokens`` bounds
    min_new_tokens where the overrides leave it open.
    """
    values = {name: value for name, value in msgspec.structs.asdict(overrides).items() if value is not None}
    sampling = {name: values[name] for name in SAMPLING_NAMES if name in values}
    stopping = {name: values[name] for name in STOPPING_NAMES if name in values}
    found: list[tuple[str, str, str]] = []
    try:
        _native.SamplingParams(vocab_size=vocab_size, **sampling)
    except _native.InvalidParametersError as error:
        found += error.violations
    try:
        _native.StoppingParams(
            vocab_size=vocab_size, max_new_tokens=values.get("max_new_tokens", max_new_tokens), **stopping
        )
    except _native.InvalidParametersError as error:
        found += error.violations
    # Rust has no max_length: it is a max_new_tokens once the prompt is known.
    if overrides.max_length is not None and overrides.max_length < 1:
        found.append(("max_length", "must be at least 1", str(overrides.max_length)))
    if overrides.max_time is not None and not 0 < overrides.max_time < math.inf:
        found.append(("max_time", "must be above 0 and finite", str(overrides.max_time)))
    for name, low, high in _RANGES:
        value = values.get(name)
        if value is not None and not (low <= value <= high):
            rule = f"must be from {low:g} to {high:g}" if high < math.inf else f"must be at least {low}"
            found.append((name, rule, str(value)))
    return [Violation(field, rule, value) for field, rule, value in found]
