"""Traces of calls, taken by a collector over its own protocol; and what happens to calls when it takes nothing."""

import asyncio
import itertools
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from collector import Collector, Received, collecting
from fakes import FakeEngine, say
from harness import Service, open_channel, service_config
from resuming import MINE, Answer, keeping, read, resumable, resume, retention, until
from test_calls import generate_request

from tokenwire.config import ServiceConfig, TelemetryConfig
from tokenwire.errors import ConfigurationError
from tokenwire.server import Server, _in_daemon
from tokenwire.telemetry import tracing
from tokenwire.telemetry.occasionally import _Occasionally
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1 import generation_service_pb2_grpc

Start = Callable[..., Awaitable[Service]]

SERVER, INTERNAL = 2, 1
ERROR = 2
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collected() -> Iterator[tuple[Collector, str]]:
    with collecting() as (collector, endpoint):
        yield collector, endpoint


def traced(endpoint: str, ratio: float = 1.0) -> ServiceConfig:
    return replace(service_config(), telemetry=TelemetryConfig(otlp_endpoint=endpoint, trace_ratio=ratio))


def named(spans: list[Received], name: str) -> Received:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_a_call_is_a_span_with_queue_prefill_and_decode_below_it(
    start: Start, collected: tuple[Collector, str]
) -> None:
    collector, endpoint = collected
    engine = FakeEngine()
    service = await start(engine, traced(endpoint))
    before = time.time_ns()
    sent = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=1"), ("x-request-id", "abc"))
    request = generate_request("heliotrope", temperature=0.5, top_k=7, seed=3, max_new_tokens=9)
    call = service.generation.Generate(request, metadata=sent)
    answering = asyncio.ensure_future(call)
    stream = await engine.submitted.get()
    stream.finish_changes = {"queue_ms": 4.0, "prefill_ms": 8.0, "decode_ms": 16.0}
    await asyncio.sleep(0.05)  # longer than what the engine says that it took
    stream.answer("marmalade")
    await answering
    spans = await asyncio.to_thread(collector.until, 4)
    front = named(spans, "tokenwire.v1.GenerationService/Generate")
    children = [named(spans, name) for name in ("queue", "prefill", "decode")]
    assert (front.kind, front.trace_id, front.parent_id) == (SERVER, TRACE, PARENT)
    assert front.trace_state == "vendor=1"
    returned = dict(await call.trailing_metadata())
    assert returned["traceparent"] == f"00-{TRACE}-{front.span_id}-01"
    assert returned["tracestate"] == "vendor=1"
    assert front.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "tokenwire.v1.GenerationService/Generate",
        "rpc.response.status_code": "OK",
        "tokenwire.request_id": "abc",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "tokenwire",
        "gen_ai.request.model": "fake",
        "gen_ai.response.model": "fake",
        "gen_ai.response.id": "abc",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.input_tokens": len("heliotrope"),
        "gen_ai.usage.output_tokens": len("marmalade") + 1,
        "gen_ai.response.finish_reasons": ["eos"],
    }
    assert front.resource["service.name"] == "tokenwire"
    assert before <= front.start_ns <= children[0].start_ns
    for child, milliseconds in zip(children, (4, 8, 16), strict=True):
        assert (child.kind, child.trace_id, child.parent_id) == (INTERNAL, TRACE, front.span_id)
        assert child.end_ns - child.start_ns == pytest.approx(milliseconds * 1e6, abs=1000)
    for earlier, later in itertools.pairwise(children):
        assert earlier.end_ns == later.start_ns
    assert children[-1].end_ns <= front.end_ns <= time.time_ns()
    assert children[1].attributes["gen_ai.usage.input_tokens"] == len("heliotrope")
    assert children[2].attributes["gen_ai.usage.output_tokens"] == len("marmalade") + 1
    for text in ("heliotrope", "marmalade"):
        assert text.encode() not in collector.raw


async def test_what_a_stream_does_after_its_call_has_no_spans(
    start: Start, collected: tuple[Collector, str], caplog: pytest.LogCaptureFixture
) -> None:
    collector, endpoint = collected
    service = await start(FakeEngine(), replace(traced(endpoint), limits=keeping()))
    call = service.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await service.engine.submitted.get()
    call.cancel()
    await until(lambda: retention(service).num_unread == 1)
    stream.answer("x")
    with caplog.at_level(logging.INFO, "tokenwire.requests"):
        assert await read(service.generation.ResumeStream(resume()), Answer())
        answering = asyncio.ensure_future(service.generation.Generate(generate_request()))
        (await service.engine.submitted.get()).answer("x")
        await answering
    # Spans leave in the order in which they end.
    spans = await asyncio.to_thread(collector.until, 6)
    last = named(spans, "tokenwire.v1.GenerationService/Generate")
    others = [span.name.rpartition("/")[2] for span in spans if span.trace_id != last.trace_id]
    assert sorted(others) == ["GenerateStream", "ResumeStream"]
    lines = [record.__dict__["fields"] for record in caplog.records if record.message == "request"]
    (resumed,) = [line for line in lines if line["method"] == "ResumeStream"]
    assert not {"completion_tokens", "finish_reason"} & set(resumed)


