"""A loop that drives a runner the way the engine does, and transformers' own answer to compare with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny_models

BLOCK_SIZE = 4


def load_runner(folder: Path, *, engine: dict[str, Any] | None = None, **model: Any) -> tuple[Any, Any]:
    """The loaded model and its runner, with small blocks, made as the engine makes it."""
    from tokenwire.config import EngineConfig, ModelConfig
    from tokenwire.engine.kernels import native_kernels
    from tokenwire.model.loader import load
    from tokenwire.model.runner import make_runner

    settings = EngineConfig(**{"block_size": BLOCK_SIZE, "threads": 1, "kv_cache_memory": "16MiB"} | (engine or {}))
    loaded = load(ModelConfig(model=str(folder), device="cpu", **model), settings, progress=lambda _: None)
    return loaded, make_runner(loaded, settings, lambda _: None, kernels=native_kernels(settings.threads or 1))


@dataclass
class Sequence:
    """A prompt that is being answered greedily, and the logits that gave each token."""

    number: int
    prompt: list[int]
    max_new_tokens: int
    starts_at_step: int = 0
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return len(self.tokens) == self.max_new_tokens


def drive(runner: Any, sequences: list[Sequence], *, chunk: int | None = None) -> None:
    """Run ``sequences`` to their ends: decode rows first, then prefill chunks of at most ``chunk`` tokens.

    Blocks are handed out in shuffled order and reused as soon as a sequence ends, so neighbours in a sequence are not
    neighbours in the cache, and stale keys lie behind its end.
    """
    free = np.random.default_rng(1).permutation(runner.num_blocks).tolist()
    step = 0
    while not all(sequence.finished for sequence in sequences):
        rows = [s for s in sequences if not s.finished and s.starts_at_step <= step]
        rows.sort(key=lambda s: not s.tokens)
        batch = []
        for row in rows:
            pending = (row.prompt + row.tokens)[row.computed :]
            if not row.tokens and chunk is not None:
                pending = pending[:chunk]
            batch.append((row, pending))
            while len(row.blocks) * runner.block_size < row.computed + len(pending):
                row.blocks.append(free.pop())
        _forward(runner, batch)
        ended = [row for row in rows if row.finished]
        runner.release([row.number for row in ended])
        for row in ended:
            free.extend(row.blocks)
        step += 1


def _forward(runner: Any, batch: list[tuple[Sequence, list[int]]]) -> None:
    from tokenwire.model.batch import ForwardBatch

    if not batch:
        return
    wants = [row.computed + len(pending) == len(row.prompt) + len(row.tokens) for row, pending in batch]
    logits = runner.forward(
        ForwardBatch(
            sequence_ids=[row.number for row, _ in batch],
            token_ids=[pending for _, pending in batch],
            num_computed_tokens=[row.computed for row, _ in batch],
            block_tables=[list(row.blocks) for row, _ in batch],
            num_logits=[int(wanted) for wanted in wants],
        )
    )
    assert logits.shape == (sum(wants), runner.vocab_size)
    assert logits.flags.c_contiguous
    results = iter(logits)
    for (row, pending), wanted in zip(batch, wants, strict=True):
        row.computed += len(pending)
        if wanted:
            row_logits = next(results).copy()
            row.logits.append(row_logits)
            row.tokens.append(int(row_logits.argmax()))


def prompts(lengths: list[int], *, seed: int = 0) -> list[list[int]]:
    """Random prompts without special tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(8, tiny_models.MODEL_VOCAB_SIZE, length).tolist() for length in lengths]


def generate(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    """transformers' own greedy continuation, which an end-of-sequence token does not stop."""
    import torch

    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()
