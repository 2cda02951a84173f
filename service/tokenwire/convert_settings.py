"""GenerationConfig to domain and back: pure functions, no rules.

Unset is told from zero by presence (``HasField``): a field that the caller left out becomes None, a zero stays zero.
"""

from collections.abc import Iterable
from typing import Any

from tokenwire.engine.settings import (
    SAMPLING_FIELDS,
    EarlyStopping,
    GenerationOverrides,
    GenerationSettings,
    GreenListWatermark,
    SynthIdTextWatermark,
    Watermark,
)
from tokenwire.v1 import generation_pb2

OPTIONAL_SCALARS = (
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "min_length",
    "max_time",
    "deadline_aware",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "top_h",
    "epsilon_cutoff",
    "eta_cutoff",
    "renormalize_logits",
    "seed",
    "include_stop_string",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "forced_bos_token_id",
    "remove_invalid_values",
    "guidance_scale",
    "num_return_sequences",
    "num_beams",
    "length_penalty",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "token_healing",
)
"""Fields of GenerationConfig that have the same name and type in GenerationOverrides."""

ID_LISTS = {
    "eos_token_ids": "eos_token_id",
    "suppress_tokens": "suppress_tokens",
    "begin_suppress_tokens": "begin_suppress_tokens",
    "forced_eos_token_ids": "forced_eos_token_id",
    "allowed_token_ids": "allowed_token_ids",
}
"""Lists of token ids: their names in GenerationOverrides, and the fields of type TokenIds."""

EARLY_STOPPING: dict[int, EarlyStopping | None] = {
    generation_pb2.EARLY_STOPPING_UNSPECIFIED: None,
    generation_pb2.EARLY_STOPPING_FALSE: "false",
    generation_pb2.EARLY_STOPPING_TRUE: "true",
    generation_pb2.EARLY_STOPPING_NEVER: "never",
}
"""Meaning of each value that this server knows."""

_EARLY_STOPPING_VALUES = {
    "false": generation_pb2.EARLY_STOPPING_FALSE,
    "true": generation_pb2.EARLY_STOPPING_TRUE,
    "never": generation_pb2.EARLY_STOPPING_NEVER,
}

SEEDING_SCHEMES: dict[int, Any] = {
    generation_pb2.GreenListWatermark.SEEDING_SCHEME_UNSPECIFIED: "lefthash",
    generation_pb2.GreenListWatermark.SEEDING_SCHEME_LEFT_HASH: "lefthash",
    generation_pb2.GreenListWatermark.SEEDING_SCHEME_SELF_HASH: "selfhash",
}
"""Meaning of each value that this server knows."""

_SEEDING_SCHEME_VALUES = {
    "lefthash": generation_pb2.GreenListWatermark.SEEDING_SCHEME_LEFT_HASH,
    "selfhash": generation_pb2.GreenListWatermark.SEEDING_SCHEME_SELF_HASH,
}

_GREEN_LIST_SCALARS = ("greenlist_ratio", "bias", "hashing_key", "context_width")
_SYNTH_ID_SCALARS = (
    "context_history_size",
    "sampling_table_seed",
    "sampling_table_size",
    "skip_first_ngram_calls",
    "debug_mode",
)


