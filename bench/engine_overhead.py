"""The engine's own time per step: everything of a step but the model.

    python -m bench.engine_overhead --rows 1 16 64

A model that does nothing gives the same logits `[rows, 256]` in every step; timed are the rest of the step (commands,
scheduling, building the batch, the sampler in Rust, writing the tokens down) and encoding its frame. The vocabulary
is small because the sampler's share grows with it and has a bench of its own. Greedy, one token per row and step.
Prints a Markdown table of medians; the last column is the engine without the sampler.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenwire._native import Emission, Generation, Sampler, Tokenizer
from tokenwire.engine.channel import FrameWriter
from tokenwire.engine.engine import Engine
from tokenwire.engine.generations import generation_factory
from tokenwire.engine.protocol import Submit
from tokenwire.engine.settings import GenerationSettings
from tokenwire.model.batch import ForwardBatch

VOCAB = 256
BLOCK_SIZE = 16
PROMPT_TOKENS = 64


class NoModel:
    """A runner whose forward pass hands out what was ready before."""

    vocab_size = VOCAB
    context_length = 1_000_000
    block_size = BLOCK_SIZE
    supports_chunked_prefill = True
    shares_blocks = True
    supports_drafts = True

    def __init__(self, rows: int, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._logits = np.random.default_rng(0).standard_normal((rows, VOCAB), dtype=np.float32)

    def forward(self, batch: ForwardBatch) -> NDArray[np.float32]:
        return self._logits[: sum(batch.num_logits)]

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        pass

    def copy_sequences(self, sources: list[int], targets: list[int]) -> None:
        pass

    def release(self, sequence_ids: list[int]) -> None:
        pass


class TimedSampler:
    """The Rust sampler with its share of the step taken."""

    def __init__(self) -> None:
        self._sampler = Sampler()
        self.seconds = 0.0

    def step(self, logits: NDArray[np.float32], generations: Sequence[Generation]) -> list[Emission]:
        started = time.perf_counter()
        emissions = self._sampler.step(logits, generations)
        self.seconds = time.perf_counter() - started
        return emissions


def byte_tokenizer() -> Tokenizer:
    """256 tokens, one per byte, as byte-level BPE writes them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    model = {"type": "BPE", "vocab": {names[byte]: byte for byte in range(256)}, "merges": []}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return Tokenizer.from_json(json.dumps({"version": "1.0", "model": model, "decoder": byte_level}))


def measure(rows: int, steps: int) -> tuple[float, float]:
    """Median seconds per step, of all and of the sampler alone."""
    warm_up = 50
    tokens = PROMPT_TOKENS + steps + warm_up + 10
    runner = NoModel(rows, num_blocks=rows * (tokens // BLOCK_SIZE + 2))
    sampler = TimedSampler()
    engine = Engine(
        runner,
        sampler,
        generation_factory(byte_tokenizer(), VOCAB),
        max_running=rows,
        max_step_tokens=max(512, rows * PROMPT_TOKENS),
    )
    writer = FrameWriter()
    settings = GenerationSettings(max_new_tokens=steps + warm_up + 10)
    for request in range(rows):
        engine.inbox.put((0.0, Submit(request, [65] * PROMPT_TOKENS, settings)))
    # As the engine process does after loading.
    gc.collect()
    gc.freeze()
    totals, samples = [], []
    for _ in range(steps + warm_up):
        started = time.perf_counter()
        outputs = engine.step()
        writer.frame(outputs)
        totals.append(time.perf_counter() - started)
        samples.append(sampler.seconds)
        if len(outputs.deltas) != rows or outputs.failures:
            raise RuntimeError(f"a step gave {len(outputs.deltas)} deltas for {rows} rows: {outputs.failures}")
    gc.unfreeze()
    return statistics.median(totals[warm_up:]), statistics.median(samples[warm_up:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results: dict[int, list[tuple[float, float]]] = {rows: [] for rows in arguments.rows}
    for _ in range(arguments.rounds):
        for rows in arguments.rows:
            results[rows].append(measure(rows, arguments.steps))
    print("| rows | per step, ms | of which the sampler, ms | the engine alone, ms |")
    print("|---|---|---|---|")
    for rows, measured in results.items():
        total = 1000 * statistics.median(whole for whole, _ in measured)
        sample = 1000 * statistics.median(part for _, part in measured)
        print(f"| {rows} | {total:.3f} | {sample:.3f} | {total - sample:.3f} |")


if __name__ == "__main__":
    main()
