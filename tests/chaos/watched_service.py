"""The service over a real tiny model in processes of its own, looked at from outside and from inside."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
import psutil
from chaos_service import HERE, SERVING, Calls
from grpc_health.v1 import health_pb2

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What the service says of itself."""

    port: int
    engine_pid: int | None
    num_tasks: int
    """Of the front's event loop."""
    num_open: int
    """Requests that the engine has, as far as the front knows."""
    num_waiting: int
    """Requests in front of the engine."""
    num_rows: int | None = None
    """In the engine; None, like all below, where there is no engine."""
    num_blocks_used: int | None = None
    num_blocks: int | None = None


class Outside(NamedTuple):
    """What the system says of one process."""

    resident_bytes: int
    num_descriptors: int
    num_threads: int


@dataclass(frozen=True)
class Sample:
    """One look."""

    at: float
    """Seconds since the start."""
    inside: Inside
    front: Outside
    engine: Outside | None


@dataclass
class WatchedService:
    """A front that runs, and the engine that it has now."""

    process: asyncio.subprocess.Process
    began_at: float = field(default_factory=time.monotonic)
    address: str = ""
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def look(self) -> Inside:
        assert self.process.stdin is not None
        async with self._looking:
            self.process.stdin.write(b"\n")
            return await self.read()

    async def read(self) -> Inside:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), START_TIMEOUT_S)
        if not line:
            raise AssertionError(f"the service ended with {await self.process.wait()}")
        return Inside(**json.loads(line))

    async def sample(self) -> Sample:
        inside = await self.look()
        engine = None if inside.engine_pid is None else _outside(inside.engine_pid)
        front = _outside(self.process.pid)
        assert front is not None
        return Sample(time.monotonic() - self.began_at, inside, front, engine)

    async def until_restarted(self, pid: int) -> None:
        """Wait until another engine process than ``pid``, which was killed, serves."""
        async with grpc.aio.insecure_channel(self.address) as channel, asyncio.timeout(START_TIMEOUT_S):
            while (await self.look()).engine_pid in (None, pid):  # noqa: ASYNC110  (it is in another process)
                await asyncio.sleep(0.05)
            health = Calls(channel).health
            while (await health.Check(health_pb2.HealthCheckRequest())).status != SERVING:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def _outside(pid: int) -> Outside | None:
    """None where the process has just gone."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return Outside(process.memory_info().rss, process.num_fds(), process.num_threads())
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return None


@asynccontextmanager
async def watched_service(model: Path, log: Path, **settings: Any) -> AsyncIterator[WatchedService]:
    """Serve ``model`` on loopback; at the end front and engine are gone. ``log``: where the service's log goes."""
    arguments = json.dumps([str(model), settings])
    with log.open("wb") as log_file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "serve_watched.py"),
            arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log_file,
        )
    service = WatchedService(process)
    try:
        inside = await service.read()
        service.address = f"127.0.0.1:{inside.port}"
        yield service
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()
