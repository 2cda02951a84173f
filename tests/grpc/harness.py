"""A running server over a fake engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
from fakes import FakeEngine
from grpc_health.v1 import health_pb2_grpc

from tokenwire.config import EngineConfig, LimitsConfig, ModelConfig, SecurityConfig, ServerConfig, ServiceConfig
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


def service_config(
    limits: LimitsConfig | None = None,
    max_running: int = 4,
    security: SecurityConfig | None = None,
    **server: Any,
) -> ServiceConfig:
    return ServiceConfig(
        model=ModelConfig(model="unused"),
        engine=EngineConfig(max_running=max_running),
        server=replace(ServerConfig(port=0, drain_grace=5.0), **server),
        limits=limits or LimitsConfig(),
        security=security or SecurityConfig(),
    )


@asynccontextmanager
async def running(
    engine: FakeEngine,
    config: ServiceConfig | None = None,
    *,
    until_ready: bool = True,
    credentials: grpc.ChannelCredentials | None = None,
) -> AsyncIterator[Service]:
    """A server and a channel to it, with TLS where ``credentials`` are given."""
    server = Server(config or service_config(), lambda _: engine)
    serving = asyncio.create_task(server.serve())
    event = server.ready if until_ready else server.listening
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        async with open_channel(server, credentials) as channel:
            yield Service(server, engine, channel, serving)
    finally:
        waiting.cancel()
        server.stop()
        server.stop()
        await serving


def open_channel(server: Server, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    target = f"127.0.0.1:{server.port}"
    return grpc.aio.insecure_channel(target) if credentials is None else grpc.aio.secure_channel(target, credentials)
