"""The service over the engine process of `faulty_engine`: in this process, or as a front that can be killed."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import waiting
from engine_fakes import expected_answer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenwire.config import (
    EngineConfig,
    LimitsConfig,
    LogConfig,
    ModelConfig,
    ServerConfig,
    ServiceConfig,
    SupervisionConfig,
    TelemetryConfig,
)
from tokenwire.engine.process import EngineProcess
from tokenwire.engine.protocol import Stats
from tokenwire.server import Server
from tokenwire.v1 import generation_pb2, generation_service_pb2, generation_service_pb2_grpc, tokenizer_service_pb2_grpc

HERE = Path(__file__).resolve().parent
ENGINE_COMMAND = (sys.executable, str(HERE / "faulty_engine.py"))

PATIENCE_S = 60.0
"""How long a test waits for what must come, on a machine that has much else to do."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def chaos_config(options: dict[str, Any], **settings: Any) -> ServiceConfig:
    """Settings of a service whose engine has ``options`` (`faulty_engine.Options`), each by its own name."""
    parts: dict[str, Any] = {
        # What is in one pass must not depend on how long the others took.
        "engine": EngineConfig(prefill_share=1.0),
        "supervision": SupervisionConfig(restart_delay=0.0),
        "server": ServerConfig(port=0, drain_grace=PATIENCE_S),
        "limits": LimitsConfig(max_queued=4096),
        "telemetry": TelemetryConfig(),
        "log": LogConfig(log_format="json"),
    }
    for name, value in settings.items():
        (owner,) = [part for part, config in parts.items() if name in config.__dataclass_fields__]
        parts[owner] = replace(parts[owner], **{name: value})
    return ServiceConfig(model=ModelConfig(model=json.dumps(options)), **parts)


def create_engine(config: ServiceConfig) -> EngineProcess:
    return EngineProcess(
        config.model,
        config.engine,
        max_queued=config.limits.max_queued,
        supervision=config.supervision,
        command=ENGINE_COMMAND,
    )


def request(text: str, max_new_tokens: int = 8, **settings: Any) -> generation_service_pb2.GenerateRequest:
    """A prompt of bytes below 128, and so many tokens; greedy, without end tokens."""
    return generation_service_pb2.GenerateRequest(
        prompt=generation_service_pb2.Prompt(text=text),
        generation_config=generation_pb2.GenerationConfig(max_new_tokens=max_new_tokens, **settings),
    )


def answer_to(text: str, max_new_tokens: int = 8) -> list[int]:
    """The tokens that a request alone gets."""
    return expected_answer(list(text.encode()), max_new_tokens)


def read_journal(folder: Path) -> list[str]:
    journal = folder / "journal"
    return journal.read_text().splitlines() if journal.exists() else []


