"""What a model's generation_config.json sets for requests that leave it open."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from tokenwire.engine.ranges import out_of_range
from tokenwire.engine.settings import GenerationOverrides, GreenListWatermark, SynthIdTextWatermark
from tokenwire.errors import ModelLoadError

_INDEX = re.compile(r"[a-z_]+\[(\d+)\]")
"""The name of a list's element, as ranges call it."""

_OUR_NAMES = {
    "eos_token_id": "eos_token_ids",
    "forced_eos_token_id": "forced_eos_token_ids",
    "watermarking_config": "watermark",
}

_SERVED: dict[str, Any] = {
    "max_new_tokens": int,
    "max_length": int,
    "min_new_tokens": int,
    "min_length": int,
    "max_time": float,
    "stop_strings": tuple[str, ...],
    "eos_token_ids": tuple[int, ...],
    "do_sample": bool,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "top_h": float,
    "epsilon_cutoff": float,
    "eta_cutoff": float,
    "renormalize_logits": bool,
    "watermark": GreenListWatermark | SynthIdTextWatermark,
    "repetition_penalty": float,
    "encoder_repetition_penalty": float,
    "no_repeat_ngram_size": int,
    "encoder_no_repeat_ngram_size": int,
    "bad_words_ids": tuple[tuple[int, ...], ...],
    "sequence_bias": tuple[tuple[tuple[int, ...], float], ...],
    "suppress_tokens": tuple[int, ...],
    "begin_suppress_tokens": tuple[int, ...],
    "forced_bos_token_id": int,
    "forced_eos_token_ids": tuple[int, ...],
    "remove_invalid_values": bool,
    "exponential_decay_length_penalty": tuple[int, float],
    "guidance_scale": float,
    "num_return_sequences": int,
    "num_beams": int,
    "length_penalty": float,
    "early_stopping": Literal["false", "true", "never"],
    "prompt_lookup_num_tokens": int,
    "max_matching_ngram_size": int,
    "token_healing": bool,
}
"""Settings of generation_config.json that are applied, and their types."""

_NEUTRAL_VALUES: dict[str, Any] = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "force_words_ids": None,
    "constraints": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "use_mtp": None,
    "assistant_early_exit": None,
    "assistant_ensemble_weight": None,
    "speculation_type": None,
}
"""Settings of generation_config.json that would change an answer, or how it is found, but are not served, and the
value without effect (transformers' ``GenerationConfig._get_default_generation_params``)."""


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
            try:
                value = msgspec.convert(_in_one_notation(name, value), _SERVED[name])
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


def _in_one_notation(name: str, value: Any) -> Any:
    """A setting in the notation of GenerationOverrides where transformers has several."""
    match name:
        case "stop_strings" | "eos_token_ids" | "forced_eos_token_ids" if not isinstance(value, list | tuple):
            return (value,)
        case "early_stopping" if isinstance(value, bool):
            return "true" if value else "false"
        case "watermark" if isinstance(value, Mapping):
            # transformers tells its two classes apart by the type of the object; a file has the fields alone.
            return {"type": "synth_id_text" if "ngram_len" in value else "green_list", **value}
        case "sequence_bias" if isinstance(value, Mapping):
            return [(_ids_of_key(key), bias) for key, bias in value.items()]
        case _:
            return value


def _ids_of_key(key: Any) -> Any:
    # A dict by tuples, which JSON spells "(5, 6)".
    return [int(number) for number in re.findall(r"-?\d+", key)] if isinstance(key, str) else key


def _sorted_out(name: str, value: Any, vocab_size: int) -> tuple[Any, Any]:
    """The part of a setting's value that is in range, and the part that is not; None where there is none."""
    # Alone: a length that another default contradicts is cut when a request is resolved.
    found = out_of_range(GenerationOverrides(**{name: value}), vocab_size=vocab_size)
    if not found:
        return value, None
    indices = [_INDEX.match(violation.field) for violation in found]
    if name == "exponential_decay_length_penalty" or not all(indices):
        return None, value
    outside = {int(index[1]) for index in indices if index}
    kept = tuple(element for index, element in enumerate(value) if index not in outside)
    return kept, [value[index] for index in sorted(outside)]
