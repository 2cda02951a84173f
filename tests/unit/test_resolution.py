"""Precedence, lengths and violations of generation settings, as transformers' generate decides them."""

from typing import Any

import pytest

from tokenwire.engine.resolution import NEUTRAL_SAMPLING, Circumstances, Resolution, resolve
from tokenwire.engine.settings import (
    SAMPLING_FIELDS,
    GenerationOverrides,
    GenerationSettings,
    GreenListWatermark,
    SynthIdTextWatermark,
)

CONTEXT = 100
VOCAB = 1000
GREEN_LIST = GreenListWatermark(bias=1.5)
SYNTH_ID = SynthIdTextWatermark(ngram_len=5, keys=(1, 2))


def decide(
    request: dict[str, Any] | None = None, model: dict[str, Any] | None = None, *, prompt_tokens: int = 10, **more: Any
) -> Resolution:
    circumstances = Circumstances(prompt_tokens, **({"context_length": CONTEXT, "vocab_size": VOCAB} | more))
    return resolve(
        GenerationOverrides(**(request or {})),
        GenerationOverrides(**(model or {})),
        circumstances,
        draw_seed=lambda: 7,
    )


def settled(
    request: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **more: Any
) -> GenerationSettings:
    resolution = decide(request, model, **more)
    assert resolution.settings is not None, resolution.violations
    return resolution.settings


def codes(resolution: Resolution) -> list[str]:
    return [note.code for note in resolution.notes]


def fields(resolution: Resolution) -> list[str]:
    return [violation.field.removeprefix("generation_config.") for violation in resolution.violations]


@pytest.mark.parametrize(
    ("request_fields", "model_fields", "prompt_tokens", "expected", "is_default"),
    [
        ({}, {}, 10, 20, True),
        ({}, {}, 95, 5, True),
        ({"max_new_tokens": 30}, {}, 10, 30, False),
        ({"max_length": 30}, {}, 10, 20, False),
        ({"max_new_tokens": 3, "max_length": 30}, {}, 10, 3, False),
        ({"max_new_tokens": 30}, {"max_new_tokens": 5, "max_length": 12}, 10, 30, False),
        ({}, {"max_new_tokens": 40}, 10, 40, False),
        ({}, {"max_new_tokens": 2048}, 10, 90, False),
        ({"max_length": 30}, {"max_new_tokens": 40}, 10, 40, False),
        ({}, {"max_length": 50}, 10, 40, False),
        ({}, {"max_length": 5000}, 10, 90, False),
        ({"max_length": 12}, {"max_length": 50}, 10, 2, False),
        ({"max_new_tokens": 90}, {}, 10, 90, False),
        ({"max_length": 100}, {}, 10, 90, False),
    ],
)
def test_length(
    request_fields: dict[str, Any], model_fields: dict[str, Any], prompt_tokens: int, expected: int, is_default: bool
) -> None:
    resolution = decide(request_fields, model_fields, prompt_tokens=prompt_tokens)
    assert resolution.settings is not None
    assert resolution.settings.max_new_tokens == expected
    assert resolution.length_is_default is is_default


@pytest.mark.parametrize(
    ("request_fields", "model_fields", "prompt_tokens", "field"),
    [
        ({"max_new_tokens": 91}, {}, 10, "max_new_tokens"),
        ({"max_length": 101}, {}, 10, "max_length"),
        ({"max_length": 10}, {}, 10, "max_length"),
        ({}, {"max_length": 10}, 10, "max_length"),
        ({}, {}, 100, "prompt"),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, {}, 10, "min_new_tokens"),
        ({"min_new_tokens": 21}, {}, 10, "min_new_tokens"),
    ],
)
def test_violation(
    request_fields: dict[str, Any], model_fields: dict[str, Any], prompt_tokens: int, field: str
) -> None:
    resolution = decide(request_fields, model_fields, prompt_tokens=prompt_tokens)
    assert resolution.settings is None
    assert fields(resolution) == [field]


