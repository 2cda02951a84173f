"""Every runner gives transformers' own greedy tokens and logits: alone, batched, chunked, joined and left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.runner_loop import Sequence, drive, generate, load_runner, prompts
from tests.tiny_models import PADDED_FAMILIES, PAGED_FAMILIES

FAMILIES = PAGED_FAMILIES + PADDED_FAMILIES
NEW_TOKENS = 12
# Longer and shorter than the sliding window of 8, on and off the block size of 4, one token, several blocks.
LENGTHS = [1, 4, 5, 8, 13, 17, 30, 41]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[str, Any, list[list[int]], Any]:
    """Family, runner, prompts and the expected continuations of one tiny model."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint(request.param)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = prompts(LENGTHS)
    expected = [generate(reference, prompt, NEW_TOKENS) for prompt in texts]
    with torch.no_grad():
        plain = [
            reference(input_ids=torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].numpy()
            for prompt, tokens in zip(texts, expected, strict=True)
        ]
    return request.param, load_runner(folder)[1], texts, (expected, plain)


def check(sequences: list[Sequence], expected: Any) -> None:
    tokens, plain = expected
    assert [sequence.tokens for sequence in sequences] == [
        row[: s.max_new_tokens] for row, s in zip(tokens, sequences, strict=True)
    ]
    for sequence, wanted in zip(sequences, plain, strict=True):
        np.testing.assert_allclose(np.stack(sequence.logits), wanted[: sequence.max_new_tokens], atol=1e-4)


def test_forward_path(case: tuple[str, Any, Any, Any]) -> None:
    family, runner, _, _ = case
    assert runner.forward_path == ("paged" if family in PAGED_FAMILIES else "padded")


def test_alone(case: tuple[str, Any, list[list[int]], Any]) -> None:
    _, runner, texts, expected = case
    sequences = [Sequence(number, prompt, NEW_TOKENS) for number, prompt in enumerate(texts)]
    for sequence in sequences:
        drive(runner, [sequence])
    check(sequences, expected)


@pytest.mark.parametrize("chunk", [1, 3, 16, None])
def test_batch_of_mixed_lengths(case: tuple[str, Any, list[list[int]], Any], chunk: int | None) -> None:
    _, runner, texts, expected = case
    sequences = [Sequence(number, prompt, NEW_TOKENS) for number, prompt in enumerate(texts)]
    drive(runner, sequences, chunk=chunk)
    check(sequences, expected)


@pytest.mark.parametrize("chunk", [5, None])
def test_join_and_leave_at_different_times(case: tuple[str, Any, list[list[int]], Any], chunk: int | None) -> None:
    _, runner, texts, expected = case
    sequences = [
        Sequence(number, prompt, max_new_tokens=NEW_TOKENS - number, starts_at_step=(number * 3) % 7)
        for number, prompt in enumerate(texts)
    ]
    drive(runner, sequences, chunk=chunk)
    check(sequences, expected)


def test_recompute_after_preemption(case: tuple[str, Any, list[list[int]], Any]) -> None:
    """A preempted sequence loses its cache; its prompt and answer so far are computed again."""
    _, runner, texts, expected = case
    sequences = [Sequence(number, prompt, 5) for number, prompt in enumerate(texts)]
    drive(runner, sequences, chunk=16)
    for sequence in sequences:
        sequence.max_new_tokens = NEW_TOKENS
        sequence.prompt, sequence.tokens, before = sequence.prompt + sequence.tokens, [], sequence.tokens
        sequence.computed, sequence.blocks, sequence.max_new_tokens = 0, [], NEW_TOKENS - len(before)
    drive(runner, sequences, chunk=16)
    tokens, _ = expected
    assert [sequence.tokens for sequence in sequences] == [row[5:] for row in tokens]
