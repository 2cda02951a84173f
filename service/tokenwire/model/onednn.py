"""How much memory oneDNN, which multiplies by the packed weights of `layout`, may keep for kernels."""

import os

_CACHED_KERNELS = "256"
"""Kernels that oneDNN keeps, and as many prepared calls of torch's around them; the default is 1024 of each.

Each shape of a product has its own, of some 250 KiB, and passes have as many shapes as numbers of tokens. Measured with
a model of 3 layers under mixed load on two Zen 3 cores: after minutes 1,430 MiB resident and growing with the default,
812 MiB with 64, 941 MiB with 256. A pass needs five or six; 256 keep those of some fifty numbers of tokens.
"""


def keep_kernel_caches_small() -> None:
    """Call it before torch is first imported. What the operator has set stays."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _CACHED_KERNELS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", _CACHED_KERNELS)
