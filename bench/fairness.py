"""The pauses of streams that decode while a longest prompt arrives, with prefill paced and without.

    python -m bench.fairness [--prompt 4000] [--streams 16]

A gap is the time between two messages of one stream, at the client. Beside: until ``--quiet`` seconds passed without
the prompt. With: from its arrival to its first token. The default model, nf4, one server per row, greedy.
"""

import argparse
import asyncio
import time
from typing import Any

import grpc.aio
import uvloop

from bench.report import percentile, table
from bench.service import running_service
from tokenwire.v1 import generation_pb2, generation_service_pb2, generation_service_pb2_grpc

SHARES = (1.0, 0.4)
"""1: prefill fills every step. 0.4: the default."""


def request(token_ids: list[int], max_new_tokens: int) -> generation_service_pb2.GenerateRequest:
    # No end token: every stream lasts as long as it is needed.
    config = generation_pb2.GenerationConfig(
        max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, do_sample=False
    )
    prompt = generation_service_pb2.Prompt(token_ids=token_ids)
    return generation_service_pb2.GenerateRequest(prompt=prompt, generation_config=config)


async def measure(address: str, streams: int, prompt: int, quiet_s: float) -> tuple[list[float], list[float], float]:
    """Gaps without the prompt, gaps with it, and how long it took to its first token, all in seconds."""
    gaps: list[float] = []
    began = 0

    async def follow(call: Any) -> None:
        nonlocal began
        last = None
        async for event in call:
            if not event.HasField("delta"):
                continue
            now = time.perf_counter()
            if last is None:
                began += 1
            else:
                gaps.append(now - last)
            last = now

    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        # One long answer beside each length of prompt: what a server meets first is no part of the figures.
        await stub.Generate(request([7] * 600, 8))
        calls = [stub.GenerateStream(request([100 + number] * 32, 3000)) for number in range(streams)]
        readers = [asyncio.create_task(follow(call)) for call in calls]
        while began < streams:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        gaps.clear()
        await asyncio.sleep(quiet_s)
        without, began_at = gaps.copy(), time.perf_counter()
        gaps.clear()
        await stub.Generate(request([1 + number % 40_000 for number in range(prompt)], 1))
        took, beside = time.perf_counter() - began_at, gaps.copy()
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
    return without, beside, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=4000, help="tokens of the long prompt")
    parser.add_argument("--quiet", type=float, default=10.0, help="seconds without it")
    arguments = parser.parse_args()
    rows = []
    for share in SHARES:
        with running_service(quantize="nf4", flags=["--prefill-share", str(share)]) as service:
            without, beside, took = uvloop.run(
                measure(service.address, arguments.streams, arguments.prompt, arguments.quiet)
            )
        p50, p99 = (percentile(without, fraction) for fraction in (0.5, 0.99))
        p50_beside, p99_beside = (percentile(beside, fraction) for fraction in (0.5, 0.99))
        cells = [p50, p99, p50_beside, p99_beside, max(beside)]
        rows.append([share, *(f"{1000 * cell:.0f}" for cell in cells), f"{p99_beside / p99:.1f}x", f"{took:.1f}"])
    print(f"{arguments.streams} streams; a prompt of {arguments.prompt:,} tokens arrives.\n")
    header = [
        "prefill_share",
        "gap without, p50 ms",
        "p99 ms",
        "gap with the prompt, p50 ms",
        "p99 ms",
        "longest ms",
        "p99 with / without",
        "the prompt's first token, s",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
