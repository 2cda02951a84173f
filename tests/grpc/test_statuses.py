"""One table from errors to statuses: code, google.rpc details, request id; never UNKNOWN, nothing internal."""

import asyncio
import logging
import re
from typing import Any

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine, FakeStream, model_info, say
from google.rpc import error_details_pb2, status_pb2
from harness import Service
from test_calls import conversation, generate_request

from tokenwire import errors
from tokenwire.statuses import STATUSES
from tokenwire.v1 import generation_service_pb2, model_service_pb2, tokenizer_service_pb2

DETAIL_TYPES = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.QuotaFailure,
)


class PanicException(BaseException):
    pass


class Failed:
    """A refused call: its status, and its details by type."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details()
        self.trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
        self.status = status_pb2.Status.FromString(self.trailing["grpc-status-details-bin"])
        self.details: dict[str, Any] = {}
        for packed in self.status.details:
            for kind in DETAIL_TYPES:
                detail = kind()
                if packed.Unpack(detail):
                    self.details[kind.DESCRIPTOR.name] = detail

    @property
    def fields(self) -> set[str]:
        return {violation.field for violation in self.details["BadRequest"].field_violations}


async def failure(call: Any) -> Failed:
    """How ``call``, an awaitable or a stream, fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await to_the_end(call)
    return Failed(caught.value)


async def to_the_end(call: Any) -> None:
    if hasattr(call, "__await__"):
        await call
    else:
        while await call.read() is not grpc.aio.EOF:
            pass


def check_common(failed: Failed, reason: str) -> None:
    assert failed.status.code == failed.code.value[0]
    assert failed.status.message == failed.message
    info = failed.details["ErrorInfo"]
    assert (info.domain, info.reason) == ("tokenwire", reason)
    assert info.metadata["request_id"] == failed.trailing["x-request-id"]


async def test_invalid_request(service: Service) -> None:
    failed = await failure(service.generation.Generate(generate_request("", top_p=2.0, max_new_tokens=0)))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    check_common(failed, "INVALID_REQUEST")
    assert failed.fields == {"prompt.text", "generation_config.top_p", "generation_config.max_new_tokens"}
    assert failed.details["ErrorInfo"].metadata["violation_count"] == "3"
    assert all(field in failed.message for field in failed.fields)


async def test_thousands_of_violations_fit_the_trailing_metadata(service: Service) -> None:
    messages = [("nobody" * 50, "x")] * 1000
    request = generation_service_pb2.ChatRequest(conversation=conversation(*messages))
    failed = await failure(service.generation.Chat(request))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.details["ErrorInfo"].metadata["violation_count"] == "1000"
    assert "conversation.messages[0].role" in failed.fields


async def test_unknown_model(service: Service) -> None:
    for call in (
        service.generation.Generate(generation_service_pb2.GenerateRequest(model="gpt-5")),
        service.generation.GenerateStream(generation_service_pb2.GenerateRequest(model="gpt-5")),
        service.generation.GenerateBatch(generation_service_pb2.GenerateBatchRequest(model="gpt-5")),
        service.generation.Chat(generation_service_pb2.ChatRequest(model="gpt-5")),
        service.generation.ChatStream(generation_service_pb2.ChatRequest(model="gpt-5")),
        service.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(model="gpt-5")),
        service.tokenizer.Detokenize(tokenizer_service_pb2.DetokenizeRequest(model="gpt-5")),
        service.tokenizer.RenderChat(tokenizer_service_pb2.RenderChatRequest(model="gpt-5")),
        service.model.GetModel(model_service_pb2.GetModelRequest(model="gpt-5")),
    ):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.NOT_FOUND
        check_common(failed, "MODEL_NOT_FOUND")
        assert failed.details["ErrorInfo"].metadata["served"] == "fake"


async def test_chat_without_template(start: Any) -> None:
    service = await start(FakeEngine(model_info(chat_templates={})))
    for call in (
        service.generation.Chat(generation_service_pb2.ChatRequest(conversation=conversation(("user", "hi")))),
        service.generation.ChatStream(generation_service_pb2.ChatRequest()),
        service.tokenizer.RenderChat(tokenizer_service_pb2.RenderChatRequest()),
    ):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
        check_common(failed, "NO_CHAT_TEMPLATE")
    assert not (await service.model.GetModel(model_service_pb2.GetModelRequest())).model.has_chat_template


async def test_messages_that_the_template_refuses(service: Service) -> None:
    request = generation_service_pb2.ChatRequest(conversation=conversation(("user", "refuse me")))
    failed = await failure(service.generation.Chat(request))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.fields == {"conversation"}
    assert "this model refuses that" in failed.message