def _set_scalars(message: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def overrides_of(config: generation_pb2.GenerationConfig) -> GenerationOverrides:
    """What the caller set. Values are taken as they are; `validation_settings` judges them, unknown enum values too."""
    fields: dict[str, Any] = _set_scalars(config, OPTIONAL_SCALARS)
    for name, field in ID_LISTS.items():
        if config.HasField(field):
            fields[name] = tuple(getattr(config, field).ids)
    if config.HasField("stop_strings"):
        fields["stop_strings"] = tuple(config.stop_strings.values)
    if config.HasField("bad_words_ids"):
        fields["bad_words_ids"] = tuple(tuple(sequence.ids) for sequence in config.bad_words_ids.sequences)
    if config.HasField("sequence_bias"):
        fields["sequence_bias"] = tuple((tuple(entry.ids), entry.bias) for entry in config.sequence_bias.entries)
    if config.HasField("exponential_decay_length_penalty"):
        penalty = config.exponential_decay_length_penalty
        fields["exponential_decay_length_penalty"] = (penalty.start_index, penalty.decay_factor)
    fields["early_stopping"] = EARLY_STOPPING.get(config.early_stopping)
    if config.HasField("watermarking_config"):
        fields["watermark"] = _watermark_of(config.watermarking_config)
    return GenerationOverrides(
        **fields, stop_token_ids=tuple(config.stop_token_ids), logit_bias=dict(config.logit_bias)
    )


def _watermark_of(config: generation_pb2.WatermarkingConfig) -> Watermark | None:
    match config.WhichOneof("scheme"):
        case "green_list":
            green_list = config.green_list
            return GreenListWatermark(
                **_set_scalars(green_list, _GREEN_LIST_SCALARS),
                seeding_scheme=SEEDING_SCHEMES.get(green_list.seeding_scheme, "lefthash"),
            )
        case "synth_id_text":
            synth_id = config.synth_id_text
            return SynthIdTextWatermark(
                ngram_len=synth_id.ngram_len, keys=tuple(synth_id.keys), **_set_scalars(synth_id, _SYNTH_ID_SCALARS)
            )
        case _:
            return None


def config_of(settings: GenerationSettings, *, with_seed: bool) -> generation_pb2.GenerationConfig:
    """The settings in force as a request would write them, so that sending them back means the same.

    ``with_seed`` is false where nothing is drawn. Greedy settings name no sampling field: it would contradict them. Of
    min_new_tokens and min_length only the one in force is named: the first wins over the second.
    """
    left_out = {"min_new_tokens" if settings.min_length else "min_length"}
    if not settings.do_sample:
        left_out.update(SAMPLING_FIELDS)
    if not with_seed:
        left_out.add("seed")
    scalars = {
        name: value
        for name in OPTIONAL_SCALARS
        if name not in left_out and (value := getattr(settings, name, None)) is not None
    }
    config = generation_pb2.GenerationConfig(
        **scalars,
        stop_strings=generation_pb2.StringList(values=settings.stop_strings),
        stop_token_ids=settings.stop_token_ids,
        logit_bias=settings.logit_bias,
        bad_words_ids=generation_pb2.TokenSequences(
            sequences=[generation_pb2.TokenIds(ids=ids) for ids in settings.bad_words_ids]
        ),
        sequence_bias=generation_pb2.SequenceBias(
            entries=[generation_pb2.SequenceBiasEntry(ids=ids, bias=bias) for ids, bias in settings.sequence_bias]
        ),
        early_stopping=_EARLY_STOPPING_VALUES[settings.early_stopping],
    )
    for name, field in ID_LISTS.items():
        ids = getattr(settings, name)
        if ids is not None:
            message = getattr(config, field)
            message.ids.extend(ids)
            message.SetInParent()
    if settings.exponential_decay_length_penalty is not None:
        start_index, decay_factor = settings.exponential_decay_length_penalty
        config.exponential_decay_length_penalty.start_index = start_index
        config.exponential_decay_length_penalty.decay_factor = decay_factor
    if settings.watermark is not None:
        config.watermarking_config.CopyFrom(_watermarking_config_of(settings.watermark))
    return config


def _watermarking_config_of(watermark: Watermark) -> generation_pb2.WatermarkingConfig:
    if isinstance(watermark, GreenListWatermark):
        green_list = generation_pb2.GreenListWatermark(
            **{name: getattr(watermark, name) for name in _GREEN_LIST_SCALARS},
            seeding_scheme=_SEEDING_SCHEME_VALUES[watermark.seeding_scheme],
        )
        return generation_pb2.WatermarkingConfig(green_list=green_list)
    synth_id = generation_pb2.SynthIdTextWatermark(
        ngram_len=watermark.ngram_len,
        keys=watermark.keys,
        **{name: getattr(watermark, name) for name in _SYNTH_ID_SCALARS},
    )
    return generation_pb2.WatermarkingConfig(synth_id_text=synth_id)
