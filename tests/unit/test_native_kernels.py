"""The pool of the kernels: one for all of them, and none where there is no kernel."""

from typing import Any

import numpy as np
import pytest

from tokenwire.engine import kernels


def test_the_threads_start_with_the_first_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(*, threads: int) -> Any:
        made.append(threads)
        return pool(threads=threads)

    pool = kernels.ThreadPool
    monkeypatch.setattr(kernels, "ThreadPool", make)
    native = kernels.native_kernels(3)
    assert made == []
    weight = np.ones((4, 64), dtype=np.float32)
    first, second = native.linear(weight, bias=None), native.linear(weight, bias=np.ones(4, dtype=np.float32))
    assert made == [3]
    out = np.empty((1, 4), dtype=np.float32)
    for layer, expected in ((first, 64.0), (second, 65.0)):
        layer.forward(np.ones((1, 64), dtype=np.float32), out)
        assert (out == expected).all()
