"""Which settings are outside their range: those of the logits as Rust says, the others as `strategy_ranges` says."""

import msgspec

from tokenwire import _native
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.engine.strategy_ranges import out_of_strategy_range
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
    found += out_of_strategy_range(overrides)
    return [Violation(field, rule, value) for field, rule, value in found]