class Calls:
    """Stubs on one channel."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.generation: Any = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        self.tokenizer: Any = tokenizer_service_pb2_grpc.TokenizerServiceStub(channel)  # type: ignore[no-untyped-call]
        self.health: Any = health_pb2_grpc.HealthStub(channel)


class Chaos(Calls):
    """A service in this process, with an engine process of its own."""

    def __init__(self, channel: Any, server: Server, engine: EngineProcess, folder: Path) -> None:
        super().__init__(channel)
        self.server = server
        self.engine = engine
        self.folder = folder

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def journal(self) -> list[str]:
        """The prompts whose prefill began, as far as they were in its first pass."""
        return read_journal(self.folder)

    async def until_begun(self, prompt: str) -> None:
        """Wait until the engine computes ``prompt``."""
        await until(lambda: prompt in self.journal())

    async def health_status(self) -> int:
        return int((await self.health.Check(health_pb2.HealthCheckRequest())).status)

    @property
    def num_waiting(self) -> int:
        """Requests that wait in front of the engine."""
        return self.server.backend.admission.num_waiting

    async def until_health(self, status: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.health_status() != status:  # noqa: ASYNC110  (it is in another process)
                await asyncio.sleep(0.02)

    async def tokens(self, text: str, max_new_tokens: int = 8, *, patience_s: float = PATIENCE_S) -> list[int]:
        answer = await self.generation.Generate(request(text, max_new_tokens), timeout=patience_s)
        return list(answer.sequences[0].token_ids)

    async def begin(self, text: str, max_new_tokens: int, **settings: Any) -> Any:
        """A stream of which the first token has come."""
        call = self.generation.GenerateStream(request(text, max_new_tokens, **settings))
        while not (await call.read()).HasField("delta"):
            pass
        return call

    async def until_steps(self, count: int) -> None:
        """Wait until the engine has made so many passes."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.engine.stats()).steps < count:  # noqa: ASYNC110  (it is in another process)
                await asyncio.sleep(0.02)

    async def until_nothing_is_held(self, timeout_s: float = PATIENCE_S) -> Stats:
        """Wait until nothing runs or waits and every block is free."""
        async with asyncio.timeout(timeout_s):
            while True:
                stats = await self.engine.stats()
                if (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total):
                    return stats
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(folder: Path, options: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Chaos]:
    """A service that is ready; its engine process is gone at the end."""
    config = chaos_config({"folder": str(folder), **(options or {})}, **settings)
    engine = create_engine(config)
    server = Server(config, lambda _: engine)
    running = asyncio.create_task(server.serve())
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Chaos(channel, server, engine, folder)
    finally:
        ready.cancel()
        (folder / "release").touch()
        server.stop()
        server.stop()
        await asyncio.wait({running})
    assert engine.pid is None


class Front:
    """`tokenwire serve` over the faulty engine in a process of its own."""

    def __init__(self, folder: Path, options: dict[str, Any] | None = None, **settings: Any) -> None:
        arguments = json.dumps([{"folder": str(folder), **(options or {})}, settings])
        self.log_file = folder / "front.log"
        with self.log_file.open("wb") as log:
            self.process = psutil.Popen([sys.executable, str(HERE / "serve_faulty.py"), arguments], stderr=log)
        self.folder = folder

    def log(self) -> list[dict[str, Any]]:
        """What it has written so far, without what is no line of the log, such as a traceback of the engine."""
        lines = self.log_file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    def until_logged(self, event: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for entry in self.log():
                if entry["event"].startswith(event):
                    return entry
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {event!r} in {self.log_file.read_text()}")

    def address(self) -> str:
        return str(self.until_logged("listening")["address"])

    def journal(self) -> list[str]:
        """The prompts whose prefill began, as far as they were in its first pass."""
        return read_journal(self.folder)

    def until_begun(self, prompt: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while prompt not in self.journal():
            assert time.monotonic() < end, "the engine did not begin"
            time.sleep(0.02)

    def engine(self) -> psutil.Process:
        """The engine process that it has now."""
        (engine,) = self.process.children()
        return engine

    def end(self) -> int:
        """Wait for the exit code."""
        return int(self.process.wait(PATIENCE_S))

    def close(self) -> None:
        (self.folder / "release").touch()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)


async def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> float:
    """Wait for ``condition``; returns the seconds that it took."""
    return await waiting.until(condition, timeout_s)


@dataclass
class Outcome:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    tokens: tuple[int, ...] = ()


async def outcome(call: Awaitable[Any]) -> Outcome:
    """The status of a unary call, and its tokens where it has any."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return Outcome(error.code(), error.details() or "")
    return Outcome(grpc.StatusCode.OK, tokens=tuple(answer.sequences[0].token_ids))


async def read_all(call: Any) -> Outcome:
    """Read a stream to its end."""
    tokens: list[int] = []
    try:
        while (event := await call.read()) is not grpc.aio.EOF:
            tokens += event.delta.token_ids
    except grpc.aio.AioRpcError as error:
        return Outcome(error.code(), error.details() or "", tuple(tokens))
    return Outcome(await call.code(), tokens=tuple(tokens))
