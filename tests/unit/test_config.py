"""Settings: sizes, combinations, and the frames that carry them to the engine."""

import dataclasses
from typing import Any

import msgspec
import pytest
from tokenwire.config import EngineConfig, ModelConfig, ServiceConfig, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1048576", 2**20),
        ("7b", 7),
        ("512MiB", 512 * 2**20),
        ("512 mib", 512 * 2**20),
        (" 2GiB ", 2**31),
        ("1.5GiB", 3 * 2**29),
        ("1TiB", 2**40),
        ("3KiB", 3072),
        ("3kB", 3000),
        ("3MB", 3 * 10**6),
        ("2GB", 2 * 10**9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert EngineConfig(kv_cache_memory=text).kv_cache_bytes == size


@pytest.mark.parametrize(
    "text", ["", "0", "0GiB", "-1GiB", "1 G", "1PiB", "GiB", "1,5GiB", "1e9", "inf", "٣GiB", "0.1b"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="Must be a positive size such as 512MiB or 2GiB"):
        parse_size(text)


def test_an_unset_size_is_none() -> None:
    assert EngineConfig().kv_cache_bytes is None


SENSELESS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"double_quant": True}, {}, "double_quant needs quantize nf4 or fp4, got none"),
    ({"double_quant": True, "quantize": "int8"}, {}, "double_quant needs quantize nf4 or fp4, got int8"),
    ({"compute_dtype": "float16"}, {}, "compute_dtype needs quantize nf4 or fp4, got none"),
    ({"skip_modules": ("lm_head",)}, {}, "skip_modules needs quantize nf4, fp4 or int8, got none"),
    ({"device": "cpu", "device_map": "auto"}, {}, "device cpu and device_map auto exclude each other"),
    ({}, {"max_running": 9, "max_step_tokens": 8}, "max_step_tokens 8 must be at least max_running 9"),
]


@pytest.mark.parametrize(("model", "engine", "message"), SENSELESS)
def test_combinations_that_cannot_be_meant(model: dict[str, Any], engine: dict[str, Any], message: str) -> None:
    config = ServiceConfig(model=ModelConfig(model="x", **model), engine=EngineConfig(**engine))
    assert config.problems() == [message]


def test_every_bad_combination_is_reported_at_once() -> None:
    model = ModelConfig(model="x", double_quant=True, skip_modules=("a",))
    assert len(ServiceConfig(model=model).problems()) == 2


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"quantize": "nf4", "double_quant": True, "compute_dtype": "bfloat16", "skip_modules": ("lm_head",)},
        {"quantize": "int8", "skip_modules": ("lm_head",)},
        {"device_map": "balanced"},
    ],
)
def test_combinations_that_make_sense(model: dict[str, Any]) -> None:
    assert ServiceConfig(model=ModelConfig(model="x", **model)).problems() == []


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().max_running = 3  # type: ignore[misc]


def test_settings_survive_the_way_to_the_engine() -> None:
    model = ModelConfig(model="x", quantize="nf4", skip_modules=("a", "b"))
    engine = EngineConfig(kv_cache_memory="1GiB", threads=2)
    for value in (model, engine):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value
