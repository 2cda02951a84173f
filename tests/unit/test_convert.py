"""Protobuf to domain and back: presence survives, and what goes out comes back in."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwire import convert
from tokenwire.engine.protocol import Finish, TokenLogprobs
from tokenwire.engine.settings import SAMPLING_FIELDS, GenerationOverrides, GenerationSettings, resolve
from tokenwire.v1 import generation_pb2

ZEROS: dict[str, Any] = {
    name: False if name in ("do_sample", "include_stop_string") else 0 for name in convert.OPTIONAL_SCALARS
}

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
INTS = st.integers(-(2**31), 2**31 - 1)
IDS = st.lists(INTS, max_size=4).map(tuple)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def test_unset_is_none() -> None:
    assert convert.overrides_of(generation_pb2.GenerationConfig()) == GenerationOverrides()


@pytest.mark.parametrize("name", convert.OPTIONAL_SCALARS)
def test_zero_is_a_value(name: str) -> None:
    config = generation_pb2.GenerationConfig(**{name: ZEROS[name]})
    overrides = convert.overrides_of(config)
    assert getattr(overrides, name) == ZEROS[name]
    assert msgspec.structs.replace(overrides, **{name: None}) == GenerationOverrides()


@pytest.mark.parametrize(
    ("field", "empty", "name"),
    [
        ("stop_strings", generation_pb2.StringList(), "stop_strings"),
        ("eos_token_id", generation_pb2.TokenIds(), "eos_token_ids"),
        ("suppress_tokens", generation_pb2.TokenIds(), "suppress_tokens"),
    ],
)
def test_an_empty_list_is_not_an_unset_one(field: str, empty: Any, name: str) -> None:
    assert getattr(convert.overrides_of(generation_pb2.GenerationConfig(**{field: empty})), name) == ()


@settings(deadline=None)
@given(
    st.builds(
        GenerationSettings,
        max_new_tokens=INTS,
        min_new_tokens=INTS,
        do_sample=st.booleans(),
        temperature=FLOATS,
        top_k=INTS,
        top_p=FLOATS,
        min_p=FLOATS,
        typical_p=FLOATS,
        seed=st.integers(-(2**63), 2**63 - 1),
        stop_strings=st.lists(TEXT, max_size=3).map(tuple),
        eos_token_ids=IDS,
        stop_token_ids=IDS,
        include_stop_string=st.booleans(),
        repetition_penalty=FLOATS,
        presence_penalty=FLOATS,
        frequency_penalty=FLOATS,
        logit_bias=st.dictionaries(INTS, FLOATS, max_size=3),
        suppress_tokens=IDS,
    )
)
def test_settings_go_out_as_a_config_that_means_the_same(given_settings: GenerationSettings) -> None:
    overrides = convert.overrides_of(convert.config_of(given_settings, with_seed=True))
    for name in GenerationOverrides.__struct_fields__:
        if name in SAMPLING_FIELDS and not given_settings.do_sample:
            assert getattr(overrides, name) is None, name
        elif name != "max_length":
            assert getattr(overrides, name) == getattr(given_settings, name), name
    assert overrides.max_length is None
    assert convert.overrides_of(convert.config_of(given_settings, with_seed=False)).seed is None


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("changes", [{}, {"min_new_tokens": 2, "repetition_penalty": 1.5, "stop_strings": ("a",)}])
def test_a_config_sent_back_gives_the_same_settings(do_sample: bool, changes: dict[str, Any]) -> None:
    def resolved(overrides: GenerationOverrides) -> GenerationSettings:
        resolution = resolve(
            overrides, GenerationOverrides(eos_token_ids=(7,)), prompt_tokens=3, context_length=99, vocab_size=50
        )
        assert resolution.settings is not None, resolution.violations
        return resolution.settings

    decided = resolved(GenerationOverrides(do_sample=do_sample, seed=5, **changes))
    assert resolved(convert.overrides_of(convert.config_of(decided, with_seed=True))) == decided


def test_config_names_every_setting() -> None:
    fields = {field.name for field in generation_pb2.GenerationConfig.DESCRIPTOR.fields}
    assert fields == {
        "eos_token_id" if name == "eos_token_ids" else name for name in GenerationOverrides.__struct_fields__
    }


def test_logprobs_need_one_entry_per_token() -> None:
    positions = [TokenLogprobs(-0.5, [(7, -0.5), (8, float("-inf"))])]
    (position,) = convert.position_logprobs_of([7], positions, lambda token_id: f"<{token_id}>")
    assert (position.chosen.token_id, position.chosen.text, position.chosen.logprob) == (7, "<7>", -0.5)
    assert [(top.token_id, top.logprob) for top in position.top] == [(7, -0.5), (8, float("-inf"))]
    with pytest.raises(ValueError, match="zip"):
        convert.position_logprobs_of([7, 8], positions, str)


@pytest.mark.parametrize(
    ("reason", "is_default", "warned"), [("length", True, True), ("length", False, False), ("eos", True, False)]
)
def test_length_warning(reason: str, is_default: bool, warned: bool) -> None:
    finish = Finish(reason, None, None, 3, 20, 1.0, 2.0, 3.0)
    warnings = convert.length_warnings(finish, length_is_default=is_default)
    assert [warning.code for warning in warnings] == ["default_length_cut"] * warned
    message = convert.finish_of(finish, warnings)
    assert message.usage.completion_token_count == 20
    assert list(message.warnings) == warnings


def test_every_reason_and_path_has_a_name() -> None:
    reasons = set(generation_pb2.FinishReason.values()) - {generation_pb2.FINISH_REASON_UNSPECIFIED}
    assert set(convert.FINISH_REASONS.values()) == reasons
