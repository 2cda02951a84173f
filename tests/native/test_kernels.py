"""The 4-bit linear layer at the border: shapes, layouts and threads. What it computes is tested in Rust and parity."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tokenwire._native import InvalidParametersError, Linear4Bit, ThreadPool, kernel_levels

IN, OUT = 128, 40


def arrays() -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(0)
    packed = generator.integers(0, 256, IN * OUT // 2).astype(np.uint8)
    return packed, np.ones(IN * OUT // 64, np.float32), np.linspace(-1, 1, 16, dtype=np.float32)


def make(pool: ThreadPool | None = None, **changes: Any) -> Linear4Bit:
    settings: dict[str, Any] = {"block_size": 64, "in_features": IN, "out_features": OUT, "bias": None} | changes
    return Linear4Bit(*arrays(), pool=pool or ThreadPool(threads=2), **settings)


def test_it_says_what_it_is() -> None:
    layer = make()
    assert (layer.in_features, layer.out_features, layer.level) == (IN, OUT, kernel_levels()[-1])
    assert kernel_levels()[0] == make(level="portable").level == "portable"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_features": 96}, "in_features must be a positive multiple of 64, got 96"),
        ({"in_features": 64}, "packed must have 1280 elements, got 2560"),
        ({"block_size": 32}, "block_size must be a positive multiple of 64, got 32"),
        ({"bias": np.zeros(3, np.float32)}, "bias must have 40 elements, got 3"),
        ({"bias": np.zeros(80, np.float32)[::2]}, "bias must be C-contiguous"),
        ({"level": "sse"}, "level must be one of portable, avx2, avx512, got sse"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("threads", [0, -1, -(2**70)])
def test_a_pool_has_at_least_one_thread(threads: int) -> None:
    with pytest.raises(InvalidParametersError, match="threads: must be at least 1"):
        ThreadPool(threads=threads)


def array(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (array(2, IN), array(3, OUT), "not \\[rows, 128\\] and \\[rows, 40\\]"),
        (array(2, IN + 1), array(2, OUT), "not \\[rows, 128\\]"),
        (array(2, IN), array(2, OUT + 1), "not \\[rows, 128\\]"),
        (array(2, 2 * IN)[:, ::2], array(2, OUT), "x must be C-contiguous"),
        (array(2, IN), array(OUT, 2).T, "out must be C-contiguous"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Any, out: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().forward(x, out)


def test_the_output_is_not_the_input() -> None:
    """One memory, borrowed for reading and for writing, is refused."""
    memory = array(IN + OUT)
    with pytest.raises((TypeError, RuntimeError), match="borrow"):
        make().forward(memory[None, :IN], memory[None, IN - 1 : IN - 1 + OUT])


def test_layers_of_one_pool_may_be_used_from_many_threads() -> None:
    pool = ThreadPool(threads=3)
    layer = make(pool)
    generator = np.random.default_rng(1)
    inputs = [generator.standard_normal((rows, IN)).astype(np.float32) for rows in range(1, 33)]

    def forward(x: Any) -> Any:
        out = np.empty((len(x), OUT), np.float32)
        layer.forward(x, out)
        return out

    expected = [forward(x) for x in inputs]
    with ThreadPoolExecutor(4) as executor:
        for _ in range(20):
            for got, wanted in zip(executor.map(forward, inputs), expected, strict=True):
                assert (got == wanted).all()