def test_all_violations_are_reported_at_once() -> None:
    resolution = decide({"temperature": 1.0, "top_p": 0.5, "max_new_tokens": 91, "do_sample": False})
    assert fields(resolution) == ["max_new_tokens", "temperature", "top_p"]


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
def test_a_sampling_field_implies_sampling_and_contradicts_greedy(name: str) -> None:
    for model in ({}, {"do_sample": False}):
        implied = decide({name: 1}, model)
        assert implied.settings is not None
        assert implied.settings.do_sample
    assert fields(decide({name: 1, "do_sample": False})) == [name]


@pytest.mark.parametrize(
    ("request_fields", "model_fields", "do_sample"),
    [
        ({}, {}, False),
        ({}, {"temperature": 0.5}, False),
        ({}, {"do_sample": True}, True),
        ({"do_sample": False}, {"do_sample": True, "temperature": 0.5}, False),
        ({"do_sample": True}, {}, True),
        ({"seed": 3}, {}, False),
    ],
)
def test_do_sample(request_fields: dict[str, Any], model_fields: dict[str, Any], do_sample: bool) -> None:
    settings = decide(request_fields, model_fields).settings
    assert settings is not None
    assert settings.do_sample is do_sample


def test_request_wins_over_model_and_model_over_default() -> None:
    model = {"do_sample": True, "temperature": 0.6, "top_k": 20, "eos_token_ids": (5,), "suppress_tokens": (9,)}
    settings = decide({"top_k": 0, "eos_token_ids": ()}, model).settings
    assert settings is not None
    assert (settings.top_k, settings.temperature, settings.top_p) == (0, 0.6, 1.0)
    assert (settings.eos_token_ids, settings.suppress_tokens) == ((), (9,))


def test_top_k_defaults_to_fifty_within_the_vocabulary() -> None:
    large, small = decide({"do_sample": True}).settings, decide({"do_sample": True}, vocab_size=32).settings
    assert large is not None
    assert small is not None
    assert (large.top_k, small.top_k) == (50, 32)


def test_seed_is_drawn_only_when_unset_and_noted_without_sampling() -> None:
    drawn, given = decide(), decide({"seed": -5})
    assert drawn.settings is not None
    assert given.settings is not None
    assert (drawn.settings.seed, given.settings.seed) == (7, -5)
    assert [note.code for note in given.notes] == ["seed_without_effect"]
    assert decide({"seed": 1, "top_p": 0.9}).notes == ()


@pytest.mark.parametrize(
    ("request_fields", "model_fields"),
    [({"max_new_tokens": 3, "max_length": 30}, {}), ({"max_length": 30}, {"max_new_tokens": 40})],
)
def test_an_ignored_max_length_is_noted(request_fields: dict[str, Any], model_fields: dict[str, Any]) -> None:
    assert [note.code for note in decide(request_fields, model_fields).notes] == ["max_length_ignored"]


LAYERS: list[tuple[str, Any, Any, Any]] = [
    ("min_new_tokens", 2, 1, 0),
    ("min_length", 20, 15, 0),
    ("max_time", 2.0, 1.0, None),
    ("deadline_aware", True, None, False),
    ("include_stop_string", True, None, False),
    ("stop_strings", ("a",), ("b",), ()),
    ("eos_token_ids", (1,), (2,), ()),
    ("repetition_penalty", 1.5, 1.2, 1.0),
    ("encoder_repetition_penalty", 1.5, 1.2, 1.0),
    ("presence_penalty", 1.5, None, 0.0),
    ("frequency_penalty", 1.5, None, 0.0),
    ("no_repeat_ngram_size", 3, 2, 0),
    ("encoder_no_repeat_ngram_size", 3, 2, 0),
    ("bad_words_ids", (), ((1, 2),), ()),
    ("sequence_bias", (((1,), 2.0),), (((2,), 1.0),), ()),
    ("suppress_tokens", (), (4,), ()),
    ("begin_suppress_tokens", (5,), (4,), ()),
    ("allowed_token_ids", (5, 6), (4,), None),
    ("forced_bos_token_id", 5, 4, None),
    ("forced_eos_token_ids", (5,), (4,), ()),
    ("exponential_decay_length_penalty", (3, 1.5), (2, 1.1), None),
    ("remove_invalid_values", False, True, False),
    ("renormalize_logits", False, True, False),
    ("watermark", SYNTH_ID, GREEN_LIST, None),
    ("guidance_scale", 1.0, 1.5, 1.0),
    ("length_penalty", 2.0, 0.5, 1.0),
    ("early_stopping", "never", "true", "false"),
    ("num_beams", 3, 2, 1),
    ("prompt_lookup_num_tokens", 3, 2, 0),
    ("max_matching_ngram_size", 4, 3, 2),
    ("token_healing", False, True, False),
]
"""A field, a request's value, the model's value, and transformers' own."""


