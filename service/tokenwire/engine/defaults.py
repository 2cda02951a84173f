"""What a model's generation_config.json sets for requests that leave it open."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tokenwire.engine.ranges import out_of_range
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.errors import ModelLoadError

_OUR_NAMES = {"eos_token_id": "eos_token_ids"}

_SERVED: dict[str, Any] = {
    "max_new_tokens": int,
    "max_length": int,
    "min_new_tokens": int,
    "do_sample": bool,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "stop_strings": tuple[str, ...],
    "eos_token_ids": tuple[int, ...],
    "repetition_penalty": float,
    "suppress_tokens": tuple[int, ...],
}
"""Settings of generation_config.json that are applied, and their types."""

_NEUTRAL_VALUES: dict[str, Any] = {
    "min_length": 0,
    "max_time": None,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "constraints": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "begin_suppress_tokens": None,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "renormalize_logits": False,
    "guidance_scale": 1.0,
    "penalty_alpha": None,
    "dola_layers": None,
    "token_healing": False,
    "watermarking_config": None,
}
"""Settings of generation_config.json that would change an answer but are not served, and the value without effect
(transformers' ``GenerationConfig._get_default_generation_params``)."""


def defaults_from_generation_config(
    config: Mapping[str, Any], *, vocab_size: int
) -> tuple[GenerationOverrides, tuple[str, ...]]:
    """A model's defaults from its generation_config.json, and the settings there that are not served, as name=value.

    Settings at transformers' neutral value are left out of the second, and so is what cannot change an answer
    (cache, output and padding settings). A value outside its range, and elements of a list that are outside theirs,
    count as not served; a top_k above the vocabulary keeps every token and is cut to it, as transformers does. Raises
    ModelLoadError for a value of the wrong type.
    """
    values: dict[str, Any] = {}
    unapplied = []
    for key, value in config.items():
        if value is None:
            continue
        name = _OUR_NAMES.get(key, key)
        if name in _SERVED:
            if name in ("stop_strings", "eos_token_ids") and not isinstance(value, list | tuple):
                value = (value,)
            try:
                value = msgspec.convert(value, _SERVED[name])
            except msgspec.ValidationError as error:
                raise ModelLoadError(f"generation_config.json: {key}: {error}") from None
            if name == "top_k":
                value = min(value, vocab_size)
            kept, refused = _sorted_out(name, value, vocab_size)
            if refused is not None:
                unapplied.append(f"{key}={refused}")
            if kept is not None:
                values[name] = kept
        elif key in _NEUTRAL_VALUES and value != _NEUTRAL_VALUES[key]:
            unapplied.append(f"{key}={value}")
    return GenerationOverrides(**values), tuple(unapplied)


def _sorted_out(name: str, value: Any, vocab_size: int) -> tuple[Any, Any]:
    """The part of a setting's value that is in range, and the part that is not; None where there is none."""
    # Alone: a length that another default contradicts is cut when a request is resolved.
    found = out_of_range(GenerationOverrides(**{name: value}), vocab_size=vocab_size)
    if not found:
        return value, None
    if not isinstance(value, tuple):
        return None, value
    outside = {int(violation.field.partition("[")[2].rstrip("]")) for violation in found}
    kept = tuple(element for index, element in enumerate(value) if index not in outside)
    return kept, [value[index] for index in sorted(outside)]
