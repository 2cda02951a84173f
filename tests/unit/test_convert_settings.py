"""Settings to protobuf and back: presence survives, and what goes out comes back in."""

from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokenwire import convert_settings
from tokenwire.convert_settings import config_of, overrides_of
from tokenwire.engine.resolution import Circumstances, resolve
from tokenwire.engine.settings import (
    SAMPLING_FIELDS,
    GenerationOverrides,
    GenerationSettings,
    GreenListWatermark,
    SynthIdTextWatermark,
)
from tokenwire.v1 import generation_pb2

PROTO_NAMES = {**convert_settings.ID_LISTS, "watermark": "watermarking_config"}

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
INTS = st.integers(-(2**31), 2**31 - 1)
LONGS = st.integers(-(2**63), 2**63 - 1)
IDS = st.lists(INTS, max_size=4).map(tuple)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WATERMARKS = st.builds(
    GreenListWatermark,
    greenlist_ratio=FLOATS,
    bias=FLOATS,
    hashing_key=LONGS,
    seeding_scheme=st.sampled_from(["lefthash", "selfhash"]),
    context_width=INTS,
) | st.builds(
    SynthIdTextWatermark,
    ngram_len=INTS,
    keys=st.lists(LONGS, max_size=3).map(tuple),
    context_history_size=INTS,
    sampling_table_seed=LONGS,
    sampling_table_size=INTS,
    skip_first_ngram_calls=st.booleans(),
    debug_mode=st.booleans(),
)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "seed": LONGS,
    "stop_strings": st.lists(TEXT, max_size=3).map(tuple),
    "logit_bias": st.dictionaries(INTS, FLOATS, max_size=3),
    "watermark": st.none() | WATERMARKS,
    "bad_words_ids": st.lists(IDS, max_size=3).map(tuple),
    "sequence_bias": st.lists(st.tuples(IDS, FLOATS), max_size=3).map(tuple),
    "forced_bos_token_id": st.none() | INTS,
    "exponential_decay_length_penalty": st.none() | st.tuples(INTS, FLOATS),
    "allowed_token_ids": st.none() | IDS,
    "early_stopping": st.sampled_from(["false", "true", "never"]),
    "max_time": st.none() | st.floats(allow_nan=False),
    "top_h": st.none() | FLOATS,
}
OUTPUT_ONLY = {"logprobs", "prompt_logprobs", "processed_logprobs", "explain", "skip_special_tokens", "healed_token_id"}
BY_TYPE = {int: INTS, float: FLOATS, bool: st.booleans()}


def kind_of(name: str) -> st.SearchStrategy[Any]:
    if name in KINDS:
        return KINDS[name]
    if name in (*convert_settings.ID_LISTS, "stop_token_ids"):
        return IDS
    (field,) = (field for field in msgspec.structs.fields(GenerationSettings) if field.name == name)
    return BY_TYPE[field.type]


SETTINGS = st.fixed_dictionaries(
    {name: kind_of(name) for name in GenerationSettings.__struct_fields__ if name not in OUTPUT_ONLY}
).map(lambda fields: GenerationSettings(**fields))


def test_unset_is_none() -> None:
    assert overrides_of(generation_pb2.GenerationConfig()) == GenerationOverrides()


@pytest.mark.parametrize("name", convert_settings.OPTIONAL_SCALARS)
def test_zero_is_a_value(name: str) -> None:
    zero = type(getattr(generation_pb2.GenerationConfig(), name))()
    overrides = overrides_of(generation_pb2.GenerationConfig(**{name: zero}))
    assert getattr(overrides, name) == zero
    assert msgspec.structs.replace(overrides, **{name: None}) == GenerationOverrides()


@pytest.mark.parametrize(
    ("field", "empty", "name"),
    [
        ("stop_strings", generation_pb2.StringList(), "stop_strings"),
        ("bad_words_ids", generation_pb2.TokenSequences(), "bad_words_ids"),
        ("sequence_bias", generation_pb2.SequenceBias(), "sequence_bias"),
        *((field, generation_pb2.TokenIds(), name) for name, field in convert_settings.ID_LISTS.items()),
    ],
)
def test_an_empty_list_is_not_an_unset_one(field: str, empty: Any, name: str) -> None:
    assert getattr(overrides_of(generation_pb2.GenerationConfig(**{field: empty})), name) == ()


def test_unset_fields_of_a_watermark_have_the_defaults_of_transformers() -> None:
    message = generation_pb2.WatermarkingConfig(green_list=generation_pb2.GreenListWatermark())
    assert overrides_of(generation_pb2.GenerationConfig(watermarking_config=message)).watermark == GreenListWatermark()
    message = generation_pb2.WatermarkingConfig(synth_id_text={"ngram_len": 5, "keys": [7]})
    watermark = overrides_of(generation_pb2.GenerationConfig(watermarking_config=message)).watermark
    assert watermark == SynthIdTextWatermark(ngram_len=5, keys=(7,))