@pytest.mark.parametrize(("name", "requested", "default", "neutral"), LAYERS)
def test_every_field_has_its_precedence(name: str, requested: Any, default: Any, neutral: Any) -> None:
    assert getattr(settled({name: requested}, {name: default}), name) == requested
    assert getattr(settled({name: requested}), name) == requested
    assert getattr(settled({}, {name: default}), name) == (neutral if default is None else default)
    assert getattr(settled(), name) == neutral


def test_the_precedence_of_every_field_is_tested() -> None:
    elsewhere = {
        "max_new_tokens", "max_length", "do_sample", "seed", "stop_token_ids", "logit_bias", "num_return_sequences",
        "num_assistant_tokens", *SAMPLING_FIELDS,
    }  # fmt: skip
    assert {name for name, *_ in LAYERS} | elsewhere == set(GenerationOverrides.__struct_fields__)


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
def test_sampling_fields_have_their_precedence(name: str) -> None:
    assert getattr(settled({name: 0.25}, {name: 0.5}), name) == 0.25
    assert getattr(settled({"do_sample": True}, {name: 0.5}), name) == 0.5
    assert getattr(settled({"do_sample": True}), name) == NEUTRAL_SAMPLING[name]


@pytest.mark.parametrize(
    ("request_fields", "model_fields", "more", "refused"),
    [
        ({"num_return_sequences": 2}, {}, {}, ["num_return_sequences"]),
        ({"num_return_sequences": 2, "do_sample": False}, {"do_sample": True}, {}, ["num_return_sequences"]),
        ({"num_return_sequences": 3, "num_beams": 2}, {}, {}, ["num_return_sequences"]),
        ({"num_return_sequences": 3, "num_beams": 2, "do_sample": True}, {}, {}, ["num_return_sequences"]),
        ({"num_return_sequences": 3}, {"num_beams": 2}, {}, ["num_return_sequences"]),
        ({}, {"num_return_sequences": 2}, {}, ["num_return_sequences"]),
        ({"num_beams": 2}, {}, {"is_streaming": True}, ["num_beams"]),
        ({}, {"num_beams": 2}, {"is_streaming": True}, ["num_beams"]),
        ({"num_beams": 2, "guidance_scale": 1.5}, {}, {}, ["guidance_scale"]),
        ({"num_beams": 2}, {"guidance_scale": 1.5}, {}, ["guidance_scale"]),
        ({}, {}, {"negative_prompt_field": "negative_prompt"}, ["negative_prompt"]),
        (
            {"guidance_scale": 1.0},
            {"guidance_scale": 1.5},
            {"negative_prompt_field": "negative_prompt"},
            ["negative_prompt"],
        ),
        (
            {"prompt_lookup_num_tokens": 4, "num_assistant_tokens": 4},
            {},
            {"num_assistant_tokens": 5},
            ["num_assistant_tokens"],
        ),
        *(
            ({name: 4, **together}, {}, {"num_assistant_tokens": 5}, [name])
            for name in ("prompt_lookup_num_tokens", "num_assistant_tokens")
            for together in (
                {"num_beams": 2},
                {"num_return_sequences": 2, "do_sample": True},
                {"guidance_scale": 1.5},
            )
        ),
        ({"token_healing": True}, {}, {"has_text_prompt": False}, ["token_healing"]),
        ({"token_healing": True, "num_beams": 2}, {}, {}, ["token_healing"]),
        ({"allowed_token_ids": (4, 5), "suppress_tokens": (5, 4, 6)}, {}, {}, ["allowed_token_ids.ids"]),
        ({"allowed_token_ids": (4,)}, {"begin_suppress_tokens": (4,)}, {}, ["allowed_token_ids.ids"]),
        ({"forced_bos_token_id": 4, "suppress_tokens": (4, 5)}, {}, {}, ["forced_bos_token_id"]),
        ({"forced_eos_token_ids": (4, 5), "suppress_tokens": (4, 5)}, {}, {}, ["forced_eos_token_id.ids"]),
        ({"suppress_tokens": (4,)}, {"forced_eos_token_ids": (4,)}, {}, ["forced_eos_token_id.ids"]),
    ],
)
def test_conflicting_fields_are_refused_by_name(
    request_fields: dict[str, Any], model_fields: dict[str, Any], more: dict[str, Any], refused: list[str]
) -> None:
    resolution = decide(request_fields, model_fields, **more)
    assert fields(resolution) == refused
    name = "forced_eos_token_ids" if "eos" in refused[0] else refused[0].partition(".")[0]
    is_default = name in model_fields and name not in request_fields
    assert ("the model's default" in resolution.violations[0].rule) is is_default


