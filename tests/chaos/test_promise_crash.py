"""Lifecycle: an engine that dies or raises, and what its requests and the service make of it."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from chaos_service import NOT_SERVING, SERVING, Calls, Front, answer_to, outcome, read_all, request, serving

from bench import reliability

KILLED_WITHIN_S = 1.0


async def test_a_killed_engine_ends_its_streams_with_unavailable_within_1_s_and_is_restarted(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": 0.005}) as service:
        streams = [await service.begin(f"stream {number}", 4000) for number in range(8)]
        waiting = asyncio.gather(*(read_all(stream) for stream in streams))
        pid = service.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        outcomes = await waiting
        seconds = time.monotonic() - killed_at
        reliability.record("A killed engine ends its streams", {"after, ms": 1000 * seconds}, "1 s")
        assert seconds < KILLED_WITHIN_S
        assert {each.code for each in outcomes} == {grpc.StatusCode.UNAVAILABLE}
        assert await service.health_status() == NOT_SERVING
        await service.until_health(SERVING)
        assert service.engine.pid != pid
        assert await service.tokens("after") == answer_to("after")


async def test_a_forward_that_raises_fails_only_the_requests_in_it_a_hundred_times_in_a_row(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for number in range(100):
            failed = await outcome(service.generation.Generate(request(f"X {number}")))
            assert failed.code is grpc.StatusCode.INTERNAL
            assert "secret" not in failed.details
            assert await service.tokens(f"next {number}") == answer_to(f"next {number}")
        await service.until_nothing_is_held()


async def test_a_request_that_waits_is_not_in_the_step_that_raises(tmp_path: Path) -> None:
    """One row at a time: what waits behind a request that fails in a long forward is served."""
    async with serving(tmp_path, max_running=1) as service:
        hung = asyncio.ensure_future(service.tokens("Hang"))
        await service.until_begun("Hang")
        failing = asyncio.ensure_future(outcome(service.generation.Generate(request("X"))))
        waiting = asyncio.ensure_future(service.tokens("waiting"))
        (tmp_path / "release").touch()
        assert await hung == answer_to("Hang")
        assert (await failing).code is grpc.StatusCode.INTERNAL
        assert await waiting == answer_to("waiting")


def test_an_engine_that_keeps_dying_ends_the_service_with_exit_code_1_and_a_last_line_that_says_so(
    front: Callable[..., Front],
) -> None:
    started = front(max_restarts=2)
    with grpc.insecure_channel(started.address()) as channel:
        calls = Calls(channel)
        for number in range(3):
            # Refused while the engine comes back; ended by the kill where it was taken.
            while f"Kill {number}" not in started.journal():
                with pytest.raises(grpc.RpcError) as ended:
                    calls.generation.Generate(request(f"Kill {number}"))
                assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
                time.sleep(0.02)
    assert started.end() == 1
    last = started.log()[-1]
    assert last["level"] == "error"
    assert last["event"].startswith("the engine cannot be kept running: it ended 3 times, at last: SIGKILL")
    assert [entry["event"] for entry in started.log()].count("restarting the engine") == 2


def test_an_engine_that_cannot_be_loaded_again_ends_the_service_and_says_why(front: Callable[..., Front]) -> None:
    started = front({"loads": 1}, max_restarts=2)
    started.until_logged("ready")
    started.engine().kill()
    assert started.end() == 1
    assert started.log()[-1]["event"] == (
        "the engine cannot be kept running: it did not come back: the checkpoint is gone"
    )


def test_no_engine_is_left_when_the_front_is_killed_in_whatever_state(front: Callable[..., Front]) -> None:
    started = front()
    started.until_logged("ready")
    with grpc.insecure_channel(started.address()) as channel:
        hung = Calls(channel).generation.Generate.future(request("Hang"))
        started.until_begun("Hang")
        engine = started.engine()
        started.process.kill()
        started.end()
        # Not a child of this process: psutil looks until it is gone.
        engine.wait(5)
        assert not psutil.pid_exists(engine.pid)
        assert hung.code() is grpc.StatusCode.UNAVAILABLE
