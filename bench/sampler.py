"""Choosing a token, per row on one core: this service's sampler against transformers' logits processors.

Run: ``python bench/sampler.py`` (needs the ``serve`` extra). Medians of the calling thread's CPU time, which other work
on the machine does not lengthen by waiting; both sides in the same run, taking turns.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tokenwire import _native

VOCABULARIES = (49_152, 128_256)
ROWS = 8
"""Rows per call, as many as stay on one thread at the larger vocabulary. They are near the core on both sides, as
logits are that the model has just written."""
CALLS = 5
"""Calls of one side before the other takes its turn; the first of them warms up. Times the rounds at most as many as
`MAX_EXPLAINED_TOKENS`."""


@dataclass(frozen=True)
class Measurement:
    """Median microseconds per row of both sides."""

    name: str
    vocab_size: int
    ours_us: float
    transformers_us: float

    @property
    def ratio(self) -> float:
        return self.transformers_us / self.ours_us


CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "greedy": ({"do_sample": False}, []),
    "temperature 0.8, top-k 50": (
        {"do_sample": True, "temperature": 0.8, "top_k": 50},
        [TemperatureLogitsWarper(0.8), TopKLogitsWarper(50)],
    ),
    "top-p 0.9": ({"do_sample": True, "top_k": 0, "top_p": 0.9}, [TopPLogitsWarper(0.9)]),
    "temperature 0.8, top-p 0.9": (
        {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.9},
        [TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.9)],
    ),
    "temperature 0.8, top-k 50, top-p 0.9": (
        {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.9},
        [TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.9)],
    ),
    # transformers explains nothing: the row tells what it costs here, against the one above.
    "the same, explained": (
        {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "explain": True},
        [TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.9)],
    ),
}


def cpu() -> str:
    """Model name and vector extensions, as Linux tells them."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    stripped = {name.strip(): value.strip() for name, value in fields.items()}
    flags = stripped.get("flags", "").split()
    extensions = [name for name in ("avx2", "fma", "avx512f") if name in flags]
    return f"{stripped.get('model name', platform.processor() or platform.machine())} ({', '.join(extensions) or '?'})"


def make_generation(
    vocab_size: int, settings: dict[str, Any], prompt_ids: Sequence[int] = (1, 2, 3)
) -> _native.Generation:
    model = {"type": "WordLevel", "vocab": {f"w{index}": index for index in range(1000)}, "unk_token": "w0"}
    tokenizer = _native.Tokenizer.from_json(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return _native.Generation(
        tokenizer,
        prompt_ids,
        _native.SamplingParams(vocab_size=vocab_size, **settings),
        _native.StoppingParams(vocab_size=vocab_size, max_new_tokens=10**9),
    )


def choose(warpers: LogitsProcessorList, logits: torch.Tensor, ids: Any, do_sample: bool) -> torch.Tensor:
    """What transformers' ``generate`` does between the logits of a batch and its tokens."""
    scores = warpers(ids, logits)
    if do_sample:
        return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)
    return scores.argmax(dim=-1)


def microseconds_per_row(call: Callable[[], object]) -> list[float]:
    """Times of one turn, its first call left out."""
    times = []
    for _ in range(CALLS):
        start = time.thread_time_ns()
        call()
        times.append((time.thread_time_ns() - start) / 1e3 / ROWS)
    return times[1:]


def measure(name: str, logits: NDArray[np.float32], rounds: int) -> Measurement:
    """Both sides choose a token for each row of ``logits`` ``[ROWS, V]``, all rows in one call."""
    settings, processors = CASES[name]
    generations = [make_generation(logits.shape[1], settings) for _ in range(ROWS)]
    sampler, warpers = _native.Sampler(), LogitsProcessorList(processors)
    tensor = torch.from_numpy(logits)
    ids = torch.zeros((ROWS, 1), dtype=torch.int64)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        ours += microseconds_per_row(lambda: sampler.step(logits, generations))
        with torch.inference_mode():
            theirs += microseconds_per_row(lambda: choose(warpers, tensor, ids, settings["do_sample"]))
    return Measurement(name, logits.shape[1], statistics.median(ours), statistics.median(theirs))


def table(measurements: list[Measurement]) -> str:
    lines = [
        "| choice | vocabulary | tokenwire, us per row | transformers, us per row | ratio |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {m.name} | {m.vocab_size:,} | {m.ours_us:.1f} | {m.transformers_us:,.0f} | {m.ratio:.0f}x |"
        for m in measurements
    ]
    return "\n".join(lines)


def main(rounds: int = 10) -> list[Measurement]:
    """Measures every case, prints the table, returns the figures."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    measurements = []
    for spread in (1.0, 3.0):
        print(f"\nNormal logits, standard deviation {spread:g}; one thread; {cpu()}\n")
        batch = []
        for vocab_size in VOCABULARIES:
            logits = (generator.standard_normal((ROWS, vocab_size)) * spread).astype(np.float32)
            batch += [measure(name, logits, rounds) for name in CASES]
        print(table(batch), flush=True)
        measurements += batch
    return measurements


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each side")
    main(parser.parse_args().rounds)
