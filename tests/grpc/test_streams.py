"""Who stops, when: cancel, deadline, slow readers. All waits are on events."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine
from harness import Service, service_config
from test_calls import conversation, generate_request
from test_statuses import failure, to_the_end

from tokenwire.v1 import generation_service_pb2


def calls(service: Service, **options: Any) -> dict[str, Any]:
    chat = generation_service_pb2.ChatRequest(conversation=conversation(("user", "hi")))
    batch = generation_service_pb2.GenerateBatchRequest(prompts=[generation_service_pb2.Prompt(text="a")])
    return {
        "Generate": lambda: service.generation.Generate(generate_request(), **options),
        "GenerateStream": lambda: service.generation.GenerateStream(generate_request(), **options),
        "GenerateBatch": lambda: service.generation.GenerateBatch(batch, **options),
        "Chat": lambda: service.generation.Chat(chat, **options),
        "ChatStream": lambda: service.generation.ChatStream(chat, **options),
    }


METHODS = ["Generate", "GenerateStream", "GenerateBatch", "Chat", "ChatStream"]


@pytest.mark.parametrize("method", METHODS)
async def test_cancel_frees_the_row(service: Service, engine: FakeEngine, method: str) -> None:
    call = calls(service)[method]()
    stream = await engine.submitted.get()
    call.cancel()
    await stream.closed.wait()
    assert not engine.open


@pytest.mark.parametrize("method", METHODS)
async def test_deadline_frees_the_row(service: Service, engine: FakeEngine, method: str) -> None:
    call = calls(service, timeout=0.2)[method]()
    stream = await engine.submitted.get()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await to_the_end(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stream.closed.wait()
    assert not engine.open


async def test_cancel_between_deltas_frees_the_row(service: Service, engine: FakeEngine) -> None:
    call = service.generation.GenerateStream(generate_request())
    stream = await engine.submitted.get()
    stream.push("a", [97])
    await call.read()
    await call.read()
    call.cancel()
    await stream.closed.wait()


async def test_a_client_that_is_gone_frees_the_row(service: Service, engine: FakeEngine) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.server.port}") as channel:
        other = Service(service.server, engine, channel, service.serving)
        call = other.generation.GenerateStream(generate_request())
        stream = await engine.submitted.get()
        await call.read()
    await stream.closed.wait()


async def test_finished_streams_are_not_closed_as_given_up(service: Service, engine: FakeEngine) -> None:
    call = service.generation.Generate(generate_request())
    stream = await engine.submitted.get()
    stream.answer("done")
    await call
    assert not stream.closed.is_set()
    assert not engine.open


async def test_the_start_comes_before_the_first_token(service: Service, engine: FakeEngine) -> None:
    call = service.generation.GenerateStream(generate_request())
    assert (await call.read()).HasField("start")
    (await engine.submitted.get()).answer("x")
    while (event := await call.read()) is not grpc.aio.EOF:
        last = event
    assert last.HasField("finish")


async def test_tokens_without_text_come_with_the_text_they_begin(service: Service, engine: FakeEngine) -> None:
    call = service.generation.GenerateStream(generate_request())
    stream = await engine.submitted.get()
    stream.push("", [0xC3])
    stream.push("ü", [0xBC])
    stream.push("", [0xE4])
    stream.push("\ufffd", [], "length")
    deltas = [event.delta async for event in call if event.HasField("delta")]
    assert [(delta.text, list(delta.token_ids)) for delta in deltas] == [("ü", [0xC3, 0xBC]), ("\ufffd", [0xE4])]
    assert [(delta.text_range.start, delta.text_range.end) for delta in deltas] == [(0, 2), (2, 5)]


async def test_a_slow_reader_is_cut_off_and_others_are_not(start: Any) -> None:
    service = await start(FakeEngine(), service_config(slow_reader_timeout=2.0))
    slow = service.generation.GenerateStream(generate_request())
    stream = await service.engine.submitted.get()
    other = service.generation.GenerateStream(generate_request())
    other_stream = await service.engine.submitted.get()
    # Far more than the buffers of both sides take in.
    for _ in range(64):
        stream.push("x" * 1_000_000, [120])
    await stream.closed.wait()
    assert list(service.engine.open) == [other_stream]
    other_stream.answer("still here")
    text = "".join([event.delta.text async for event in other])
    assert text == "still here"
    failed = await failure(slow)
    assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.details["ErrorInfo"].reason == "SLOW_READER"
    assert failed.details["QuotaFailure"].violations[0].subject == "stream"


async def test_an_idle_stream_is_not_a_slow_reader(start: Any) -> None:
    service = await start(FakeEngine(), service_config(slow_reader_timeout=0.05))
    call = service.generation.GenerateStream(generate_request())
    stream = await service.engine.submitted.get()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await stream.closed.wait()
    stream.answer("x")
    assert [event.WhichOneof("event") async for event in call][-1] == "finish"
