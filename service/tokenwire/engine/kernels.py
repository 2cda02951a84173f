"""Brings the extension's kernels to the model layer, which does not know the extension."""

from functools import partial

from tokenwire._native import Linear, Linear4Bit, ThreadPool
from tokenwire.model.kernels import Kernels


def native_kernels(threads: int) -> Kernels:
    """Kernels that share a pool of ``threads`` threads, the caller's included."""
    pool = ThreadPool(threads=threads)
    return Kernels(linear4bit=partial(Linear4Bit, pool=pool), linear=partial(Linear, pool=pool))
