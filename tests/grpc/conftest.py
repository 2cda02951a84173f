import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine
from grpc_health.v1 import health_pb2_grpc
from tokenwire.config import EngineConfig, LimitsConfig, ModelConfig, ServerConfig, ServiceConfig
from tokenwire.server import Server
from tokenwire.v1 import generation_service_pb2_grpc, model_service_pb2_grpc, tokenizer_service_pb2_grpc


@dataclass
class Service:
    """A running server over a fake engine, and a channel to it."""

    server: Server
    engine: FakeEngine
    channel: grpc.aio.Channel
    serving: "asyncio.Task[None]"

    def __post_init__(self) -> None:
        self.generation: Any = generation_service_pb2_grpc.GenerationServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.tokenizer: Any = tokenizer_service_pb2_grpc.TokenizerServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.model: Any = model_service_pb2_grpc.ModelServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)


def service_config(limits: LimitsConfig | None = None, max_running: int = 4, **server: Any) -> ServiceConfig:
    return ServiceConfig(
        model=ModelConfig(model="unused"),
        engine=EngineConfig(max_running=max_running),
        server=replace(ServerConfig(port=0, drain_grace=5.0), **server),
        limits=limits or LimitsConfig(),
    )


@asynccontextmanager
async def running(
    engine: FakeEngine, config: ServiceConfig | None = None, *, until_ready: bool = True
) -> AsyncIterator[Service]:
    server = Server(config or service_config(), lambda _: engine)
    serving = asyncio.create_task(server.serve())
    event = server.ready if until_ready else server.listening
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Service(server, engine, channel, serving)
    finally:
        waiting.cancel()
        server.stop()
        server.stop()
        await serving


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def service(engine: FakeEngine) -> AsyncIterator[Service]:
    async with running(engine) as service:
        yield service


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Service]]]:
    """Starts servers with other settings; all are stopped at the end."""
    async with AsyncExitStack() as stack:

        async def enter(engine: FakeEngine, config: ServiceConfig | None = None, **options: Any) -> Service:
            return await stack.enter_async_context(running(engine, config, **options))

        yield enter
