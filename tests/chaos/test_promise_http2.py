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

from bench import reliability
from bench.report import percentile

PATH = "/tokenwire.v1.GenerationService/GenerateStream"
HONEST_P99_S = 1.0

ABUSES: dict[str, tuple[Callable[[str, int], Iterator[bytes]], int]] = {
    "10,000 resets": (rapid_resets, 10_000),
    "1,000 CONTINUATION": (continuations, 1_000),
    "100,000 empty DATA": (empty_data, 100_000),
}


async def honest_p99_s(address: str, count: int, abuse: "asyncio.Future[None]", *how: str) -> float:
    """The 99th percentile of health checks of another process, which go on until the abuse has ended."""
    seconds: list[float] = []
    while not seconds or not abuse.done():
        prober = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "health_prober.py"), address, str(count), *how, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await prober.communicate()
        assert prober.returncode == 0
        seconds += json.loads(printed)
    return percentile(seconds, 0.99)


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.chaos)])
async def test_http2_abuse_leaves_an_honest_client_below_1_s(front: Callable[..., Front], share: float) -> None:
    """One burst of each; ``make test`` sends a tenth of it and does not look at the time."""
    measured: dict[str, float] = {}
    started = front()
    await asyncio.to_thread(started.until_logged, "ready")
    address = started.address()
    for name, (frames, count) in ABUSES.items():
        abuse = asyncio.ensure_future(asyncio.to_thread(send_all, address, frames(PATH, int(share * count))))
        p99_s = await honest_p99_s(address, 100, abuse)
        ended = "was let through" if await abuse else "was cut off"
        print(f"{name}: p99 {p99_s * 1000:.1f} ms, {ended}")  # noqa: T201
        measured[f"{name}: p99, ms"] = 1000 * p99_s
    with contextlib.ExitStack() as stack:
        for _ in range(int(share * 1000)):
            stack.enter_context(connect(address))
        idle = asyncio.get_running_loop().create_future()
        idle.set_result(None)
        p99_s = await honest_p99_s(address, 100, idle)
        print(f"1,000 idle connections: p99 {p99_s * 1000:.1f} ms")  # noqa: T201
        measured["1,000 idle connections: p99, ms"] = 1000 * p99_s
    async with grpc.aio.insecure_channel(address) as channel:
        ended_call = await outcome(Calls(channel).generation.Generate(request("after")))
        assert list(ended_call.tokens) == answer_to("after")
    if share == 1.0:
        reliability.record("An honest client beside a burst of abuse", measured, "1 s")
        assert max(measured.values()) < 1000 * HONEST_P99_S
    assert not [entry for entry in started.log() if entry["level"] == "error"]


@pytest.mark.parametrize("seconds", [1.0, pytest.param(20.0, marks=pytest.mark.chaos)])
async def test_abuse_without_end_leaves_old_and_new_clients_their_answers(
    front: Callable[..., Front], seconds: float
) -> None:
    """One peer on one connection, opened anew whenever it is cut off; ``make test`` does not look at the time."""
    started = front()
    await asyncio.to_thread(started.until_logged, "ready")
    address = started.address()
    for kind in ("resets", "continuation", "empty data"):
        pipe = asyncio.subprocess.PIPE
        peer = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "endless_abuse.py"), address, kind, "1", stdin=pipe, stdout=pipe
        )
        try:
            over = asyncio.ensure_future(asyncio.sleep(seconds))
            kept_s, anew_s = await asyncio.gather(
                honest_p99_s(address, 10, over), honest_p99_s(address, 10, over, "anew")
            )
            async with grpc.aio.insecure_channel(address) as channel:
                answered = await outcome(Calls(channel).generation.Generate(request("beside"), timeout=60))
                assert list(answered.tokens) == answer_to("beside")
        finally:
            printed, _ = await peer.communicate(b"")
        sent = json.loads(printed)
        print(f"{kind}: {sent}, p99 {kept_s * 1000:.1f} ms, connecting anew {anew_s * 1000:.1f} ms")  # noqa: T201
        assert sent["frames"] > 1000
        if seconds > 10:
            assert kept_s < HONEST_P99_S
            assert anew_s < HONEST_P99_S
    assert not [entry for entry in started.log() if entry["level"] == "error"]
