"""Memory that oneDNN keeps for kernels is bounded, whatever number of tokens passes have."""

import os
import subprocess
import sys

import pytest

from tokenwire.model.onednn import keep_kernel_caches_small

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_both_caches_are_bounded_and_what_the_operator_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    keep_kernel_caches_small()
    assert {os.environ.pop(name) for name in NAMES} == {"256"}
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.setenv(NAMES[1], "9")
    keep_kernel_caches_small()
    assert [os.environ[name] for name in NAMES] == ["7", "9"]


PROGRAM = """
from tokenwire.model.onednn import keep_kernel_caches_small
keep_kernel_caches_small()
import torch
from tokenwire.engine.resident import resident_bytes
from tokenwire.model.layout import PackedLinear
torch.set_num_threads(1)
if torch.backends.mkldnn.is_available():
    layers = [PackedLinear(torch.nn.Linear(64, size)) for size in range(64, 128, 8)]
    sizes = []
    with torch.inference_mode():
        for begin, end in ((1, 100), (100, 300)):
            for number in range(begin, end):
                hidden = torch.zeros(number, 64)
                for layer in layers:
                    layer(hidden)
            sizes.append(resident_bytes())
    print(sizes[1] - sizes[0])
"""


def test_hundreds_of_shapes_take_no_more_memory_than_the_caches_hold() -> None:
    """After 800 products of different shapes, 1,600 more: 11 MB here, and 151 MB with the default of 1,024 kernels."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert int(ended.stdout or 0) < 64 * 2**20
