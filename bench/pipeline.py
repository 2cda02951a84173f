"""What settings cost: the sampler with every one of them on, and penalties over longer histories. One thread."""

import statistics
import time
from typing import Any

import numpy as np

from bench import report
from bench.sampler import make_generation
from tokenwire import _native

ROUNDS = 40
ROWS = 8

TOP_K: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 50}
PROCESSORS: dict[str, Any] = {
    "repetition_penalty": 1.1,
    "encoder_repetition_penalty": 1.05,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3,
    "logit_bias": {5: 1.0, 6: -1.0},
    "sequence_bias": (((5, 6), 1.0), ((7,), -1.0)),
    "bad_words_ids": ((8, 9), (10,)),
    "suppress_tokens": (11, 12),
    "begin_suppress_tokens": (13,),
    "remove_invalid_values": True,
    "renormalize_logits": True,
}
WARPERS: dict[str, Any] = {
    "top_h": 0.9,
    "top_p": 0.95,
    "min_p": 0.01,
    "typical_p": 0.95,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-4,
}
CASES = {
    "temperature and top-k 50 alone": TOP_K,
    "and every processor": TOP_K | PROCESSORS,
    "and every filter": TOP_K | WARPERS,
    "and both": TOP_K | PROCESSORS | WARPERS,
}
PENALTIES = {"do_sample": False, "repetition_penalty": 1.1, "frequency_penalty": 0.1, "no_repeat_ngram_size": 3}


def microseconds_per_row(cases: list[tuple[dict[str, Any], int, int]]) -> list[float]:
    """Median CPU time for each ``(settings, vocabulary, tokens of history)``, all cases in turns."""
    generator = np.random.default_rng(0)
    prepared = []
    for settings, vocab_size, history in cases:
        logits = (generator.standard_normal((ROWS, vocab_size)) * 3).astype(np.float32)
        prompt = generator.integers(20, vocab_size, max(history, 3)).tolist()
        rows = [make_generation(vocab_size, settings, prompt) for _ in range(ROWS)]
        prepared.append((_native.Sampler(), logits, rows))
    times: list[list[float]] = [[] for _ in cases]
    for round_number in range(ROUNDS + 1):
        for (sampler, logits, rows), own in zip(prepared, times, strict=True):
            start = time.thread_time_ns()
            sampler.step(logits, rows)
            if round_number:  # the first warms up
                own.append((time.thread_time_ns() - start) / 1e3 / ROWS)
    return [statistics.median(own) for own in times]


def main() -> str:
    """Measure and return the Markdown tables."""
    rows = []
    for vocab_size in (49_152, 128_256):
        measured = microseconds_per_row([(settings, vocab_size, 200) for settings in CASES.values()])
        rows += [
            [name, f"{vocab_size:,}", f"{time_us:.0f}", f"{time_us / measured[0]:.1f}x"]
            for name, time_us in zip(CASES, measured, strict=True)
        ]
    settings = report.table(["settings, 200 tokens of history", "vocabulary", "us per row", "ratio"], rows)
    rows = []
    for vocab_size in (49_152, 128_256):
        measured = microseconds_per_row(
            [({"do_sample": False}, vocab_size, 0), *((PENALTIES, vocab_size, count) for count in (100, 1_000, 10_000))]
        )
        labels = ["greedy, no penalties", *(f"penalties, {count:,} tokens" for count in (100, 1_000, 10_000))]
        rows += [[label, f"{vocab_size:,}", f"{time_us:.0f}"] for label, time_us in zip(labels, measured, strict=True)]
    return f"{settings}\n\n{report.table(['history', 'vocabulary', 'us per row'], rows)}"


if __name__ == "__main__":
    print(main())