async def test_queue_full(start: Any) -> None:
    service = await start(FakeEngine(capacity=1))
    holder = service.generation.Generate(generate_request())
    stream = await service.engine.submitted.get()
    for call in (
        service.generation.Generate(generate_request()),
        service.generation.GenerateStream(generate_request()),
        service.generation.GenerateBatch(
            generation_service_pb2.GenerateBatchRequest(prompts=[generation_service_pb2.Prompt(text="a")])
        ),
    ):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        check_common(failed, "QUEUE_FULL")
        assert failed.details["RetryInfo"].retry_delay.ToMilliseconds() == 50
        assert failed.details["QuotaFailure"].violations[0].subject == "queue"
        assert failed.trailing["grpc-retry-pushback-ms"] == "50"
    stream.answer("x")
    assert (await holder).sequences[0].text == "x"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.RowFailedError("NaN in /secret/path"), grpc.StatusCode.INTERNAL, "ROW_FAILED"),
        (errors.StepFailedError("RuntimeError: /secret/path"), grpc.StatusCode.INTERNAL, "STEP_FAILED"),
        (PanicException("secret"), grpc.StatusCode.INTERNAL, "INTERNAL"),
        (errors.RequestAbortedError("secret"), grpc.StatusCode.CANCELLED, "CANCELLED"),
        (ValueError("secret"), grpc.StatusCode.INTERNAL, "INTERNAL"),
        (asyncio.CancelledError("secret"), grpc.StatusCode.INTERNAL, "INTERNAL"),
        (RecursionError("secret"), grpc.StatusCode.INTERNAL, "INTERNAL"),
        (MemoryError("secret"), grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_failures_inside_show_nothing(
    service: Service, engine: FakeEngine, error: Any, code: grpc.StatusCode, reason: str, streaming: bool
) -> None:
    engine.script = lambda stream: stream.fail(error)
    call = service.generation.GenerateStream if streaming else service.generation.Generate
    failed = await failure(call(generate_request()))
    assert failed.code is code
    check_common(failed, reason)
    shown = failed.status.SerializeToString() + failed.message.encode()
    assert b"secret" not in shown
    assert type(error).__name__.encode() not in shown
    engine.script = say("after")
    assert (await service.generation.Generate(generate_request())).sequences[0].text == "after"


async def test_engine_death_ends_streams_with_unavailable(service: Service, engine: FakeEngine) -> None:
    call = service.generation.GenerateStream(generate_request())
    stream = await engine.submitted.get()
    stream.push("a", [97])
    assert (await call.read()).HasField("start")
    assert (await call.read()).delta.text == "a"
    engine.die()
    failed = await failure(call)
    assert failed.code is grpc.StatusCode.UNAVAILABLE
    check_common(failed, "ENGINE_UNAVAILABLE")
    assert failed.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    failed = await failure(service.generation.Generate(generate_request()))
    assert failed.code is grpc.StatusCode.UNAVAILABLE


async def test_a_sequence_without_a_finish_is_an_error(service: Service, engine: FakeEngine) -> None:
    def end_without_finish(stream: FakeStream) -> None:
        stream.push("a", [97])
        stream.finished = True

    engine.script = end_without_finish
    for call in (service.generation.Generate, service.generation.GenerateStream):
        assert (await failure(call(generate_request()))).code is grpc.StatusCode.INTERNAL


async def test_message_too_large(service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text="x" * (5 << 20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x12\x7f", b"\x0a\xff\xff\xff\xff\x0f"])
@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "GenerateBatch", "Chat", "ChatStream"])
async def test_undecodable_bytes(service: Service, method: str, data: bytes) -> None:
    path = f"/tokenwire.v1.GenerationService/{method}"
    multicallable: Any = service.channel.unary_stream(path, None, None)
    failed = await failure(multicallable(data))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    check_common(failed, "INVALID_REQUEST")
    assert failed.fields == {"request"}
    assert "DecodeError" not in failed.message


async def test_unimplemented_method(service: Service) -> None:
    for path in ("/tokenwire.v1.GenerationService/Dream", "/nobody/Knows", "/grpc.health.v1.Health/Dream"):
        call: Any = service.channel.unary_unary(path, None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-123", True), ("a" * 129, False), ("a b", False), ("x;y", False), ("", False)]
)
async def test_request_id(service: Service, engine: FakeEngine, sent: str, kept: bool) -> None:
    engine.script = say("x")
    call = service.generation.Generate(generate_request(), metadata=(("x-request-id", sent),))
    answer = await call
    returned = dict(await call.trailing_metadata())["x-request-id"]
    assert answer.start.request_id == returned
    assert (returned == sent) is kept
    assert re.fullmatch(r"[\w-]{1,128}", returned)


def test_every_request_error_is_in_the_table() -> None:
    def leaves(kind: type[Exception]) -> list[type[Exception]]:
        below = kind.__subclasses__()
        return [leaf for child in below for leaf in leaves(child)] if below else [kind]

    assert {*leaves(errors.RequestError), errors.EngineUnavailableError} == set(STATUSES)


@pytest.mark.parametrize(
    ("error", "level", "cause", "has_trace"),
    [
        (errors.RowFailedError("the logits\nhold NaN"), logging.ERROR, "the logits hold NaN", False),
        (errors.StepFailedError("RuntimeError: x"), logging.ERROR, "RuntimeError: x", False),
        (errors.QueueFullError(1, 1.0), logging.INFO, None, False),
        (KeyError("x"), logging.ERROR, None, True),
    ],
)
async def test_the_log_line_of_a_request_says_why_the_service_failed(
    service: Service,
    engine: FakeEngine,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    level: int,
    cause: str | None,
    has_trace: bool,
) -> None:
    engine.script = lambda stream: stream.fail(error)
    with caplog.at_level(logging.INFO, "tokenwire"):
        failed = await failure(service.generation.Generate(generate_request()))
    (line,) = [record for record in caplog.records if record.levelno == level and hasattr(record, "fields")]
    fields: dict[str, object] = line.__dict__["fields"]
    assert fields["request_id"] == failed.trailing["x-request-id"]
    assert fields.get("cause") == cause
    assert bool(line.exc_info) is has_trace