@pytest.mark.parametrize(
    ("request_fields", "more"),
    [
        ({"num_beams": 2, "guidance_scale": 1.0}, {}),
        ({"num_return_sequences": 2, "do_sample": True}, {"is_streaming": True}),
        ({"num_return_sequences": 2, "temperature": 0.5}, {}),
        ({"num_return_sequences": 2, "num_beams": 2}, {}),
        ({"num_beams": 1}, {"is_streaming": True}),
        ({"guidance_scale": 1.5}, {"negative_prompt_field": "negative_prompt"}),
        ({"token_healing": True}, {}),
        ({"prompt_lookup_num_tokens": 0, "num_beams": 2}, {}),
        ({"forced_eos_token_ids": (4, 5), "suppress_tokens": (4,)}, {}),
    ],
)
def test_what_fits_together_is_taken(request_fields: dict[str, Any], more: dict[str, Any]) -> None:
    decided = settled(request_fields, **more)
    for name, value in request_fields.items():
        assert getattr(decided, name) == value


@pytest.mark.parametrize(
    ("request_fields", "model_fields", "expected"),
    [
        ({}, {}, (0, 5)),
        ({"num_assistant_tokens": 3}, {}, (0, 3)),
        ({"num_assistant_tokens": 0}, {}, (0, 0)),
        ({"prompt_lookup_num_tokens": 3}, {}, (3, 0)),
        ({}, {"prompt_lookup_num_tokens": 3}, (3, 0)),
        ({"num_assistant_tokens": 4}, {"prompt_lookup_num_tokens": 3}, (0, 4)),
        ({"num_beams": 2}, {"prompt_lookup_num_tokens": 3}, (0, 0)),
        ({"num_return_sequences": 2, "do_sample": True}, {}, (0, 0)),
        ({"guidance_scale": 2.0}, {}, (0, 0)),
    ],
)
def test_a_default_that_only_makes_things_faster_gives_way(
    request_fields: dict[str, Any], model_fields: dict[str, Any], expected: tuple[int, int]
) -> None:
    decided = settled(request_fields, model_fields, num_assistant_tokens=5)
    assert (decided.prompt_lookup_num_tokens, decided.num_assistant_tokens) == expected


def test_a_default_token_healing_leaves_token_ids_alone() -> None:
    assert settled({}, {"token_healing": True}, has_text_prompt=False).token_healing is False


def test_a_default_token_healing_leaves_beams_alone() -> None:
    assert settled({"num_beams": 2}, {"token_healing": True}).token_healing is False


@pytest.mark.parametrize(
    ("request_fields", "model_fields", "expected"),
    [
        ({"min_length": 20}, {}, (0, 20)),
        ({}, {"min_length": 20}, (0, 20)),
        ({"min_length": 20, "min_new_tokens": 3}, {}, (3, 0)),
        ({"min_length": 20, "min_new_tokens": 0}, {}, (0, 0)),
        ({"min_length": 20}, {"min_new_tokens": 3}, (3, 0)),
        ({"min_new_tokens": 3}, {"min_length": 20}, (3, 0)),
    ],
)
def test_min_new_tokens_wins_over_min_length(
    request_fields: dict[str, Any], model_fields: dict[str, Any], expected: tuple[int, int]
) -> None:
    decided = settled(request_fields, model_fields)
    assert (decided.min_new_tokens, decided.min_length) == expected


