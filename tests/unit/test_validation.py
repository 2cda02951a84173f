"""Rules that need no server: what is collected, in which words, and at which cost."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokenwire import validation, validation_settings
from tokenwire.config import LimitsConfig
from tokenwire.engine.protocol import ModelInfo
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.errors import InvalidRequestError, UnknownModelError, Violation
from tokenwire.v1 import generation_pb2, generation_service_pb2
from tokenwire.validation import Bounds, Violations
from tokenwire.validation_settings import Output, Shape, checked_overrides

VOCAB_SIZE, CONTEXT = 100, 32
PLAIN = Output()


def bounds(kv_token_capacity: int = 1000, **limits: int) -> Bounds:
    info = ModelInfo(
        model_id="m",
        revision="",
        architecture="A",
        quantization="none",
        dtype="float32",
        device_map={},
        forward_path="paged",
        forward_path_reason="",
        parameter_count=1,
        context_length=CONTEXT,
        vocab_size=VOCAB_SIZE,
        kv_token_capacity=kv_token_capacity,
        special_tokens={},
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        tokenizer_json="",
        chat_templates={},
        defaults=GenerationOverrides(),
        unapplied_defaults=(),
    )
    return Bounds(info=info, limits=LimitsConfig(**limits), max_prompt_bytes=CONTEXT * 4, max_running=4)


def found(violations: Violations) -> list[Violation]:
    try:
        violations.check()
    except InvalidRequestError as error:
        return error.violations
    return []


def judge(overrides: GenerationOverrides) -> dict[str, Violation]:
    violations = Violations()
    validation_settings.check_generation(overrides, bounds(), violations, Shape())
    return {violation.field: violation for violation in found(violations)}


def sizes(config: generation_pb2.GenerationConfig, **limits: int) -> tuple[bool, list[str]]:
    violations = Violations()
    fits = validation_settings.check_sizes(config, LimitsConfig(**limits), violations)
    return fits, [violation.field for violation in found(violations)]


def test_nothing_noted_raises_nothing() -> None:
    Violations().check()


def test_the_first_rule_of_a_field_is_kept() -> None:
    violations = Violations()
    violations.add("a", "first", 1)
    violations.add("a", "second", 2)
    violations.add("b", "third", "x")
    assert found(violations) == [Violation("a", "first", "1"), Violation("b", "third", "'x'")]


@settings(deadline=None)
@given(st.text(), st.integers(10, 100))
def test_values_are_shortened(text: str, limit: int) -> None:
    shown = validation.shorten(text, limit)
    assert len(shown) <= limit
    if len(repr(text)) <= limit:
        assert shown == repr(text)


FRACTIONS = st.none() | st.floats(0.0625, 1, width=32)
COUNTS = st.none() | st.integers(0, CONTEXT + 1)
IDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=3).map(tuple)


@settings(deadline=None)
@given(
    st.builds(
        GenerationOverrides,
        max_new_tokens=COUNTS,
        max_length=COUNTS,
        min_new_tokens=COUNTS,
        do_sample=st.none() | st.booleans(),
        temperature=FRACTIONS,
        top_k=COUNTS,
        top_p=FRACTIONS,
        min_p=FRACTIONS,
        typical_p=FRACTIONS,
        repetition_penalty=FRACTIONS,
        presence_penalty=FRACTIONS,
        seed=st.none() | st.integers(-(2**63), 2**63 - 1),
        stop_strings=st.none() | st.lists(st.text(min_size=1, max_size=3), max_size=3).map(tuple),
        eos_token_ids=st.none() | IDS,
        stop_token_ids=IDS,
        suppress_tokens=st.none() | IDS,
        logit_bias=st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.floats(-100, 100, width=32), max_size=3),
        min_length=COUNTS,
        top_h=FRACTIONS,
        num_beams=st.none() | st.integers(0, 3),
        num_return_sequences=st.none() | st.integers(0, 3),
        guidance_scale=FRACTIONS,
        prompt_lookup_num_tokens=st.none() | st.integers(0, 2),
        forced_eos_token_ids=st.none() | IDS,
        forced_bos_token_id=st.none() | st.integers(0, VOCAB_SIZE - 1),
    )
)
def test_what_passes_the_first_look_is_settled_by_the_length_alone(overrides: GenerationOverrides) -> None:
    # Nothing but the prompt's length may refuse a request after its prompt was tokenized.
    assume(not judge(overrides))
    refused: set[str] = set()
    try:
        resolved = validation_settings.resolve_settings(overrides, PLAIN, bounds(), Shape(prompt_tokens=2))
    except InvalidRequestError as error:
        refused = {violation.field.removeprefix("generation_config.") for violation in error.violations}
    else:
        assert 1 <= resolved.settings.max_new_tokens <= CONTEXT - 2
    assert refused <= {"max_new_tokens", "max_length", "min_new_tokens"}


@pytest.mark.parametrize(
    ("config", "limits", "field"),
    [
        ({"stop_strings": {"values": ["a"] * 10**5}}, {}, "stop_strings.values"),
        ({"stop_strings": {"values": ["a" * 10**6]}}, {}, "stop_strings.values[0]"),
        ({"stop_token_ids": [-1] * 10**5}, {}, "stop_token_ids"),
        ({"eos_token_id": {"ids": [1] * 3}}, {"max_token_ids": 2}, "eos_token_id.ids"),
        ({"suppress_tokens": {"ids": [1] * 3}}, {"max_token_ids": 2}, "suppress_tokens.ids"),
        ({"logit_bias": {str(key): 500.0 for key in range(10**4)}}, {}, "logit_bias"),
        *(
            ({field: {"ids": [1] * 3}}, {"max_token_ids": 2}, f"{field}.ids")
            for field in ("begin_suppress_tokens", "forced_eos_token_id", "allowed_token_ids")
        ),
        ({"bad_words_ids": {"sequences": [{"ids": [1]}] * 3}}, {"max_token_sequences": 2}, "bad_words_ids.sequences"),
        ({"bad_words_ids": {"sequences": [{"ids": [1] * 3}]}}, {"max_token_ids": 2}, "bad_words_ids.sequences"),
        ({"sequence_bias": {"entries": [{"ids": [1]}] * 3}}, {"max_token_sequences": 2}, "sequence_bias.entries"),
        ({"sequence_bias": {"entries": [{"ids": [1] * 3}]}}, {"max_token_ids": 2}, "sequence_bias.entries"),
        (
            {"watermarking_config": {"synth_id_text": {"ngram_len": 5, "keys": [1] * 65}}},
            {},
            "watermarking_config.synth_id_text.keys",
        ),
    ],
)
def test_what_is_too_long_is_neither_copied_nor_looked_into(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object], limits: dict[str, int], field: str
) -> None:
    message = ParseDict(config, generation_pb2.GenerationConfig())
    assert sizes(message, **limits) == (False, [f"generation_config.{field}"])
    # `overrides_of` copies.
    monkeypatch.delattr(validation_settings, "overrides_of")
    violations = Violations()
    checked_overrides(message, PLAIN, bounds(**limits), violations, Shape())
    assert [violation.field for violation in found(violations)] == [f"generation_config.{field}"]


@pytest.mark.parametrize(
    ("asked", "limit", "fits"), [(0, 0, True), (1, 0, False), (20, 20, True), (21, 20, False), (-1, 20, False)]
)
@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
def test_logprobs(name: str, asked: int, limit: int, fits: bool) -> None:
    output = Output(**{name: asked})
    config = generation_pb2.GenerationConfig(top_p=0.0)
    violations = Violations()
    checked_overrides(config, output, bounds(max_logprobs=limit), violations, Shape())
    # A count that is too large is no reason to leave the other settings unread.
    expected = {"generation_config.top_p"} | (set() if fits else {f"output.{name}"})
    assert {violation.field for violation in found(violations)} == expected


@pytest.mark.parametrize(("capacity", "name"), [(1000, "context of 32"), (16, "KV cache of 16")])
def test_a_refusal_names_what_is_too_small(capacity: int, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        validation.check_prompt_tokens(32, bounds(capacity), "prompt.text")
    validation.check_prompt_tokens(min(capacity, 32) - 1, bounds(capacity), "prompt.text")


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least one token"):
        validation.check_prompt_tokens(0, bounds(), "prompt.text")


@pytest.mark.parametrize(("text", "fits"), [("x" * 128, True), ("x" * 129, False), ("é" * 64, True), ("é" * 65, False)])
def test_size_in_bytes_is_judged_before_tokenizing(text: str, fits: bool) -> None:
    violations = Violations()
    prompt = generation_service_pb2.Prompt(text=text)
    validation.check_prompt(prompt, bounds(), violations, "prompt")
    assert (not violations) is fits


@pytest.mark.parametrize(
    ("ids", "bad"), [([], []), ([0, VOCAB_SIZE - 1], []), ([1, -1, VOCAB_SIZE, 2], [1, 2]), ([-1] * 9, [*range(8)])]
)
@pytest.mark.parametrize("kind", [list, lambda ids: generation_pb2.TokenIds(ids=ids).ids, np.array])
def test_token_ids_outside_the_vocabulary_are_named(kind: Any, ids: list[int], bad: list[int]) -> None:
    violations = Violations()
    validation.check_token_ids(kind(ids), VOCAB_SIZE, violations, "ids")
    assert found(violations) == [Violation(f"ids[{index}]", "must be in [0, 100)", str(ids[index])) for index in bad]


@pytest.mark.parametrize("model", ["", "m"])
def test_the_served_model(model: str) -> None:
    validation.check_model(model, bounds().info)


def test_another_model() -> None:
    with pytest.raises(UnknownModelError, match="'other'"):
        validation.check_model("other", bounds().info)


def test_output_defaults() -> None:
    assert validation_settings.output_of(generation_pb2.OutputOptions()) == PLAIN
    changes: dict[str, Any] = {
        "logprobs": 0,
        "processed_logprobs": True,
        "skip_special_tokens": False,
        "prompt_logprobs": 0,
        "echo": True,
        "token_details": True,
        "explain": True,
    }
    assert validation_settings.output_of(generation_pb2.OutputOptions(**changes)) == Output(**changes)


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("top_p", "top_p"),
        ("logit_bias[7]", "logit_bias[7]"),
        ("stop_token_ids[1]", "stop_token_ids[1]"),
        ("stop_strings[1]", "stop_strings.values[1]"),
        ("eos_token_id[0]", "eos_token_id.ids[0]"),
        ("bad_words_ids[1]", "bad_words_ids.sequences[1]"),
        ("bad_words_ids[1][0]", "bad_words_ids.sequences[1].ids[0]"),
        ("sequence_bias[2].bias", "sequence_bias.entries[2].bias"),
        ("sequence_bias[2][1]", "sequence_bias.entries[2].ids[1]"),
        ("exponential_decay_length_penalty.decay_factor", "exponential_decay_length_penalty.decay_factor"),
    ],
)
def test_paths_are_those_of_the_request(field: str, path: str) -> None:
    assert validation_settings.path_of(field) == f"generation_config.{path}"
