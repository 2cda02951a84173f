"""The line that every call ends with in the log."""

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from io import StringIO
from typing import Any

import grpc.aio
import pytest
from fakes import FakeEngine, say
from harness import Service, service_config
from test_calls import generate_request

from tokenwire import logs
from tokenwire.config import LimitsConfig, LogConfig, ServiceConfig, TelemetryConfig
from tokenwire.telemetry import tracing
from tokenwire.v1 import generation_service_pb2 as pb

Start = Callable[..., Awaitable[Service]]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
METADATA = (("x-request-id", "abc"), ("traceparent", f"00-{TRACE}-{PARENT}-01"))


class Log:
    """What is written as JSON while a test runs."""

    def __init__(self) -> None:
        self._stream = StringIO()
        root = logging.getLogger()
        self._before = root.handlers, root.level
        logs.configure(LogConfig(log_format="json"), self._stream)

    def request(self) -> dict[str, Any]:
        """The one line of a request."""
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        (found,) = [line for line in lines if line["event"] == "request"]
        return dict(found)

    def close(self) -> None:
        root = logging.getLogger()
        root.handlers, level = self._before
        root.setLevel(level)


@pytest.fixture
def log() -> Any:
    log = Log()
    yield log
    log.close()


async def test_it_has_ids_counts_and_times_and_no_content(start: Start, log: Log) -> None:
    service = await start(FakeEngine(script=say("marmalade")))
    await service.generation.Generate(generate_request("heliotrope"), metadata=METADATA)
    line = log.request()
    assert set(line) == {
        "time", "level", "logger", "event", "request_id", "method", "status", "trace_id", "prompt_tokens",
        "completion_tokens", "ttft_ms", "finish_reason", "queue_ms", "prefill_ms", "decode_ms", "duration_ms",
    }  # fmt: skip
    assert (line["request_id"], line["method"], line["status"]) == ("abc", "Generate", "OK")
    assert (line["trace_id"], line["finish_reason"]) == (TRACE, "eos")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (len("heliotrope"), len("marmalade") + 1)
    assert (line["queue_ms"], line["prefill_ms"], line["decode_ms"]) == (1, 2, 3)
    assert 0 <= line["ttft_ms"] <= line["duration_ms"]
    assert "heliotrope" not in json.dumps(line)


async def test_a_traced_call_names_its_span(start: Start, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
    telemetry = TelemetryConfig(otlp_endpoint="http://127.0.0.1:9")
    config: ServiceConfig = replace(service_config(), telemetry=telemetry)
    service = await start(FakeEngine(script=say("x")), config)
    call = service.generation.Generate(generate_request(), metadata=METADATA)
    await call
    line = log.request()
    _, trace_id, span_id, _ = dict(await call.trailing_metadata())["traceparent"].split("-")
    assert (line["trace_id"], line["span_id"]) == (trace_id, span_id)
    assert trace_id == TRACE
    assert span_id != PARENT


async def test_a_call_that_fails_says_why(start: Start, log: Log) -> None:
    service = await start(FakeEngine())
    with pytest.raises(grpc.aio.AioRpcError):
        await service.generation.Generate(pb.GenerateRequest(), metadata=METADATA)
    line = log.request()
    assert (line["status"], line["request_id"]) == ("INVALID_ARGUMENT", "abc")
    assert line["reason"]
    assert "finish_reason" not in line


@pytest.mark.parametrize(
    ("method", "size", "metadata_size", "code"),
    [
        ("Generated", 0, 0, grpc.StatusCode.UNIMPLEMENTED),
        ("Generate", 5000, 0, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("Generate", 0, 5000, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_grpc_refuses_has_no_line_and_no_id(
    start: Start, log: Log, method: str, size: int, metadata_size: int, code: grpc.StatusCode
) -> None:
    limits = LimitsConfig(max_message_bytes=4096)
    service = await start(FakeEngine(script=say("x")), service_config(limits, max_metadata_bytes=2048))
    call: Any = service.channel.unary_unary(f"/tokenwire.v1.GenerationService/{method}", None, None)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"x" * size, metadata=(("x-request-id", "refused"), ("x-much", "x" * metadata_size)))
    assert refused.value.code() is code
    assert "x-request-id" not in dict(refused.value.trailing_metadata() or ())
    # The one line is that of the call behind it.
    await service.generation.Generate(generate_request(), metadata=METADATA)
    assert log.request()["request_id"] == "abc"
