"""The padded runner when sequences leave its decode batch: they end, or are preempted and come back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.runner_loop import Sequence, drive, generate, load_runner, prompts


@pytest.fixture(scope="module")
def bloom(checkpoint: Callable[[str], Path]) -> tuple[Any, Any]:
    """A transformers model, and a padded runner of the same checkpoint."""
    loaded, runner = load_runner(checkpoint("bloom"))
    assert runner.forward_path == "padded"
    return loaded.model, runner


def forward(runner: Any, rows: list[Sequence]) -> None:
    """One pass that gives each row its next token."""
    from tokenwire.model.batch import ForwardBatch

    pending = [(row.prompt + row.tokens)[row.computed :] for row in rows]
    logits = runner.forward(
        ForwardBatch(
            sequence_ids=[row.number for row in rows],
            token_ids=pending,
            num_computed_tokens=[row.computed for row in rows],
            block_tables=[[] for _ in rows],
            num_logits=[1] * len(rows),
        )
    )
    for row, new, values in zip(rows, pending, logits, strict=True):
        row.computed += len(new)
        row.tokens.append(int(values.argmax()))


def test_release_allocates_nothing(bloom: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """So it cannot run out of memory: the engine calls it where no request is at hand to fail for that."""
    import torch

    model, runner = bloom

    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    original = runner.release

    def release(sequence_ids: list[int]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "cat", refuse)
            patch.setattr(torch.Tensor, "clone", refuse)
            patch.setattr(torch.nn.functional, "pad", refuse)
            original(sequence_ids)

    monkeypatch.setattr(runner, "release", release)
    texts = prompts([12, 3, 7])
    sequences = [Sequence(number, prompt, 4 + 3 * number) for number, prompt in enumerate(texts)]
    drive(runner, sequences)
    for sequence in sequences:
        assert sequence.tokens == generate(model, sequence.prompt, sequence.max_new_tokens)


@pytest.mark.parametrize("decodes_meanwhile", [False, True])
def test_preempted_sequence_comes_back(bloom: tuple[Any, Any], decodes_meanwhile: bool) -> None:
    """Under its own number, and into a batch of the same sequences: with its new cache, not with the released one."""
    model, runner = bloom
    rows = [Sequence(number, prompt, 8) for number, prompt in enumerate(prompts([9, 4, 6]))]
    for _ in range(3):
        forward(runner, rows)
    runner.release([1])
    rows[1].computed = 0
    if decodes_meanwhile:
        forward(runner, [rows[0], rows[2]])
    forward(runner, [rows[1]])
    for _ in range(2):
        forward(runner, rows)
    for row in rows:
        assert row.tokens == generate(model, row.prompt, len(row.tokens))
    runner.release([0, 1, 2])


def test_nothing_is_kept_of_released_sequences(bloom: tuple[Any, Any]) -> None:
    import gc
    import weakref

    _, runner = bloom
    rows = [Sequence(number, prompt, 8) for number, prompt in enumerate(prompts([5, 3, 8]))]
    forward(runner, rows)
    forward(runner, rows[:2])
    cache = weakref.ref(runner._batch.cache)
    runner.release([0])
    runner.release([2, 1])
    gc.collect()
    assert cache() is None
    assert runner._alone == {}