NOTES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("min_length_ignored", {"min_length": 20, "min_new_tokens": 3}, {}, {}),
    ("min_length_ignored", {"min_length": 20}, {"min_new_tokens": 3}, {}),
    ("min_length_out_of_reach", {"min_length": 31}, {}, {}),
    ("sampling_without_effect", {}, {"temperature": 0.5}, {}),
    ("sampling_without_effect", {}, {"do_sample": False, "top_p": 0.5, "top_h": 0.5}, {}),
    ("sampling_without_effect", {"do_sample": True, "top_k": 1}, {}, {}),
    ("sampling_without_effect", {"temperature": 2.0}, {"top_k": 1}, {}),
    ("seed_without_effect", {"seed": 5}, {}, {}),
    ("beams_without_effect", {"length_penalty": 2.0}, {}, {}),
    ("beams_without_effect", {"early_stopping": "true", "num_beams": 1}, {}, {}),
    ("deadline_aware_without_effect", {"deadline_aware": True}, {}, {"has_deadline": False}),
    ("ngram_size_without_effect", {"max_matching_ngram_size": 3}, {}, {}),
    ("ngram_size_without_effect", {"max_matching_ngram_size": 3, "num_beams": 2}, {"prompt_lookup_num_tokens": 4}, {}),
    ("renormalize_without_effect", {"renormalize_logits": True}, {}, {}),
    ("renormalize_without_effect", {"renormalize_logits": True, "do_sample": True}, {}, {}),
    ("include_stop_string_without_effect", {"include_stop_string": True}, {}, {}),
]

QUIET: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {}),
    ({"min_length": 30}, {}, {}),
    ({"min_length": 0, "min_new_tokens": 3}, {}, {}),
    ({"min_new_tokens": 3}, {"min_length": 20}, {}),
    ({"do_sample": False}, {"temperature": 0.5}, {}),
    ({"do_sample": True}, {"temperature": 0.5}, {}),
    ({"top_k": 2}, {}, {}),
    ({}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}, {}),
    ({"seed": 5, "do_sample": True}, {}, {}),
    ({"length_penalty": 2.0, "early_stopping": "never", "num_beams": 2}, {}, {}),
    ({"length_penalty": 1.0, "early_stopping": "false"}, {}, {}),
    ({}, {"length_penalty": 2.0}, {}),
    ({"deadline_aware": True}, {}, {"has_deadline": True}),
    ({"max_matching_ngram_size": 3, "prompt_lookup_num_tokens": 4}, {}, {}),
    ({"max_matching_ngram_size": 3}, {"prompt_lookup_num_tokens": 4}, {}),
    # The number that is in force anyway, as the settings of an answer are sent back.
    ({"max_matching_ngram_size": 2}, {}, {}),
    ({}, {"max_matching_ngram_size": 3, "renormalize_logits": True, "include_stop_string": True}, {}),
    ({"renormalize_logits": True, "num_beams": 2}, {}, {}),
    ({"renormalize_logits": False, "include_stop_string": False}, {}, {}),
    ({"include_stop_string": True, "stop_strings": ("x",)}, {}, {}),
    ({"include_stop_string": True}, {"stop_strings": ("x",)}, {}),
]


@pytest.mark.parametrize(("code", "request_fields", "model_fields", "more"), NOTES)
def test_settings_without_effect_are_noted(
    code: str, request_fields: dict[str, Any], model_fields: dict[str, Any], more: dict[str, Any]
) -> None:
    assert codes(decide(request_fields, model_fields, **more)) == [code]


@pytest.mark.parametrize(("request_fields", "model_fields", "more"), QUIET)
def test_settings_with_effect_are_not(
    request_fields: dict[str, Any], model_fields: dict[str, Any], more: dict[str, Any]
) -> None:
    assert codes(decide(request_fields, model_fields, **more)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1),
        ({"num_beams": 4, "num_return_sequences": 2}, 4),
        ({"num_return_sequences": 3}, 3),
        ({"num_return_sequences": 3, "guidance_scale": 1.5}, 6),
    ],
)
def test_rows_of_a_request(changes: dict[str, Any], expected: int) -> None:
    assert GenerationSettings(max_new_tokens=1, **changes).num_rows == expected
