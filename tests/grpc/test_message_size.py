"""Requests that are too large: what gRPC refuses by itself, and what the service does, as the proto says."""

from typing import Any

import grpc
import pytest
from fakes import FakeEngine, say
from harness import Service, service_config
from test_calls import generate_request
from test_statuses import failure

from tokenwire.config import LimitsConfig
from tokenwire.v1 import tokenizer_service_pb2
from tokenwire.validation import MIN_TEXT_BYTES

LIMIT = 2 * MIN_TEXT_BYTES


@pytest.fixture
async def service(start: Any) -> Service:
    started: Service = await start(FakeEngine(script=say("x")), service_config(LimitsConfig(max_message_bytes=LIMIT)))
    return started


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_message_above_the_limit_is_refused_without_details(service: Service, method: str) -> None:
    call = getattr(service.generation, method)(generate_request("x" * LIMIT))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Generate" else call.read())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-status-details-bin" not in dict(caught.value.trailing_metadata() or ())
    assert not service.engine.streams
    # The connection lives on.
    await service.generation.Generate(generate_request("x"))


@pytest.mark.parametrize(("size", "fits"), [(MIN_TEXT_BYTES, True), (MIN_TEXT_BYTES + 1, False)])
async def test_text_to_tokenize_has_at_least_its_size_whatever_the_context(
    service: Service, size: int, fits: bool
) -> None:
    """The context has 128 tokens of a byte each."""
    request = tokenizer_service_pb2.TokenizeRequest(text="x" * size)
    if fits:
        assert len((await service.tokenizer.Tokenize(request)).tokens) == size
        return
    failed = await failure(service.tokenizer.Tokenize(request))
    (violation,) = failed.details["BadRequest"].field_violations
    assert (failed.code, violation.field) == (grpc.StatusCode.INVALID_ARGUMENT, "text")
