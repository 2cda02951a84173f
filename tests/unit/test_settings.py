"""Precedence, lengths and violations of generation settings, as transformers' generate decides them."""

from typing import Any

import pytest

from tokenwire.engine.settings import SAMPLING_FIELDS, GenerationOverrides, Resolution, resolve

CONTEXT = 100
VOCAB = 1000


def decide(
    request: dict[str, Any] | None = None, model: dict[str, Any] | None = None, *, prompt_tokens: int = 10, **more: Any
) -> Resolution:
    arguments = {"context_length": CONTEXT, "vocab_size": VOCAB, "draw_seed": lambda: 7} | more
    return resolve(
        GenerationOverrides(**(request or {})),
        GenerationOverrides(**(model or {})),
        prompt_tokens=prompt_tokens,
        **arguments,
    )


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
