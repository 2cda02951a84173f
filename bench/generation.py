"""Decode, prefill and mixed load through the real gRPC service, beside transformers.generate with the same weights.

Both sides run in processes of their own and take turns, so neither disturbs the other and a machine that drifts
disturbs both alike. Rates are tokens per second of whole requests: prefill included, network included.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bench import report
from bench.service import running_service
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1 import generation_service_pb2_grpc as pb_grpc

ROOT = Path(__file__).resolve().parent.parent
VOCAB_SIZE = 49_152


@dataclass(frozen=True)
class Job:
    """One request: prompt ids and the length of its answer."""

    prompt: list[int]
    max_new_tokens: int


def job(generator: random.Random, prompt_tokens: int, new_tokens: int) -> Job:
    return Job([generator.randrange(100, VOCAB_SIZE) for _ in range(prompt_tokens)], new_tokens)


def mixed_jobs() -> list[Job]:
    """64 requests: prompts of 16 to 256 tokens, answers of 16 to 128."""
    generator = random.Random(5)
    return [job(generator, generator.randint(16, 256), generator.randint(16, 128)) for _ in range(64)]


class Peer:
    """transformers.generate behind a pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def generate(self, jobs: list[Job]) -> float:
        """Seconds for one static batch; its answers are as long as the longest one asked for."""
        assert self._process.stdin
        assert self._process.stdout
        message = {"prompts": [job.prompt for job in jobs], "max_new_tokens": max(job.max_new_tokens for job in jobs)}
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())["seconds"])

    def generate_all(self, jobs: list[Job], batch_size: int) -> float:
        """Seconds for all jobs in batches, in their order."""
        return sum(self.generate(jobs[start : start + batch_size]) for start in range(0, len(jobs), batch_size))


@contextmanager
def running_peer(folder: Path, quantize: str) -> Iterator[Peer]:
    command = [sys.executable, "-m", "bench.peer_transformers", str(folder), quantize]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        json.loads(process.stdout.readline())
        yield Peer(process)
    finally:
        process.terminate()
        process.wait()


async def stream(stub: Any, job: Job) -> float:
    """Seconds of one streamed answer; checks that every token came."""
    request = pb.GenerateRequest(
        prompt={"token_ids": job.prompt},
        generation_config={"max_new_tokens": job.max_new_tokens, "do_sample": False, "eos_token_id": {}},
    )
    begin = time.perf_counter()
    tokens = 0
    async for event in stub.GenerateStream(request):
        tokens += len(event.delta.token_ids)
    assert tokens == job.max_new_tokens, f"{tokens} tokens of {job.max_new_tokens}"
    return time.perf_counter() - begin


async def in_flight(stub: Any, jobs: list[Job], limit: int) -> float:
    """Seconds for all jobs with at most ``limit`` at a time."""
    room = asyncio.Semaphore(limit)

    async def run(job: Job) -> None:
        async with room:
            await stream(stub, job)

    begin = time.perf_counter()
    await asyncio.gather(*(run(job) for job in jobs))
    return time.perf_counter() - begin


async def compare(address: str, peer: Peer, rounds: int, mixed_rounds: int, only: str) -> Iterator[list[Any]]:
    """Rows of the table: case, tokenwire, peer, ratio."""
    generator = random.Random(3)
    cases = [
        ("decode, 1 stream", [job(generator, 32, 64)], 1, rounds),
        ("decode, 16 streams", [job(generator, 32, 64) for _ in range(16)], 16, rounds),
        ("prefill, 512 tokens", [job(generator, 512, 1)], 1, rounds),
        ("64 mixed requests, 16 in flight", mixed_jobs(), 16, mixed_rounds),
    ]
    rows = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.GenerationServiceStub(channel)
        for name, jobs, limit, count in cases:
            if not count or only not in name:
                continue
            tokens = sum(len(job.prompt) if job.max_new_tokens == 1 else job.max_new_tokens for job in jobs)
            if len(jobs) <= 16:
                await in_flight(stub, [Job(job.prompt, min(job.max_new_tokens, 4)) for job in jobs], limit)
                peer.generate_all([Job(job.prompt, min(job.max_new_tokens, 4)) for job in jobs], limit)
            ours, theirs = [], []
            for _ in range(count):
                ours.append(tokens / await in_flight(stub, jobs, limit))
                theirs.append(tokens / await asyncio.to_thread(peer.generate_all, jobs, limit))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            rows.append([name, f"{statistics.median(ours):.1f}", f"{statistics.median(theirs):.1f}", f"{ratio:.2f}x"])
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    return iter(rows)


def main(argv: list[str] | None = None) -> str:
    """Measure fp32 and NF4 and return the Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixed-rounds", type=int, default=1, help="0 leaves the mixed load out")
    parser.add_argument("--only", default="", help="leave out the cases whose name does not hold this")
    parser.add_argument("--quantize", nargs="*", default=["none", "nf4"])
    options = parser.parse_args(argv)
    rows = []
    for quantize in options.quantize:
        with running_service(quantize=quantize) as service, running_peer(service.checkpoint, quantize) as peer:
            measured = asyncio.run(compare(service.address, peer, options.rounds, options.mixed_rounds, options.only))
            name = "fp32" if quantize == "none" else quantize.upper()
            rows += [[name, *row] for row in measured]
    header = ["weights", "case", "tokenwire, tokens/s", "transformers.generate, tokens/s", "ratio"]
    return report.table(header, rows)


if __name__ == "__main__":
    print(report.cpu_features(), end="\n\n")
    print(main())
