"""The forward pass of the runner against transformers with the same weights, in one run with alternating rounds.

    python -m bench.forward --rounds 3 --tokens 16

Decode: `transformers.generate(do_sample=False)`, timed from its first to its last token, against the runner driven by a
loop that takes the argmax. Prefill: one pass over one prompt, logits of the last token only on both sides. Prints one
Markdown table of medians; only ratios of one run mean anything on a shared machine. Both sides share the process, and
with it the engine's setting of OpenMP's idle threads.
"""
# ruff: noqa: E402 - the setting must come before torch

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwire.model.threads import keep_openmp_spin_short

keep_openmp_spin_short()

import numpy as np
import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from bench import report
from bench.service import GGUF
from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.engine.kernels import native_kernels
from tokenwire.model import gguf
from tokenwire.model.batch import ForwardBatch, Runner
from tokenwire.model.loader import load
from tokenwire.model.memory import usable_cores
from tokenwire.model.quantization import bitsandbytes_config
from tokenwire.model.runner import make_runner


class _Clock(StoppingCriteria):
    """Notes when each token came out of generate; never stops it."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@dataclass
class Contest:
    """Rates of both sides in tokens per second, by round."""

    format: str
    what: str
    peer: list[float]
    ours: list[float]

    def cells(self) -> list[str]:
        peer, ours = statistics.median(self.peer), statistics.median(self.ours)
        ratios = [mine / theirs for mine, theirs in zip(self.ours, self.peer, strict=True)]
        return [self.format, self.what, f"{peer:.1f}", f"{ours:.1f}", f"{statistics.median(ratios):.2f}x"]


def peer_decode(model: Any, prompts: np.ndarray, tokens: int) -> tuple[float, list[list[int]]]:
    clock = _Clock()
    ids = torch.from_numpy(prompts)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    rate = len(prompts) * (tokens - 1) / (clock.times[-1] - clock.times[0])
    return rate, output[:, prompts.shape[1] :].tolist()


def our_decode(runner: Runner, prompts: np.ndarray, tokens: int) -> tuple[float, list[list[int]]]:
    rows, length = prompts.shape
    size = runner.block_size
    blocks_each = -(-(length + tokens) // size)
    # Blocks of the rows interleave, as they do when sequences grow side by side.
    tables = [list(range(row, rows * blocks_each, rows)) for row in range(rows)]
    batch = ForwardBatch(list(range(rows)), prompts.tolist(), [0] * rows, tables, [True] * rows)
    answers = [[int(token)] for token in runner.forward(batch).argmax(axis=-1)]
    start = time.perf_counter()
    for step in range(tokens - 1):
        batch = ForwardBatch(
            batch.sequence_ids, [[answer[-1]] for answer in answers], [length + step] * rows, tables, [True] * rows
        )
        for answer, token in zip(answers, runner.forward(batch).argmax(axis=-1), strict=True):
            answer.append(int(token))
    elapsed = time.perf_counter() - start
    runner.release(batch.sequence_ids)
    return rows * (tokens - 1) / elapsed, answers


@torch.inference_mode()
def peer_prefill(model: Any, prompt: np.ndarray) -> float:
    start = time.perf_counter()
    model(input_ids=torch.from_numpy(prompt[None]), use_cache=True, logits_to_keep=1)
    return len(prompt) / (time.perf_counter() - start)


def our_prefill(runner: Runner, prompt: np.ndarray) -> float:
    blocks = list(range(-(-len(prompt) // runner.block_size)))
    start = time.perf_counter()
    runner.forward(ForwardBatch([0], [prompt.tolist()], [0], [blocks], [True]))
    elapsed = time.perf_counter() - start
    runner.release([0])
    return len(prompt) / elapsed


def run_format(path: Path, quantize: Any, arguments: argparse.Namespace) -> list[Contest]:
    engine = EngineConfig(kv_cache_memory="512MiB", threads=arguments.threads, forward_kernels=arguments.kernels)
    config = ModelConfig(model=str(path), device="cpu", quantize=quantize)
    loaded = load(config, engine, progress=lambda _: None)
    kernels = native_kernels(engine.threads or usable_cores())
    runner = make_runner(loaded, engine, lambda _: None, kernels=kernels)
    print(f"{loaded.architecture} {quantize}: {runner.forward_path} ({runner.forward_path_reason})", file=sys.stderr)
    folder = gguf.converted(path, lambda _: None) if path.is_file() else path
    quantization_config = bitsandbytes_config(config, torch.float32)
    peer = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=quantization_config
    ).eval()
    name = "fp32" if quantize == "none" else quantize
    generator = np.random.default_rng(0)
    contests = []
    for rows in arguments.rows:
        prompts = generator.integers(100, 40_000, (rows, arguments.prompt))
        contest = Contest(name, f"decode, {rows} x {arguments.prompt} prompt", [], [])
        for number in range(arguments.rounds + 1):
            theirs, expected = peer_decode(peer, prompts, arguments.tokens)
            mine, answers = our_decode(runner, prompts, arguments.tokens)
            if answers != expected:
                print(
                    f"tokens differ: {sum(a != e for a, e in zip(answers, expected, strict=True))} of {rows} rows",
                    file=sys.stderr,
                )
            if number:  # the first round warms both up
                contest.peer.append(theirs)
                contest.ours.append(mine)
        contests.append(contest)
        print(*contest.cells(), sep=" | ", file=sys.stderr)
    prompt = generator.integers(100, 40_000, arguments.prefill)
    contest = Contest(name, f"prefill {arguments.prefill}", [], [])
    for number in range(arguments.rounds + 1):
        theirs, mine = peer_prefill(peer, prompt), our_prefill(runner, prompt)
        if number:
            contest.peer.append(theirs)
            contest.ours.append(mine)
    contests.append(contest)
    print(*contest.cells(), sep=" | ", file=sys.stderr)
    return contests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=GGUF)
    parser.add_argument("--formats", nargs="+", default=["none", "nf4"], choices=["none", "nf4", "fp4", "int8"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens of each decode row")
    parser.add_argument("--tokens", type=int, default=16, help="new tokens of each decode row")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--kernels", default="auto", choices=["auto", "off"])
    arguments = parser.parse_args()
    contests = [
        contest for quantize in arguments.formats for contest in run_format(arguments.model, quantize, arguments)
    ]
    header = ["weights", "work", "transformers, tokens/s", "tokenwire, tokens/s", "ratio"]
    print(report.table(header, [contest.cells() for contest in contests]))


if __name__ == "__main__":
    main()
