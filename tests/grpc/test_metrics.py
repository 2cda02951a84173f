"""The metrics of a running server: what calls leave behind in them, and the port that they have."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import resuming
from fakes import FakeEngine, say
from grpc_health.v1 import health_pb2
from harness import Service, service_config
from resuming import MINE, Answer, cancel, keeping, read, resumable, resume, retention
from scrapes import Scrape, scraped, until
from test_calls import conversation, generate_request
from test_statuses import failure

from tokenwire.config import LimitsConfig, SecurityConfig, ServiceConfig, TelemetryConfig
from tokenwire.engine.handle import EngineState
from tokenwire.errors import ConfigurationError, EngineUnavailableError, QueueTimeoutError, StepFailedError
from tokenwire.telemetry import exposition
from tokenwire.telemetry.metrics import METRICS
from tokenwire.telemetry.snapshots import ScrapeError
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1 import tokenizer_service_pb2

Start = Callable[..., Awaitable[Service]]

GENERATE = "tokenwire.v1.GenerationService/Generate"
STREAM = "tokenwire.v1.GenerationService/GenerateStream"


def with_metrics(**settings: Any) -> ServiceConfig:
    return replace(service_config(**settings), telemetry=TelemetryConfig(metrics_port=0))


async def metrics_of(service: Service) -> Scrape:
    return await scraped(service.server.metrics_address)


async def test_there_is_no_port_by_default(start: Start) -> None:
    service = await start(FakeEngine())
    assert service.server.metrics_address is None


async def test_calls_are_counted_by_method_and_code(start: Start) -> None:
    service = await start(FakeEngine(script=say("four")), with_metrics())
    await service.generation.Generate(generate_request("hello"))
    async for _ in service.generation.GenerateStream(generate_request("hello")):
        pass
    with pytest.raises(grpc.aio.AioRpcError):
        await service.generation.Generate(pb.GenerateRequest())
    found = await metrics_of(service)
    assert found.value("tokenwire_requests_total", method=GENERATE, code="OK") == 1
    assert found.value("tokenwire_requests_total", method=STREAM, code="OK") == 1
    assert found.value("tokenwire_requests_total", method=GENERATE, code="INVALID_ARGUMENT") == 1
    (error,) = found.labels("tokenwire_errors_total")
    assert error["code"] == "INVALID_ARGUMENT"
    # Five tokens each: four of text and the end.
    assert found.value("tokenwire_generation_tokens_total") == 10
    assert found.value("tokenwire_prompt_tokens_total") == 2 * len("hello")
    assert found.value("tokenwire_sequences_total", reason="eos") == 2
    for name, count in {"time_to_first_token": 2, "inter_token": 8, "request": 2, "queue": 2, "decode": 2}.items():
        assert found.value(f"tokenwire_{name}_seconds_count") == count, name
    assert found.value("tokenwire_queue_seconds_sum") == pytest.approx(0.002)


async def test_items_of_a_batch_count_as_requests_of_their_own(start: Start) -> None:
    service = await start(FakeEngine(script=say("four")), with_metrics())
    prompts = [pb.Prompt(text="a"), pb.Prompt(text="b" * 1000), pb.Prompt(text="c")]
    await service.generation.GenerateBatch(pb.GenerateBatchRequest(prompts=prompts))
    found = await metrics_of(service)
    assert found.value("tokenwire_time_to_first_token_seconds_count") == 2
    assert found.value("tokenwire_inter_token_seconds_count") == 8
    assert found.value("tokenwire_request_seconds_count") == 1
    assert [labels["code"] for labels in found.labels("tokenwire_errors_total")] == ["INVALID_ARGUMENT"]


async def test_a_metric_has_a_method_only_where_there_is_one(start: Start) -> None:
    """What a client makes up leaves nothing behind."""
    service = await start(FakeEngine(script=say("x")), with_metrics())
    for path in ("/tokenwire.v1.GenerationService/Invented", "/no.Such/Method"):
        with pytest.raises(grpc.aio.AioRpcError):
            await service.channel.unary_unary(path)(b"")
    await service.generation.Generate(generate_request())
    found = await metrics_of(service)
    assert [labels["method"] for labels in found.labels("tokenwire_requests_total")] == [GENERATE]


async def test_what_waits_runs_and_is_refused(start: Start) -> None:
    engine = FakeEngine()
    limits = LimitsConfig(max_queued=1)
    service = await start(engine, with_metrics(max_running=1, limits=limits))
    running = asyncio.ensure_future(service.generation.Generate(generate_request("hello")))
    stream = await engine.submitted.get()
    waiting = asyncio.ensure_future(service.generation.Generate(generate_request("hello")))
    assert service.server.backend is not None
    async with asyncio.timeout(20):
        while not service.server.backend.admission.num_waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.generation.Generate(generate_request())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = await metrics_of(service)
    assert found.value("tokenwire_requests_running") == 1
    assert found.value("tokenwire_requests_waiting") == 1
    assert found.value("tokenwire_requests_waiting_tokens") == len("hello")
    assert found.value("tokenwire_admission_refusals_total", reason="QUEUE_FULL", priority="normal") == 1
    stream.answer("x")
    await running
    (await engine.submitted.get()).answer("x")
    await waiting
    found = await metrics_of(service)
    assert found.value("tokenwire_requests_running") == found.value("tokenwire_requests_waiting") == 0


async def test_what_ran_is_no_refusal_where_the_engine_ends(start: Start) -> None:
    """Only what asked for generation and got no token of it: one that waits, one that came too late, and an item."""
    engine = FakeEngine()
    service = await start(engine, with_metrics())
    begun = service.generation.GenerateStream(generate_request())
    stream = await engine.submitted.get()
    stream.push("a", [97])
    await begun.read()
    await begun.read()
    unbegun = asyncio.ensure_future(failure(service.generation.Generate(generate_request())))
    await engine.submitted.get()
    prompts = [pb.Prompt(text="a"), pb.Prompt(text="b")]
    batch = asyncio.ensure_future(service.generation.GenerateBatch(pb.GenerateBatchRequest(prompts=prompts)))
    (await engine.submitted.get()).push("a", [97])
    await engine.submitted.get()
    await until(service.server.metrics_address, lambda found: found.value("tokenwire_generation_tokens_total") == 2)
    engine.die()
    await failure(begun)
    await unbegun
    await batch
    await failure(service.generation.ChatStream(pb.ChatRequest(conversation=conversation(("user", "hi")))))
    assert unavailable(await metrics_of(service)) == (5, 3)


async def test_only_a_request_for_generation_is_refused(start: Start) -> None:
    service = await start(FakeEngine(load=asyncio.Event()), with_metrics(), until_ready=False)
    await failure(service.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text="hi")))
    assert unavailable(await metrics_of(service)) == (1, 0)
    await failure(service.generation.Generate(generate_request()))
    assert unavailable(await metrics_of(service)) == (2, 1)


def unavailable(found: Scrape) -> tuple[float, float]:
    """Errors and refusals because there was no engine."""
    labels = {"reason": "ENGINE_UNAVAILABLE"}
    return (
        found.value("tokenwire_errors_total", code="UNAVAILABLE", **labels),
        found.value("tokenwire_admission_refusals_total", priority="normal", **labels),
    )


async def test_health_checks_are_in_no_metric(start: Start) -> None:
    service = await start(FakeEngine(script=say("x")), with_metrics())
    await service.health.Check(health_pb2.HealthCheckRequest())
    await failure(service.health.Check(health_pb2.HealthCheckRequest(service="nobody")))
    await service.generation.Generate(generate_request())
    found = await metrics_of(service)
    assert [labels["method"] for labels in found.labels("tokenwire_requests_total")] == [GENERATE]
    assert found.labels("tokenwire_errors_total") == []


async def test_a_call_that_its_client_cancelled_is_no_error(start: Start) -> None:
    service = await start(FakeEngine(), with_metrics())
    call = service.generation.GenerateStream(generate_request())
    await service.engine.submitted.get()
    call.cancel()
    ended = {"method": STREAM, "code": "CANCELLED"}
    found = await until(
        service.server.metrics_address, lambda found: found.value("tokenwire_requests_total", **ended) == 1
    )
    assert found.labels("tokenwire_errors_total") == []


async def test_a_slow_reader_that_is_cut_off_is_counted(start: Start) -> None:
    engine = FakeEngine()
    service = await start(engine, with_metrics(slow_reader_timeout=0.3))
    slow = service.generation.GenerateStream(generate_request())
    stream = await engine.submitted.get()
    for _ in range(64):
        stream.push("x" * 65_536, [1])
    await asyncio.wait_for(stream.closed.wait(), 60)
    found = await until(service.server.metrics_address, lambda scrape: scrape.value("tokenwire_slow_readers_total") > 0)
    assert found.value("tokenwire_slow_readers_total") == 1
    assert found.value("tokenwire_errors_total", code="RESOURCE_EXHAUSTED", reason="SLOW_READER") == 1
    slow.cancel()


async def test_kept_streams_are_counted(start: Start) -> None:
    service = await start(FakeEngine(), with_metrics(limits=keeping()))
    call = service.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await service.engine.submitted.get()
    stream.push("a", [97])
    await read(call, Answer(), 2)
    found = await metrics_of(service)
    names = ("tokenwire_retained_streams", "tokenwire_retained_streams_unread")
    assert [found.value(name) for name in names] == [1, 0]
    assert found.value("tokenwire_retained_bytes") > 0
    call.cancel()
    await resuming.until(lambda: retention(service).num_unread == 1)
    found = await metrics_of(service)
    assert [found.value(name) for name in names] == [1, 1]
    await service.generation.CancelStream(cancel())
    found = await metrics_of(service)
    assert [found.value(name) for name in (*names, "tokenwire_retained_bytes")] == [0, 0, 0]


@pytest.mark.parametrize("is_begun", [False, True])
@pytest.mark.parametrize("read_by", ["nobody", "its own call", "another call"])
@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (StepFailedError("x"), "INTERNAL", "STEP_FAILED"),
        (QueueTimeoutError(1.0, 1.0), "RESOURCE_EXHAUSTED", "QUEUE_TIMEOUT"),
        (EngineUnavailableError("x", 1.0), "UNAVAILABLE", "ENGINE_UNAVAILABLE"),
    ],
)
async def test_a_kept_stream_fails_once_however_many_calls_are_told(
    start: Start, is_begun: bool, read_by: str, error: Exception, code: str, reason: str
) -> None:
    service = await start(FakeEngine(), with_metrics(limits=keeping()))
    call = service.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await service.engine.submitted.get()
    if is_begun:
        stream.push("a", [97])
    await read(call, Answer(), 1 + is_begun)
    if read_by != "its own call":
        call.cancel()
        await resuming.until(lambda: retention(service).num_unread == 1)
    if read_by == "another call":
        call = service.generation.ResumeStream(resume())
        await read(call, Answer(), 1 + is_begun)
    stream.fail(error)
    if read_by != "nobody":
        await failure(call)
    address = service.server.metrics_address
    found = await until(address, lambda found: found.value("tokenwire_errors_total", code=code, reason=reason) == 1)
    for _ in range(2):
        assert (await failure(service.generation.ResumeStream(resume()))).details["ErrorInfo"].reason == reason
    found = await metrics_of(service)
    assert found.value("tokenwire_errors_total", code=code, reason=reason) == 1
    assert len(found.labels("tokenwire_errors_total")) == 1
    refused = found.value("tokenwire_admission_refusals_total", reason=reason, priority="normal")
    assert refused == (reason != "STEP_FAILED" and not is_begun)


async def test_files_that_cannot_be_reloaded_are_counted(start: Start, tmp_path: Path) -> None:
    callers = tmp_path / "callers.toml"
    callers.write_text("")
    service = await start(FakeEngine(), with_metrics(security=SecurityConfig(callers=callers)))
    name = "tokenwire_reloads_total"

    def counts(found: Scrape) -> tuple[float, float]:
        return found.value(name, what="callers", result="ok"), found.value(name, what="callers", result="failed")

    assert counts(await metrics_of(service)) == (0, 0)
    callers.write_text("[nonsense")
    service.server.refresh()
    await until(service.server.metrics_address, lambda found: counts(found) == (0, 1))
    callers.write_text("[defaults]\n")
    service.server.refresh()
    await until(service.server.metrics_address, lambda found: counts(found) == (1, 1))


@pytest.mark.parametrize("phase", ["importing", "loading"])
async def test_the_phase_of_start_up_is_in_metrics_and_health(start: Start, phase: str) -> None:
    engine = FakeEngine(load=asyncio.Event())
    engine.figures.begin_process()
    engine.figures.enter_phase(f"{phase} model on cpu")
    service = await start(engine, with_metrics(), until_ready=False)
    call = service.health.Check(health_pb2.HealthCheckRequest())
    assert (await call).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert dict(await call.trailing_metadata())["tokenwire-state"] == f"loading: {phase}"
    found = await metrics_of(service)
    assert [labels["phase"] for labels in found.labels("tokenwire_startup_phase_seconds")] == ["starting", phase]
    assert found.value("tokenwire_engine_state", state="loading") == 1
    assert found.value("tokenwire_serving") == 0


async def test_health_says_why(start: Start) -> None:
    engine = FakeEngine()
    service = await start(engine)

    async def state() -> str:
        call = service.health.Check(health_pb2.HealthCheckRequest(), metadata=(("x-request-id", "probe"),))
        await call
        returned = dict(await call.trailing_metadata())
        assert returned["x-request-id"] == "probe"
        return str(returned["tokenwire-state"])

    assert await state() == "ready"
    engine.enter(EngineState.STALLED)
    assert await state() == "stalled"


async def test_the_engines_state_and_health_are_told(start: Start) -> None:
    engine = FakeEngine()
    service = await start(engine, with_metrics())

    async def state() -> tuple[str, float]:
        found = await metrics_of(service)
        name = "tokenwire_engine_state"
        (now,) = [labels["state"] for labels in found.labels(name) if found.value(name, **labels)]
        return now, found.value("tokenwire_serving")

    assert await state() == ("ready", 1)
    engine.enter(EngineState.STALLED)
    assert await state() == ("stalled", 0)
    engine.enter(EngineState.READY)
    assert await state() == ("ready", 1)


async def test_every_metric_is_there_from_the_start_and_no_other(start: Start) -> None:
    service = await start(FakeEngine(script=say("x")), with_metrics())
    found = await metrics_of(service)
    families = found.families
    own = {name for name in families if not name.startswith("process_")}
    assert own == {metric.name for metric in METRICS}
    for metric in METRICS:
        family = families[metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
    assert found.value("process_resident_memory_bytes") > 0
    assert found.value("process_open_fds") > 0


async def test_a_port_in_use_is_one_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = replace(service_config(), telemetry=TelemetryConfig(metrics_port=port))
        with pytest.raises(ConfigurationError, match=rf"metrics_port: cannot listen on 127.0.0.1:{port}: the port is"):
            await start(FakeEngine(), config)


@pytest.mark.parametrize("sent", [b"", b"x"], ids=["nothing", "one byte after the other"])
async def test_it_answers_again_once_connections_are_timed_out(
    start: Start, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A connection whose request does not come to an end is closed after a while, and makes room."""
    monkeypatch.setattr(exposition, "REQUEST_TIMEOUT_S", 1.0)
    service = await start(FakeEngine(), with_metrics())
    host, _, port = str(service.server.metrics_address).rpartition(":")
    held = [socket.create_connection((host, int(port))) for _ in range(2 * exposition.MAX_CONNECTIONS)]
    try:
        found = None
        async with asyncio.timeout(60):
            while found is None:
                for connection in held:
                    with suppress(OSError):
                        connection.send(sent)
                try:
                    found = await metrics_of(service)
                except ScrapeError:
                    await asyncio.sleep(0.05)
        assert found.value("tokenwire_serving") == 1
    finally:
        for connection in held:
            connection.close()
