"""Layers on kernels of our own: equal to bitsandbytes', and only where they are."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.parity.runner_loop import load_runner

SHAPES = [(64, 1), (64, 33), (192, 75), (576, 192)]
"""in_features, out_features."""


def quantized(
    in_features: int,
    out_features: int,
    *,
    quant_type: str = "nf4",
    double: bool = False,
    bias: bool = True,
    **other: Any,
) -> Any:
    """A layer of bitsandbytes with random weights, a block of zeros among them."""
    import torch
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(in_features + out_features)
    settings = {"compute_dtype": torch.float32, "compress_statistics": double, "quant_type": quant_type} | other
    layer = Linear4bit(in_features, out_features, bias, **settings)
    layer.weight.data[0, :64] = 0
    return layer.to("cpu")


def model_of(*layers: Any) -> Any:
    """A model with these layers, as far as the replacement looks at it."""
    import torch

    model = torch.nn.Sequential(*layers)
    model.config = SimpleNamespace(quantization_config=SimpleNamespace(load_in_4bit=True))
    return model


def make_kernel(*arrays: Any, level: str | None = None, **settings: Any) -> Any:
    from tokenwire._native import Linear4Bit, ThreadPool

    return Linear4Bit(*arrays, pool=ThreadPool(threads=2), level=level, **settings)


def replaced(layer: Any, make: Any = make_kernel) -> tuple[Any, Any]:
    """What stands in the layer's place afterwards, and the outcome."""
    from tokenwire.model.linear4bit import use_kernels_inplace

    model = model_of(layer)
    outcome = use_kernels_inplace(model, make)
    return model[0], outcome


def levels() -> list[str]:
    from tokenwire._native import kernel_levels

    return kernel_levels()


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_layer_computes_what_bitsandbytes_computes(quant_type: str, double: bool, bias: bool, level: str) -> None:
    import torch

    for in_features, out_features in SHAPES:
        layer = quantized(in_features, out_features, quant_type=quant_type, double=double, bias=bias)
        inputs = [torch.randn(*shape, in_features) for shape in ((1,), (7,), (1, 70), (2, 3, 4), (0,))]
        with torch.inference_mode():
            expected = [layer(each) for each in inputs]
        new, outcome = replaced(layer, partial(make_kernel, level=level))
        assert outcome.levels == [level]
        for each, wanted in zip(inputs, expected, strict=True):
            got = new(each)
            assert got.shape == wanted.shape
            assert got.dtype == wanted.dtype
            assert torch.linalg.vector_norm(got - wanted) <= 1e-6 * torch.linalg.vector_norm(wanted)


def test_inputs_of_other_types_and_layouts() -> None:
    """As bitsandbytes: the arithmetic is float32, the result has the type of the input."""
    import torch

    layer = quantized(128, 40)
    inputs = [torch.randn(3, 128).to(torch.bfloat16), torch.randn(128, 5).t(), torch.randn(4, 256)[:, ::2]]
    with torch.inference_mode():
        expected = [layer(each) for each in inputs]
    new, _ = replaced(layer)
    for each, wanted in zip(inputs, expected, strict=True):
        got = new(each)
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=1e-2 if each.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda torch: quantized(96, 64), "in_features must be a positive multiple of 64, got 96"),
        (lambda torch: quantized(64, 64, compute_dtype=torch.bfloat16), "it computes in bfloat16"),
        (lambda torch: hooked(quantized(64, 64)), "it has hooks"),
        (lambda torch: type("Adapter", (type(quantized(64, 64)),), {})(64, 64), "it is a Adapter"),
    ],
    ids=["width", "dtype", "hooks", "subclass"],
)
def test_what_the_kernels_cannot_do_stays(layer: Any, reason: str) -> None:
    import torch

    old = layer(torch)
    new, outcome = replaced(old)
    assert new is old
    assert outcome.kept == [f"0: {reason}"]
    assert str(outcome) == f"0 of 1 4-bit linear layers on kernels, the others with bitsandbytes (0: {reason})"


def hooked(layer: Any) -> Any:
    layer.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize("wrong", [1.0001, float("nan"), 0.0])
def test_a_kernel_that_computes_something_else_is_not_used(wrong: float) -> None:
    class Liar:
        level = "liar"

        def __init__(self, *arrays: Any, **settings: Any) -> None:
            self.honest = make_kernel(*arrays, **settings)
            self.in_features, self.out_features = self.honest.in_features, self.honest.out_features

        def forward(self, x: np.ndarray, out: np.ndarray) -> None:
            self.honest.forward(x, out)
            out *= wrong

    old = quantized(64, 64)
    new, outcome = replaced(old, Liar)
    assert new is old
    assert "its kernel is off by" in outcome.kept[0]


def test_the_old_weights_go_at_once() -> None:
    gc.disable()
    try:
        layer = quantized(64, 64)
        layer.weight.module = layer  # as transformers leaves it
        weight = weakref.ref(layer.weight)
        model = model_of(layer)
        del layer
        from tokenwire.model.linear4bit import use_kernels_inplace

        use_kernels_inplace(model, make_kernel)
        assert weight() is None
    finally:
        gc.enable()


def test_a_shared_layer_stays_shared() -> None:
    from tokenwire.model.kernels import KernelLinear
    from tokenwire.model.linear4bit import use_kernels_inplace
    from tokenwire.model.quantization import parameter_count

    layer = quantized(64, 32)
    model = model_of(layer, quantized(64, 64), layer)
    outcome = use_kernels_inplace(model, make_kernel)
    assert isinstance(model[0], KernelLinear)
    assert model[0] is model[2]
    assert len(outcome.levels) == 2
    assert parameter_count(model) == 64 * 32 + 32 + 64 * 64 + 64


def test_a_whole_model(checkpoint: Callable[[str], Path]) -> None:
    from bitsandbytes.nn import Linear4bit

    from tokenwire.model.kernels import KernelLinear
    from tokenwire.model.quantization import describe, parameter_count

    loaded, runner = load_runner(checkpoint("llama"), quantize="nf4")
    modules = list(loaded.model.modules())
    assert not any(isinstance(module, Linear4bit) for module in modules)
    assert sum(isinstance(module, KernelLinear) for module in modules) == 22, "21 and the output head"
    assert runner.forward_path_reason == f"self-test passed; 21 of 21 4-bit linear layers on {levels()[-1]} kernels"
    assert describe(loaded.model) == "nf4"
    assert parameter_count(loaded.model) == loaded.parameter_count
