"""grpc.health.v1: what is reported when, to Check, List and Watch."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine, say
from grpc_health.v1 import health_pb2
from harness import Service, running, service_config
from test_calls import generate_request
from test_statuses import failure

from tokenwire.config import SecurityConfig
from tokenwire.engine.handle import EngineState
from tokenwire.errors import ConfigurationError
from tokenwire.health import LIVENESS
from tokenwire.server import EngineLostError
from tokenwire.v1 import model_service_pb2, tokenizer_service_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
GENERATION, TOKENIZER, MODEL = (f"tokenwire.v1.{name}Service" for name in ("Generation", "Tokenizer", "Model"))
ALIVE = {LIVENESS: SERVING}


async def statuses(service: Service) -> dict[str, int]:
    listed = await service.health.List(health_pb2.HealthListRequest())
    every = {name: response.status for name, response in listed.statuses.items()}
    for name, status in every.items():
        checked = await service.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert checked.status == status
    return every


async def watched(call: Any) -> int:
    return (await call.read()).status


async def test_not_serving_until_ready(start: Any) -> None:
    load = asyncio.Event()
    service = await start(FakeEngine(load=load, script=say("x")), until_ready=False)
    assert await statuses(service) == dict.fromkeys(("", GENERATION, TOKENIZER, MODEL), NOT_SERVING) | ALIVE
    for call in (
        service.generation.Generate(generate_request()),
        service.model.GetModel(model_service_pb2.GetModelRequest()),
        service.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text="a")),
    ):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.UNAVAILABLE
        assert "loading weights" in failed.message
        assert failed.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    load.set()
    await service.server.ready.wait()
    assert await statuses(service) == dict.fromkeys(("", GENERATION, TOKENIZER, MODEL), SERVING) | ALIVE
    assert (await service.generation.Generate(generate_request())).sequences[0].text == "x"


async def test_watch_sees_load_serve_drain_and_nothing_else(start: Any) -> None:
    load = asyncio.Event()
    service = await start(FakeEngine(load=load), until_ready=False)
    watch = service.health.Watch(health_pb2.HealthCheckRequest())
    assert await watched(watch) == NOT_SERVING
    load.set()
    assert await watched(watch) == SERVING
    call = service.generation.GenerateStream(generate_request())
    assert (await call.read()).HasField("start")
    stream = await service.engine.submitted.get()
    service.server.stop()
    assert await watched(watch) == NOT_SERVING
    refused = await failure(service.generation.Generate(generate_request()))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    stream.answer("to the end")
    text = ""
    while (event := await call.read()) is not grpc.aio.EOF:
        text += event.delta.text
    assert text == "to the end"
    assert await call.code() is grpc.StatusCode.OK
    assert (await failure(watch)).code is grpc.StatusCode.UNAVAILABLE
    await service.serving
    assert service.engine.stopped


async def test_drain_ends_after_the_grace(start: Any) -> None:
    service = await start(FakeEngine(), service_config(drain_grace=0.1))
    call = service.generation.Generate(generate_request())
    await service.engine.submitted.get()
    service.server.stop()
    assert (await failure(call)).code is grpc.StatusCode.UNAVAILABLE
    await service.serving


async def test_an_engine_that_restarts_is_reported(service: Service, engine: FakeEngine) -> None:
    watch = service.health.Watch(health_pb2.HealthCheckRequest(service=GENERATION))
    assert await watched(watch) == SERVING
    engine.die()
    assert await watched(watch) == NOT_SERVING
    now = await statuses(service)
    assert (now[""], now[GENERATION], now[TOKENIZER], now[MODEL]) == (NOT_SERVING, NOT_SERVING, SERVING, SERVING)
    assert now[LIVENESS] == SERVING
    assert (await service.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text="a"))).tokens
    engine.enter(EngineState.READY)
    assert await watched(watch) == SERVING


async def test_only_an_engine_that_hangs_is_not_alive(service: Service, engine: FakeEngine) -> None:
    watch = service.health.Watch(health_pb2.HealthCheckRequest(service=LIVENESS))
    assert await watched(watch) == SERVING
    engine.enter(EngineState.STALLED)
    assert await watched(watch) == NOT_SERVING
    assert set((await statuses(service)).values()) == {SERVING, NOT_SERVING}
    engine.enter(EngineState.READY)
    assert await watched(watch) == SERVING


async def test_during_the_drain_delay_health_is_not_serving_and_new_requests_are_served(start: Any) -> None:
    service = await start(FakeEngine(script=say("x")), service_config(drain_delay=3600.0))
    watch = service.health.Watch(health_pb2.HealthCheckRequest())
    assert await watched(watch) == SERVING
    service.server.stop()
    assert await watched(watch) == NOT_SERVING
    assert await statuses(service) == dict.fromkeys(("", GENERATION, TOKENIZER, MODEL), NOT_SERVING) | ALIVE
    assert (await service.generation.Generate(generate_request())).sequences[0].text == "x"
    assert (await service.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text="a"))).tokens
    # A second signal ends it.
    service.server.stop()
    await check_end(service, watch)


async def test_the_drain_delay_ends_by_itself(start: Any) -> None:
    service = await start(FakeEngine(script=say("x")), service_config(drain_delay=0.1))
    watch = service.health.Watch(health_pb2.HealthCheckRequest())
    assert await watched(watch) == SERVING
    service.server.stop()
    assert await watched(watch) == NOT_SERVING
    await check_end(service, watch)


async def check_end(service: Service, watch: Any) -> None:
    async with asyncio.timeout(20):
        await service.serving
    assert (await failure(watch)).code is grpc.StatusCode.UNAVAILABLE
    assert await service.generation.Generate(generate_request()).code() is grpc.StatusCode.UNAVAILABLE


async def test_the_health_port_answers_health_checks_alone(start: Any, tmp_path: Path) -> None:
    callers = tmp_path / "callers.toml"
    callers.write_text("")
    config = service_config(health_port=0, security=SecurityConfig(callers=callers))
    service = await start(FakeEngine(), config)
    assert service.server.health_port not in (None, 0, service.server.port)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.server.health_port}") as channel:
        probed = replace(service, channel=channel)
        assert await statuses(probed) == await statuses(service)
        unknown = await failure(probed.health.Check(health_pb2.HealthCheckRequest(service="nobody")))
        assert unknown.code is grpc.StatusCode.NOT_FOUND
        # Nothing is written: a client that comes too late with its message says INTERNAL, whatever the server said.
        stream: Any = channel.stream_stream("/tokenwire.v1.GenerationService/GenerateStream")
        assert await stream().code() is grpc.StatusCode.UNIMPLEMENTED
        service.server.stop()
        service.server.stop()
        await service.serving
        closed = probed.health.Check(health_pb2.HealthCheckRequest())
        assert await closed.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_health_port_in_use_is_an_error_of_the_settings(service: Service) -> None:
    port = service.server.port
    message = rf"^health_port: cannot listen on 127\.0\.0\.1:{port}: the port is in use$"
    with pytest.raises(ConfigurationError, match=message):
        async with running(FakeEngine(), service_config(health_port=port)):
            pass


async def test_unknown_service(service: Service) -> None:
    failed = await failure(service.health.Check(health_pb2.HealthCheckRequest(service="nobody")))
    assert failed.code is grpc.StatusCode.NOT_FOUND
    watch = service.health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
    assert await watched(watch) == SERVICE_UNKNOWN
    next_status = asyncio.ensure_future(watched(watch))
    await statuses(service)
    assert not next_status.done()
    watch.cancel()
    await asyncio.wait({next_status})
    assert next_status.cancelled()


async def test_an_engine_that_stays_down_ends_the_server() -> None:
    engine = FakeEngine()
    with pytest.raises(EngineLostError):
        await _lose(engine)


async def _lose(engine: FakeEngine) -> None:
    async with running(engine) as service:
        call = service.generation.Generate(generate_request())
        await engine.submitted.get()
        engine.die()
        assert (await failure(call)).code is grpc.StatusCode.UNAVAILABLE
        engine.enter(EngineState.STOPPED)
        await asyncio.wait({service.serving})
