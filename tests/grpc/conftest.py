from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fakes import FakeEngine
from harness import Service, running, service_config
from resuming import keeping

from tokenwire.config import ServiceConfig


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


@pytest.fixture
async def kept(start: Callable[..., Awaitable[Service]]) -> Service:
    """A server that keeps streams, over an engine that the test drives."""
    return await start(FakeEngine(), service_config(keeping()))