async def test_each_sequence_of_a_stream_has_its_own_spans(start: Start, collected: tuple[Collector, str]) -> None:
    collector, endpoint = collected
    service = await start(FakeEngine(script=say("x")), traced(endpoint))
    request = generate_request("hi", num_return_sequences=2, do_sample=True)
    async for _ in service.generation.GenerateStream(request):
        pass
    spans = await asyncio.to_thread(collector.until, 7)
    front = named(spans, "tokenwire.v1.GenerationService/GenerateStream")
    assert front.attributes["gen_ai.response.finish_reasons"] == ["eos", "eos"]
    assert front.attributes["gen_ai.request.choice.count"] == 2
    for name in ("queue", "prefill", "decode"):
        children = [span for span in spans if span.name == name]
        assert sorted(span.attributes["tokenwire.sequence_index"] for span in children) == [0, 1]
        assert {span.parent_id for span in children} == {front.span_id}


async def test_a_cancelled_call_has_a_span_that_says_so(start: Start, collected: tuple[Collector, str]) -> None:
    collector, endpoint = collected
    engine = FakeEngine()
    service = await start(engine, traced(endpoint))
    call = service.generation.GenerateStream(generate_request())
    stream = await engine.submitted.get()
    call.cancel()
    await asyncio.wait_for(stream.closed.wait(), 60)
    (span,) = await asyncio.to_thread(collector.until, 1)
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"
    assert span.status != ERROR


@pytest.mark.parametrize("state", ["vendor=" + "x" * 600, "no pairs at all"])
async def test_a_trace_state_that_is_none_is_left_out(
    start: Start, collected: tuple[Collector, str], state: str
) -> None:
    _, endpoint = collected
    service = await start(FakeEngine(script=say("x")), traced(endpoint))
    sent = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", state))
    call = service.generation.Generate(generate_request(), metadata=sent)
    returned = dict(await call.trailing_metadata())
    assert returned["traceparent"].startswith(f"00-{TRACE}-")
    assert "tracestate" not in returned


async def test_a_child_never_ends_after_its_parent(start: Start, collected: tuple[Collector, str]) -> None:
    """Also where the engine's figures are longer than what has passed here."""
    collector, endpoint = collected
    engine = FakeEngine()
    service = await start(engine, traced(endpoint))
    answering = asyncio.ensure_future(service.generation.Generate(generate_request()))
    stream = await engine.submitted.get()
    stream.finish_changes = {"queue_ms": 1e6, "prefill_ms": 1e6, "decode_ms": 1e6}
    stream.answer("x")
    await answering
    spans = await asyncio.to_thread(collector.until, 4)
    front = named(spans, "tokenwire.v1.GenerationService/Generate")
    for span in spans:
        assert front.start_ns <= span.start_ns <= span.end_ns <= front.end_ns


async def test_errors_of_the_service_are_errors_and_those_of_callers_are_not(
    start: Start, collected: tuple[Collector, str]
) -> None:
    collector, endpoint = collected
    service = await start(FakeEngine(script=lambda stream: stream.fail(KeyError("secret"))), traced(endpoint))
    for request in (generate_request(), pb.GenerateRequest()):
        with pytest.raises(grpc.aio.AioRpcError):
            await service.generation.Generate(request)
    spans = await asyncio.to_thread(collector.until, 2)
    outcome = {span.attributes["rpc.response.status_code"]: span for span in spans}
    assert outcome["INTERNAL"].status == ERROR
    assert outcome["INTERNAL"].attributes["error.type"] == "INTERNAL"
    assert outcome["INVALID_ARGUMENT"].status != ERROR
    assert b"secret" not in collector.raw


async def test_the_caller_decides_what_is_traced(start: Start, collected: tuple[Collector, str]) -> None:
    """Without a word of the caller's, trace_ratio does. What is not traced passes its context on all the same."""
    collector, endpoint = collected
    service = await start(FakeEngine(script=say("x")), traced(endpoint, ratio=0.0))
    await service.generation.Generate(generate_request())
    quiet = service.generation.Generate(generate_request(), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),))
    assert dict(await quiet.trailing_metadata())["traceparent"].startswith(f"00-{TRACE}-")
    loud = service.generation.Generate(generate_request(), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),))
    await loud
    spans = await asyncio.to_thread(collector.until, 4)
    assert {span.trace_id for span in spans} == {TRACE}
    assert len(spans) == 4


