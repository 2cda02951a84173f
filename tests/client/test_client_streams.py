"""Streams of both faces: events in order, joined text, and cancels that reach the server."""

import asyncio
from typing import Any

import pytest
from fake_server import FakeServer, item_status, words
from tokenwire.client import AsyncClient, Cancelled, Client, ConnectionFailed, Delta, InvalidArgument, Unavailable


async def reached(event: Any) -> bool:
    """Whether a threading event is set soon; waited for, not polled."""
    return await asyncio.to_thread(event.wait, 10)


def test_sync_stream_gives_start_deltas_finish(server: FakeServer) -> None:
    with Client(server.target) as client, client.stream("one two", max_new_tokens=8, logprobs=0) as stream:
        assert stream.start.prompt_token_count == 3
        assert stream.start.generation_config["max_new_tokens"] == 8
        deltas = list(stream)
        assert all(isinstance(each, Delta) for each in deltas)
        assert [each.text for each in deltas] == words("echo: one two")
        assert stream.text_so_far == "echo: one two"
        assert stream.finish.usage.completion_token_count == len(deltas)
        result = stream.result()
        assert (result.text, result.token_ids, len(result.logprobs)) == ("echo: one two", (100, 101, 102), 3)
        assert list(stream) == []


async def test_async_stream_gives_start_deltas_finish(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client, client.chat_stream("one two") as stream:
        assert stream.start.model == "tiny"
        assert [each.text async for each in stream] == words("you said: one two")
        assert (await stream.result()).text == "you said: one two"
        assert stream.finished


async def test_text_reads_to_the_end(server: FakeServer) -> None:
    with Client(server.target) as blocking, blocking.chat_stream("one two") as stream:
        next(stream)
        assert stream.text() == "you said: one two"
    async with AsyncClient(server.target) as client, client.stream("one two") as running:
        assert await running.text() == "echo: one two"


def test_the_joined_stream_equals_the_unary_text(server: FakeServer) -> None:
    with Client(server.target) as client:
        for prompt in ("a", "a b c", "größe  zählt", "日本 語"):
            with client.stream(prompt) as stream:
                assert "".join(delta.text for delta in stream) == client.generate(prompt).text
            byte_ranges = [delta.text_range for delta in client.stream(prompt).__enter__()]
            assert [end for _, end in byte_ranges[:-1]] == [start for start, _ in byte_ranges[1:]]


@pytest.mark.parametrize("deltas_read", [0, 2])
def test_leaving_a_sync_stream_cancels_the_call(server: FakeServer, deltas_read: int) -> None:
    server.hold(after=deltas_read)
    with Client(server.target) as client:
        with client.stream("a b c d") as stream:
            for _ in range(deltas_read):
                next(stream)
            assert server.holding.wait(10)
        assert server.cancelled.wait(10)
        assert not stream.finished


@pytest.mark.parametrize("deltas_read", [0, 2])
async def test_leaving_an_async_stream_cancels_the_call(server: FakeServer, deltas_read: int) -> None:
    server.hold(after=deltas_read)
    async with AsyncClient(server.target) as client:
        async with client.stream("a b c d") as stream:
            for _ in range(deltas_read):
                await anext(stream)
            assert await reached(server.holding)
        assert await reached(server.cancelled)


async def test_cancel_from_elsewhere_ends_the_iteration(server: FakeServer) -> None:
    server.hold(after=1)
    async with AsyncClient(server.target) as client, client.stream("a b c d") as stream:
        await anext(stream)
        reading = asyncio.ensure_future(anext(stream))
        assert await reached(server.holding)
        stream.cancel()
        with pytest.raises(Cancelled):
            await reading
    server.hold(after=1)
    with Client(server.target) as blocking, blocking.stream("a b c d") as running:
        next(running)
        in_thread = asyncio.ensure_future(asyncio.to_thread(running.text))
        assert await reached(server.holding)
        running.cancel()
        with pytest.raises(Cancelled):
            await in_thread
        assert running.text_so_far == "echo:"


async def test_cancelling_the_task_cancels_the_call(server: FakeServer) -> None:
    server.hold(after=1)
    async with AsyncClient(server.target) as client:

        async def read() -> None:
            async with client.stream("a b c d") as stream:
                await stream.text()

        task = asyncio.create_task(read())
        assert await reached(server.holding)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await reached(server.cancelled)


def test_a_refusal_is_raised_on_entering(server: FakeServer) -> None:
    server.failure = item_status("INVALID_ARGUMENT", "no")
    with Client(server.target) as client, pytest.raises(InvalidArgument), client.stream("x"):
        pytest.fail("entered a refused stream")


async def test_a_failure_in_the_middle_is_raised_by_the_iteration(server: FakeServer) -> None:
    server.failure, server.fail_after = (
        item_status(
            "UNAVAILABLE",
            "the engine died",
        ),
        2,
    )
    async with AsyncClient(server.target) as client, client.stream("a b c") as stream:
        assert [(await anext(stream)).text for _ in range(2)] == ["echo:", " a"]
        with pytest.raises(Unavailable, match="the engine died"):
            await anext(stream)
        assert stream.text_so_far == "echo: a"


def test_a_server_that_dies_in_the_middle(server: FakeServer) -> None:
    server.hold(after=1)
    with Client(server.target) as client, client.stream("a b c") as stream:
        next(stream)
        server._server.stop(0)
        with pytest.raises(ConnectionFailed, match="broke during the answer"):
            next(stream)


def test_a_stream_outside_its_context_says_so(server: FakeServer) -> None:
    with Client(server.target) as client:
        stream = client.stream("x")
        with pytest.raises(RuntimeError, match="use it in a `with`"):
            next(stream)
        with stream, pytest.raises(RuntimeError, match="read it to its end"):
            stream.finish  # noqa: B018
