"""Sliding windows on the padded path: where a class's masks know nothing of its window, the context ends there."""

from dataclasses import replace
from typing import Any

import pytest

from tests import tiny_architectures
from tests.parity.architecture_outcomes import BLOCK_SIZE, NEW_TOKENS, _loaded, reference
from tests.parity.runner_loop import Sequence, drive

pytestmark = pytest.mark.filterwarnings("ignore")

WINDOW = 16
"""Twice what the tiny models have by default, so that a prompt and an answer fit into it."""


def runner_of(model: Any, context_length: int = tiny_architectures.CONTEXT_LENGTH) -> tuple[Any, list[str]]:
    from tokenwire.config import EngineConfig
    from tokenwire.model.runner import make_runner

    lines: list[str] = []
    settings = EngineConfig(block_size=BLOCK_SIZE, threads=1, kv_cache_memory="2MiB", forward_path="padded")
    return make_runner(replace(_loaded(model), context_length=context_length), settings, lines.append), lines


@pytest.fixture
def moshi(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(tiny_architectures.FAMILIES, "moshi", {"sliding_window": WINDOW})
    return tiny_architectures.build("moshi")


def test_a_window_that_only_the_cache_knows_bounds_the_context(moshi: Any) -> None:
    runner, lines = runner_of(moshi)
    assert runner.context_length == WINDOW
    assert f"its attention looks behind the {WINDOW} tokens" in runner.forward_path_reason
    assert any(
        line.startswith(f"context lowered from {tiny_architectures.CONTEXT_LENGTH} to {WINDOW}") for line in lines
    )
    # The longest that is served is what transformers gives.
    prompt = list(range(5, 5 + WINDOW - NEW_TOKENS))
    tokens, _ = reference(moshi, prompt)
    row = Sequence(0, prompt, NEW_TOKENS)
    drive(runner, [row], chunk=6)
    assert row.tokens == tokens


@pytest.mark.parametrize(("context_length", "expected"), [(WINDOW, WINDOW), (WINDOW + 1, WINDOW), (WINDOW + 2, WINDOW)])
def test_at_the_border(moshi: Any, context_length: int, expected: int) -> None:
    runner, _ = runner_of(moshi, context_length)
    assert runner.context_length == expected
    assert ("looks behind" in runner.forward_path_reason) == (context_length > WINDOW)


def test_an_error_behind_the_window_bounds_the_context_and_is_told(moshi: Any) -> None:
    def refuse(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        past = named.get("past_key_values")
        if past is not None and past.get_seq_length() > WINDOW:
            raise ValueError("a mask of 16 and keys of 17\nand pages more")

    moshi.register_forward_pre_hook(refuse, with_kwargs=True)
    runner, lines = runner_of(moshi)
    assert runner.context_length == WINDOW
    told = "its attention behind a window of 16 tokens raised ValueError: a mask of 16 and keys of 17"
    assert runner.forward_path_reason.endswith(told)
    assert f"context lowered from {tiny_architectures.CONTEXT_LENGTH} to {WINDOW} tokens: {told}" in lines
    assert not any("looks behind" in line for line in lines)


@pytest.mark.parametrize("check", ["_error", "_change_behind"])
def test_want_of_memory_in_a_check_is_no_trait_of_the_model(
    moshi: Any, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    """torch's own words on the CPU, which come as a plain RuntimeError."""
    import torch

    from tokenwire.errors import ModelLoadError
    from tokenwire.model import padded_check

    def allocate(*_: object, **__: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(padded_check, check, allocate)
    with pytest.raises(ModelLoadError, match="out of memory while the KV cache was set up"):
        runner_of(moshi)


@pytest.mark.parametrize("model_type", ["doge", "llama4_text", "gemma3_text", "mistral"])
def test_a_window_that_the_masks_know_bounds_nothing(model_type: str) -> None:
    runner, _ = runner_of(tiny_architectures.build(model_type))
    assert runner.context_length == tiny_architectures.CONTEXT_LENGTH
    assert "looks behind" not in runner.forward_path_reason
