"""Want of memory is known as such wherever it is met, also on the CPU, where torch has no error of its own for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_fakes import expected_answer

from tests import tiny_models
from tokenwire.errors import ModelLoadError
from tokenwire.model.draft import LoadedDraft, make_draft_runner
from tokenwire.model.gate import open_paged_path
from tokenwire.model.kv_cache import LayerShape
from tokenwire.model.layout import arrange_weights_inplace
from tokenwire.model.memory import is_out_of_memory

IMPOSSIBLE = 1 << 60
"""Bytes that no machine has."""


def error_of(operation: Any) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  (which it is is what is tested)
        operation()
    return raised.value


@pytest.mark.parametrize(
    "operation",
    [
        lambda: torch.empty(IMPOSSIBLE, dtype=torch.uint8),
        lambda: torch.empty(1 << 20, dtype=torch.uint8).repeat(1 << 40),
        lambda: torch.ones(1 << 24, 1) @ torch.ones(1, 1 << 24),
        lambda: np.zeros(IMPOSSIBLE, np.uint8),
        lambda: bytearray(IMPOSSIBLE),
    ],
    ids=["torch.empty", "repeat", "product", "numpy", "python"],
)
def test_what_cannot_be_allocated_is_out_of_memory(operation: Any) -> None:
    assert is_out_of_memory(error_of(operation))


def test_so_are_the_errors_of_cuda() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))


@pytest.mark.parametrize(
    "operation",
    [
        lambda: torch.ones(2) @ torch.ones(3),
        lambda: torch.ones(2).view(3),
        lambda: np.ones(2).reshape(3),
        lambda: 1 / 0,
    ],
    ids=["product", "view", "numpy", "python"],
)
def test_other_errors_are_not(operation: Any) -> None:
    assert not is_out_of_memory(error_of(operation))


def test_an_engine_on_a_cpu_without_memory_computes_less_at_once() -> None:
    """In a process of its own, whose address space is limited: torch's own allocator fails."""
    prompts = [[number] * 9 for number in range(1, 5)]
    script = Path(__file__).parent / "little_memory.py"
    ran = subprocess.run(
        [sys.executable, str(script), json.dumps(prompts)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["failed_passes"]
    assert set(result["failed_passes"]) == {"RuntimeError"}
    assert "engine: out of memory in a pass of" in ran.stderr
    assert result["failures"] == []
    assert result["tokens"] == [expected_answer(prompt, 6) for prompt in prompts]
    assert result["held"] == 0


class WithoutMemory:
    """In place of a model's forward: asks torch for what no machine has."""

    def __call__(self, *_: Any, **__: Any) -> None:
        torch.empty(IMPOSSIBLE, dtype=torch.uint8)


def test_the_gate_does_not_take_want_of_memory_for_a_reason_to_pad() -> None:
    model = tiny_models.build_model("llama")
    model.forward = WithoutMemory()
    assert is_out_of_memory(error_of(lambda: open_paged_path(model, tiny_models.MODEL_VOCAB_SIZE, quantization="none")))


def test_arranging_weights_does_not_take_it_for_a_model_that_cannot_be_packed() -> None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        pytest.skip("torch is built without oneDNN")
    model = tiny_models.build_model("llama")
    model.forward = WithoutMemory()
    assert is_out_of_memory(error_of(lambda: arrange_weights_inplace(model, lambda _: None)))


def test_a_draft_model_whose_cache_does_not_fit_is_said_to_be_that() -> None:
    shape = LayerShape(1 << 20, 1 << 10, 1 << 10, torch.float32, torch.device("cpu"))
    loaded: Any = type("Loaded", (), {"path": "draft", "model": None})()
    target: Any = type("Target", (), {"supports_drafts": True, "num_blocks": 1 << 20, "block_size": 16})()
    with pytest.raises(ModelLoadError, match="out of memory while the draft model's KV cache"):
        make_draft_runner(LoadedDraft(loaded, [shape]), target)
