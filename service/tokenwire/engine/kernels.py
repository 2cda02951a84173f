"""Brings the extension's kernels to the model layer, which does not know the extension."""

from functools import cache
from typing import Any

from tokenwire._native import Linear, Linear4Bit, ThreadPool
from tokenwire.model.kernels import Kernels


def native_kernels(threads: int) -> Kernels:
    """Kernels that share a pool of ``threads`` threads, the caller's included.

    The pool starts with the first kernel: a model that has none, unquantized or on a GPU, leaves no threads behind.
    """

    @cache
    def pool() -> ThreadPool:
        return ThreadPool(threads=threads)

    def linear4bit(*args: Any, **options: Any) -> Linear4Bit:
        return Linear4Bit(*args, pool=pool(), **options)

    def linear(*args: Any, **options: Any) -> Linear:
        return Linear(*args, pool=pool(), **options)

    return Kernels(linear4bit=linear4bit, linear=linear)