def test_an_unspecified_early_stopping_is_unset() -> None:
    config = generation_pb2.GenerationConfig(early_stopping=generation_pb2.EARLY_STOPPING_UNSPECIFIED)
    assert overrides_of(config).early_stopping is None
    config = generation_pb2.GenerationConfig(early_stopping=generation_pb2.EARLY_STOPPING_FALSE)
    assert overrides_of(config).early_stopping == "false"


@settings(deadline=None)
@given(SETTINGS)
def test_settings_go_out_as_a_config_that_means_the_same(given_settings: GenerationSettings) -> None:
    overrides = overrides_of(config_of(given_settings, with_seed=True))
    left_out = {"max_length", "min_new_tokens" if given_settings.min_length else "min_length"}
    if not given_settings.do_sample:
        left_out |= set(SAMPLING_FIELDS)
    for name in GenerationOverrides.__struct_fields__:
        expected = None if name in left_out else getattr(given_settings, name)
        assert getattr(overrides, name) == expected, name
    assert overrides_of(config_of(given_settings, with_seed=False)).seed is None


# Values inside their ranges, so that what is decided can be decided again.
SMALL = st.integers(0, 40)
FRACTIONS = st.floats(0.0625, 1, width=32)
SOME_IDS = st.lists(st.integers(0, 49), min_size=1, max_size=3).map(tuple)
VALID: dict[str, st.SearchStrategy[Any]] = {
    "max_new_tokens": st.integers(1, 40),
    "max_length": st.integers(5, 90),
    "min_new_tokens": SMALL,
    "min_length": SMALL,
    "top_k": SMALL,
    "no_repeat_ngram_size": SMALL,
    "encoder_no_repeat_ngram_size": SMALL,
    "forced_bos_token_id": SMALL,
    "num_return_sequences": st.integers(1, 3),
    "num_beams": st.integers(1, 3),
    "prompt_lookup_num_tokens": st.integers(0, 4),
    "max_matching_ngram_size": st.integers(1, 4),
    "num_assistant_tokens": st.integers(0, 4),
    "seed": LONGS,
    "max_time": FRACTIONS,
    "stop_strings": st.lists(TEXT, max_size=2).map(tuple),
    "early_stopping": KINDS["early_stopping"],
    "bad_words_ids": st.lists(SOME_IDS, max_size=2).map(tuple),
    "sequence_bias": st.lists(st.tuples(SOME_IDS, FRACTIONS), max_size=2).map(tuple),
    "exponential_decay_length_penalty": st.tuples(SMALL, FRACTIONS),
    "watermark": WATERMARKS,
    "logit_bias": st.dictionaries(SMALL, FRACTIONS, max_size=2),
    "stop_token_ids": SOME_IDS,
    **dict.fromkeys(convert_settings.ID_LISTS, SOME_IDS),
}
FLAGS = (
    "do_sample", "include_stop_string", "deadline_aware", "renormalize_logits", "remove_invalid_values",
    "token_healing",
)  # fmt: skip
BOTH = {
    name: VALID.get(name, st.booleans() if name in FLAGS else FRACTIONS)
    for name in GenerationOverrides.__struct_fields__
}
REQUEST_ONLY = {"seed", "stop_token_ids", "logit_bias", "deadline_aware", "num_assistant_tokens"}


@settings(deadline=None)
@given(
    st.fixed_dictionaries({}, optional=BOTH).map(lambda fields: GenerationOverrides(**fields)),
    st.fixed_dictionaries({}, optional={name: kind for name, kind in BOTH.items() if name not in REQUEST_ONLY}).map(
        lambda fields: GenerationOverrides(**fields)
    ),
    st.booleans(),
)
def test_a_config_sent_back_gives_the_same_settings(
    overrides: GenerationOverrides, defaults: GenerationOverrides, has_text_prompt: bool
) -> None:
    circumstances = Circumstances(3, 99, 50, has_text_prompt=has_text_prompt, num_assistant_tokens=2)
    first = resolve(overrides, defaults, circumstances, draw_seed=lambda: 11)
    assume(first.settings is not None)
    assert first.settings is not None
    again = resolve(overrides_of(config_of(first.settings, with_seed=True)), defaults, circumstances)
    assert again.settings == first.settings, again.violations


def test_config_names_every_setting() -> None:
    fields = {field.name for field in generation_pb2.GenerationConfig.DESCRIPTOR.fields}
    assert fields == {PROTO_NAMES.get(name, name) for name in GenerationOverrides.__struct_fields__}
