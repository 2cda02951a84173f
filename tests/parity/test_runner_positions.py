"""Logits at several tokens of a row, and rows that go back behind refused tokens, against one plain pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.parity.runner_loop import load_runner, prompts
from tests.tiny_models import PADDED_FAMILIES, PAGED_FAMILIES

# Chunks of one token and of several, that end on and off the block size of 4 and cross the sliding window of 8.
CHUNKS = [1, 6, 5, 1, 9, 2, 13]


@pytest.fixture(scope="module", params=PAGED_FAMILIES + PADDED_FAMILIES)
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[str, Any, list[int], Any]:
    """Family, runner, a text of the chunks' length, and its logits ``[T, V]``."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint(request.param)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (text,) = prompts([sum(CHUNKS)])
    with torch.no_grad():
        plain = reference(input_ids=torch.tensor([text])).logits[0].numpy()
    return request.param, load_runner(folder)[1], text, plain


def forward(runner: Any, rows: list[tuple[int, list[int], int, int]]) -> NDArray[np.float32]:
    """One pass over rows of (number, tokens, tokens computed before, logits wanted); a row has 20 blocks of its own."""
    from tokenwire.model.batch import ForwardBatch

    batch = ForwardBatch(
        sequence_ids=[number for number, *_ in rows],
        token_ids=[tokens for _, tokens, *_ in rows],
        num_computed_tokens=[computed for _, _, computed, _ in rows],
        # Every second block, backwards: neighbours in a sequence are not neighbours in the cache.
        block_tables=[list(range(40 * number + 38, 40 * number - 2, -2)) for number, *_ in rows],
        num_logits=[wanted for *_, wanted in rows],
    )
    logits: NDArray[np.float32] = runner.forward(batch)
    assert logits.shape == (sum(batch.num_logits), runner.vocab_size)
    assert logits.flags.c_contiguous
    return logits.copy()


@pytest.mark.parametrize("wanted", ["all", "half", "none but the last"])
def test_a_chunk_gives_as_many_as_are_asked_for(case: tuple[str, Any, list[int], Any], wanted: str) -> None:
    _, runner, text, plain = case
    computed = 0
    for chunk in CHUNKS:
        stop = computed + chunk
        num_logits = {"all": chunk, "half": chunk // 2, "none but the last": int(stop == len(text))}[wanted]
        got = forward(runner, [(0, text[computed:stop], computed, num_logits)])
        np.testing.assert_allclose(got, plain[stop - num_logits : stop], atol=1e-4)
        computed = stop
    runner.release([0])


def test_rows_of_a_batch_ask_for_different_numbers(case: tuple[str, Any, list[int], Any]) -> None:
    _, runner, text, plain = case
    forward(runner, [(0, text[:7], 0, 1), (1, text[:12], 0, 1), (2, text[:3], 0, 0)])
    got = forward(runner, [(0, text[7:8], 7, 1), (1, text[12:17], 12, 4), (2, text[3:9], 3, 0), (3, text[:5], 0, 5)])
    np.testing.assert_allclose(got, np.concatenate([plain[7:8], plain[13:17], plain[:5]]), atol=1e-4)
    runner.release([0, 1, 2, 3])


@pytest.mark.parametrize("num_drafts", [1, 3, 7])
def test_refused_tokens_leave_nothing_behind(case: tuple[str, Any, list[int], Any], num_drafts: int) -> None:
    """Half of the tokens behind the first are wrong each time, and computed over in the next pass."""
    _, runner, text, plain = case
    if not runner.supports_drafts:
        # The runner says so, and the engine gives it none.
        assert runner.forward_path == "padded"
        return
    forward(runner, [(0, text[:6], 0, 1), (1, text[:20], 0, 1)])
    computed = 6
    while computed + num_drafts < len(text):
        right = 1 + num_drafts // 2
        row = text[computed : computed + right] + [7] * (num_drafts + 1 - right)
        beside = (1, text[20:21], 20, 1)
        got = forward(runner, [beside, (0, row, computed, num_drafts + 1)])
        np.testing.assert_allclose(got[:1], plain[20:21], atol=1e-4)
        np.testing.assert_allclose(got[1 : 1 + right], plain[computed : computed + right], atol=1e-4)
        computed += right
    assert computed > 20
