"""Isolation: abuse of HTTP/2 by one peer, and an honest client beside it."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator

import grpc
import grpc.aio
import pytest
from chaos_service import HERE, Calls, Front, answer_to, outcome, request
from raw_http2 import connect, continuations, empty_data, rapid_resets, send_all

PATH = "/tokenwire.v1.GenerationService/GenerateStream"
HONEST_P99_S = 1.0

ABUSES: dict[str, tuple[Callable[[str, int], Iterator[bytes]], int]] = {
    "10,000 resets": (rapid_resets, 10_000),
    "1,000 CONTINUATION": (continuations, 1_000),
    "100,000 empty DATA": (empty_data, 100_000),
}


async def honest_p99_s(address: str) -> float:
    """The 99th percentile of the health checks of another process."""
    prober = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "health_prober.py"), address, "300", stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await prober.communicate()
    assert prober.returncode == 0
    seconds = sorted(json.loads(printed))
    return float(seconds[int(0.99 * len(seconds))])


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.chaos)])
async def test_http2_abuse_leaves_an_honest_client_below_1_s(front: Callable[..., Front], share: float) -> None:
    """Again and again, each time on a new connection, while the honest client asks; ``make test`` sends a tenth."""
    started = front()
    await asyncio.to_thread(started.until_logged, "ready")
    address = started.address()
    for name, (frames, count) in ABUSES.items():
        is_over = asyncio.Event()

        async def abuse(
            frames: Callable[[str, int], Iterator[bytes]], count: int, is_over: asyncio.Event = is_over
        ) -> list[bool]:
            sent = []
            while not is_over.is_set():
                sent.append(await asyncio.to_thread(send_all, address, frames(PATH, count)))
            return sent

        abusing = asyncio.create_task(abuse(frames, int(share * count)))
        p99_s = await honest_p99_s(address)
        is_over.set()
        sent = await abusing
        print(f"{name}: p99 {p99_s * 1000:.1f} ms, {len(sent)} times, {sent.count(False)} cut off")  # noqa: T201
        assert p99_s < HONEST_P99_S
    with contextlib.ExitStack() as stack:
        for _ in range(int(share * 1000)):
            stack.enter_context(connect(address))
        p99_s = await honest_p99_s(address)
        print(f"1,000 idle connections: p99 {p99_s * 1000:.1f} ms")  # noqa: T201
        assert p99_s < HONEST_P99_S
    async with grpc.aio.insecure_channel(address) as channel:
        ended_call = await outcome(Calls(channel).generation.Generate(request("after")))
        assert list(ended_call.tokens) == answer_to("after")
    assert not [entry for entry in started.log() if entry["level"] == "error"]
