"""What one connection, and all of them, may take: metadata, streams, connections, age."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from fakes import FakeEngine, say
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import Service, service_config
from test_calls import generate_request

Start = Callable[..., Awaitable[Service]]


def own_channel(service: Service) -> grpc.aio.Channel:
    """A channel with a connection of its own: gRPC shares those of channels with equal arguments."""
    return grpc.aio.insecure_channel(
        f"127.0.0.1:{service.server.port}", [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    )


async def is_served(channel: grpc.aio.Channel) -> bool:
    try:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


async def events_of(call: Any) -> list[Any]:
    return [event async for event in call]


def client_ports(service: Service) -> set[int]:
    """Of the connections that the server has now."""
    connections = psutil.Process().net_connections("tcp")
    return {each.raddr.port for each in connections if each.laddr.port == service.server.port and each.raddr}


@pytest.mark.parametrize(("size", "is_refused"), [(3000, False), (6000, True), (100_000, True)])
async def test_metadata(start: Start, size: int, is_refused: bool) -> None:
    service = await start(FakeEngine(script=say("x")), service_config(max_metadata_bytes=4096))
    call = service.generation.Generate(generate_request(), metadata=(("x-much", "m" * size),))
    if is_refused:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert service.engine.streams == []
    assert (await service.generation.Generate(generate_request())).sequences[0].text == "x"


async def test_streams_of_one_connection(start: Start) -> None:
    """A client lets its further calls wait; another connection is served meanwhile."""
    service = await start(FakeEngine(), service_config(max_running=8, max_streams_per_connection=2))
    calls = [
        asyncio.create_task(events_of(service.generation.GenerateStream(generate_request(str(number)))))
        for number in range(3)
    ]
    streams = [await service.engine.submitted.get() for _ in range(2)]
    async with own_channel(service) as other:
        assert await is_served(other)
    assert len(service.engine.streams) == 2
    streams[0].answer("x")
    async with asyncio.timeout(20):
        streams.append(await service.engine.submitted.get())
    for stream in streams[1:]:
        stream.answer("x")
    for call in calls:
        assert (await call)[-1].HasField("finish")


async def test_connections(start: Start) -> None:
    service = await start(FakeEngine(), service_config(max_connections=3))
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(own_channel(service)) for _ in range(4)]
        assert [await is_served(channel) for channel in channels] == [True, True, True, False]
        await channels[0].close()
        give_up_at = time.monotonic() + 20
        while not await is_served(channels[3]):
            assert time.monotonic() < give_up_at


async def test_a_connection_that_is_old_is_left_without_a_call_failing(start: Start) -> None:
    service = await start(FakeEngine(), service_config(max_running=8, max_connection_age=0.5))
    long = asyncio.create_task(events_of(service.generation.GenerateStream(generate_request("long"))))
    stream = await service.engine.submitted.get()
    peers: set[int] = set()
    service.engine.script = say("x")
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        call: Any = service.generation.Generate(generate_request("short"))
        assert (await call).sequences[0].text == "x"
        peers |= client_ports(service)
        await asyncio.sleep(0.01)
    # The stream of the first connection goes on, while calls come over further ones.
    assert len(peers) >= 2
    stream.answer("y")
    assert "".join(event.delta.text for event in await long if event.HasField("delta")) == "y"