async def test_health_checks_have_no_spans(start: Start, collected: tuple[Collector, str]) -> None:
    from grpc_health.v1 import health_pb2

    collector, endpoint = collected
    service = await start(FakeEngine(script=say("x")), traced(endpoint))
    await service.health.Check(health_pb2.HealthCheckRequest())
    await service.generation.Generate(generate_request())
    assert all("Health" not in span.name for span in await asyncio.to_thread(collector.until, 4))


async def serve_without_a_collector(start: Start, endpoint: str, count: int) -> float:
    """Seconds that ``count`` calls took."""
    service = await start(FakeEngine(script=say("x")), traced(endpoint))
    began = time.monotonic()
    for _ in range(count):
        assert (await service.generation.Generate(generate_request(), timeout=30)).sequences[0].text == "x"
    return time.monotonic() - began


@pytest.mark.parametrize("kind", ["refusing", "silent"])
async def test_a_collector_that_takes_nothing_is_none_of_the_calls_business(
    start: Start, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody listens there, or somebody who never answers: calls are served, and memory is bounded."""
    monkeypatch.setattr(tracing, "MAX_QUEUED_SPANS", 64)
    monkeypatch.setattr(tracing, "MAX_BATCH_SPANS", 16)
    monkeypatch.setattr(tracing, "FLUSH_S", 0.2)
    with socket.socket() as listener, caplog.at_level(logging.WARNING, "tokenwire.telemetry"):
        listener.bind(("127.0.0.1", 0))
        if kind == "silent":
            listener.listen()
        # A call that waited for the collector would take the timeout of an export, 5 s.
        count = 100
        assert await serve_without_a_collector(start, f"http://127.0.0.1:{listener.getsockname()[1]}", count) < 30
    # Of 400 spans that found no taker, not a line each.
    assert len([record for record in caplog.records if record.name == "tokenwire.telemetry"]) < 10


async def test_the_last_spans_go_out_at_the_end(
    collected: tuple[Collector, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector, endpoint = collected
    monkeypatch.setattr(tracing, "EXPORT_INTERVAL_S", 600.0)
    server = Server(traced(endpoint), lambda _: FakeEngine(script=say("x")))
    serving = asyncio.create_task(server.serve())
    await asyncio.wait_for(server.ready.wait(), 60)
    async with open_channel(server) as channel:
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        await stub.Generate(generate_request())
    server.stop()
    await asyncio.wait_for(serving, 60)
    assert len(collector.spans) == 4


async def test_a_second_signal_does_not_wait_for_a_silent_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 600.0)
    monkeypatch.setattr(tracing, "EXPORT_INTERVAL_S", 0.01)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = Server(traced(endpoint), lambda _: FakeEngine(script=say("x")))
        serving = asyncio.create_task(server.serve())
        await asyncio.wait_for(server.ready.wait(), 60)
        async with open_channel(server) as channel:
            stub = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
            await stub.Generate(generate_request())
        server.stop()
        server.stop()
        await asyncio.wait_for(serving, 60)


def test_a_line_that_repeats_is_written_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    handler = _Occasionally(lambda: now)
    record = logging.LogRecord("opentelemetry.sdk", logging.ERROR, "", 0, "cannot reach %s", ("host",), None)
    with caplog.at_level(logging.WARNING, "tokenwire.telemetry"):
        for _ in range(5):
            handler.emit(record)
        now = 60.0
        handler.emit(record)
    written = [each.getMessage() for each in caplog.records]
    assert written == [
        "opentelemetry: cannot reach host",
        "opentelemetry: cannot reach host (4 more like it before)",
    ]


async def test_traces_without_the_library_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tokenwire.telemetry.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"otlp_endpoint needs OpenTelemetry .*tokenwire\[telemetry\]"):
        await Server(traced("http://127.0.0.1:1"), lambda _: FakeEngine()).serve()


@pytest.mark.parametrize("error", [None, RuntimeError("the collector")])
async def test_the_end_waits_for_work_that_fails_no_longer_than_for_any_other(error: Exception | None) -> None:
    done = []

    def work() -> None:
        done.append(True)
        if error is not None:
            raise error

    async with asyncio.timeout(60):
        await _in_daemon(work)
    assert done


TLS = [
    f"OTEL_EXPORTER_OTLP_{part}{file}"
    for part in ("", "TRACES_")
    for file in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
]


@pytest.mark.parametrize(
    ("variable", "value", "scheme"),
    [
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc", "http"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "soon", "http"),
        *((variable, "/nonexistent/file.pem", "https") for variable in TLS),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/", "https"),
    ],
)
async def test_a_bad_variable_of_the_library_is_one_line(
    variable: str, value: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as refused:
        await Server(traced(f"{scheme}://127.0.0.1:9"), lambda _: FakeEngine()).serve()
    text = str(refused.value)
    assert text.startswith("otlp_endpoint: ")
    assert value in text
    assert variable in text or "OTEL_*" in text
    assert "\n" not in text
