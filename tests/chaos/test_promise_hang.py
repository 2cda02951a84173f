"""Lifecycle: a forward that hangs turns health NOT_SERVING within 10 s and back after; one that takes long does not."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from chaos_service import NOT_SERVING, PATIENCE_S, SERVING, Chaos, answer_to, outcome, request, serving
from grpc_health.v1 import health_pb2

NOTICED_WITHIN_S = 10.0


async def watched(call: Any) -> int:
    return int((await call.read()).status)


async def test_a_forward_that_hangs_turns_health_not_serving_within_10_s_and_back_after(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        watch = service.health.Watch(health_pb2.HealthCheckRequest())
        assert await watched(watch) == SERVING
        hung = asyncio.ensure_future(service.tokens("Hang"))
        await service.until_begun("Hang")
        began = time.monotonic()
        assert await watched(watch) == NOT_SERVING
        assert time.monotonic() - began < NOTICED_WITHIN_S
        refused = await outcome(service.generation.Generate(request("new")))
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        (tmp_path / "release").touch()
        assert await watched(watch) == SERVING
        assert await hung == answer_to("Hang")
        assert await service.tokens("new") == answer_to("new")


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.chaos)])
async def test_a_prefill_of_60_s_keeps_health_serving_in_chunks_and_in_one_pass(tmp_path: Path, seconds: float) -> None:
    """In ``make test`` a shorter one, with a shorter patience; both are several times longer than the patience."""
    timeout = 2.0 if seconds < 60 else 8.0
    patience_s = PATIENCE_S + 2 * seconds
    options = {"slow_s": seconds}
    async with serving(tmp_path, options, hang_timeout=timeout) as service:
        watch = service.health.Watch(health_pb2.HealthCheckRequest())
        assert await watched(watch) == SERVING
        changed = asyncio.ensure_future(watched(watch))
        assert await service.tokens("Layer after layer", patience_s=patience_s) == answer_to("Layer after layer")
        assert not changed.done()
        changed.cancel()
    (tmp_path / "release").unlink()
    options = {"slow_s": timeout / 4}
    async with serving(tmp_path, options, hang_timeout=timeout, max_step_tokens=64) as service:
        watch = service.health.Watch(health_pb2.HealthCheckRequest())
        assert await watched(watch) == SERVING
        changed = asyncio.ensure_future(watched(watch))
        prompt = "Slow" * int(16 * seconds / (timeout / 4))
        began = time.monotonic()
        assert await service.tokens(prompt, patience_s=patience_s) == answer_to(prompt)
        assert time.monotonic() - began >= seconds
        assert not changed.done()
        changed.cancel()


async def test_an_engine_that_is_stopped_is_noticed_also_while_it_is_idle(tmp_path: Path) -> None:
    async with serving(tmp_path, hang_timeout=2.0) as service:
        await check_stopped(service)


async def check_stopped(service: Chaos) -> None:
    assert service.engine.pid is not None
    os.kill(service.engine.pid, signal.SIGSTOP)
    try:
        await service.until_health(NOT_SERVING)
    finally:
        os.kill(service.engine.pid, signal.SIGCONT)
    await service.until_health(SERVING)
    assert await service.tokens("after") == answer_to("after")
