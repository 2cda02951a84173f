"""Streamed messages per second through the front, over a loopback port, with an engine that costs nothing.

The server runs in a process of its own over an engine that gives every open stream one token per step, one wake-up for
all of them, and never merges: every token is one message. The client, in another process, counts messages without
parsing them; it costs about as much as the server.

    python -m bench.front [--streams 64] [--tokens 400] [--rounds 5] [--telemetry off metrics traces]
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import grpc.aio
import uvloop

from tokenwire.config import EngineConfig, LogConfig, ModelConfig, ServerConfig, ServiceConfig, TelemetryConfig
from tokenwire.engine.figures import EngineFigures
from tokenwire.engine.handle import EngineState
from tokenwire.engine.protocol import Delta, Finish, ModelInfo, Stats
from tokenwire.engine.settings import GenerationOverrides, GenerationSettings
from tokenwire.server import run
from tokenwire.v1 import generation_pb2, generation_service_pb2

METHOD = "/tokenwire.v1.GenerationService/GenerateStream"
VOCAB_SIZE = 49_152
CONTEXT_LENGTH = 8192
AHEAD = 4
"""Tokens per stream that the engine is ahead of the front: it must not be what is measured."""


class NoopStream:
    """One token per step, until the length is reached."""

    def __init__(self, engine: "NoopEngine", settings: GenerationSettings, prompt_tokens: int) -> None:
        self.left = settings.max_new_tokens
        self.deltas: deque[Delta] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self._engine = engine
        self._prompt_tokens = prompt_tokens
        self._total = settings.max_new_tokens
        self._on_end: Callable[[], None] | None = None
        self._ended = False

    @property
    def num_tokens(self) -> int:
        return self._total - self.left

    def on_end(self, callback: Callable[[], None]) -> None:
        self._on_end = callback

    def end(self) -> None:
        if self._on_end is not None:
            self._on_end()
            self._on_end = None

    def step(self) -> None:
        self.left -= 1
        finish = None
        if self.left == 0:
            finish = Finish("length", None, None, self._prompt_tokens, self._total, 0.0, 0.0, 0.0)
        self.deltas.append(Delta(0, [42], " token", [], finish))
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def __aiter__(self) -> "NoopStream":
        return self

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        while not self.deltas:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        delta = self.deltas.popleft()
        self._ended = delta.finish is not None
        self._engine.taken(self)
        return delta

    def close(self) -> None:
        self._engine.streams.pop(self, None)
        self.end()


class NoopEngine:
    """Steps while the front is less than AHEAD tokens behind; waits for ``batch`` streams before the first."""

    def __init__(self, batch: int) -> None:
        self.streams: dict[NoopStream, None] = {}
        self.state = EngineState.LOADING
        self.phase = "loading"
        self.figures = EngineFigures()
        self._batch = batch
        self._held = 0
        self._scheduled = False
        self._callbacks: list[Callable[[EngineState], None]] = []

    @property
    def info(self) -> ModelInfo:
        return model_info()

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        self._callbacks.append(callback)

    async def start(self) -> ModelInfo:
        self.state = EngineState.READY
        return self.info

    def submit(
        self,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        *,
        negative_prompt_ids: Sequence[int] | None = None,
        deadline: float | None = None,
    ) -> NoopStream:
        stream = NoopStream(self, settings, len(prompt_ids))
        self.streams[stream] = None
        if len(self.streams) == self._batch:
            asyncio.get_running_loop().call_soon(self._step)
        return stream

    def taken(self, stream: NoopStream) -> None:
        if stream.left == 0 and not stream.deltas:
            self.streams.pop(stream, None)
            stream.end()
        self._held -= 1
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self.streams and self._held < AHEAD * len(self.streams):
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._scheduled = False
        for stream in self.streams:
            if stream.left:
                stream.step()
                self._held += 1
        if self._held:
            self._schedule()

    async def stats(self) -> Stats:
        return Stats(len(self.streams), 0, 0, 0, 0, 0, 0)

    async def drain(self, grace_s: float) -> None:
        self.state = EngineState.DRAINING

    async def stop(self) -> None:
        self.state = EngineState.STOPPED


def model_info() -> ModelInfo:
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
    }
    return ModelInfo(
        model_id="noop",
        revision="",
        architecture="Noop",
        quantization="none",
        dtype="float32",
        device_map={"": "cpu"},
        forward_path="paged",
        forward_path_reason="",
        parameter_count=0,
        context_length=CONTEXT_LENGTH,
        vocab_size=VOCAB_SIZE,
        kv_token_capacity=1 << 20,
        special_tokens={},
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        tokenizer_json=json.dumps(tokenizer),
        chat_templates={},
        defaults=GenerationOverrides(),
        unapplied_defaults=(),
    )


TELEMETRY = {
    "off": TelemetryConfig(),
    "metrics": TelemetryConfig(metrics_port=0),
    # Nobody listens there: what it costs the front is the same, and the collector costs nothing.
    "traces": TelemetryConfig(metrics_port=0, otlp_endpoint="http://127.0.0.1:9"),
}


def serve(batch: int, log: str, profile: str | None, telemetry: str) -> None:
    """The server process."""
    sys.stderr = Path(log).open("w", buffering=1)  # noqa: SIM115  (open as long as the process)
    config = ServiceConfig(
        model=ModelConfig(model="noop"),
        engine=EngineConfig(max_running=batch),
        server=ServerConfig(port=0, drain_grace=1.0),
        telemetry=TELEMETRY[telemetry],
        log=LogConfig(log_format="json"),
    )
    if profile is None:
        run(config, lambda _: NoopEngine(batch))
        return
    import cProfile

    profiler = cProfile.Profile()
    profiler.runcall(run, config, lambda _: NoopEngine(batch))
    profiler.dump_stats(profile)


def client(port: int, streams: int, tokens: int, channels: int, results: Connection) -> None:
    """The client process: sends messages per second of each round it is asked for."""

    async def stream(channel: grpc.aio.Channel, request: bytes) -> int:
        call = channel.unary_stream(METHOD, None, None)(request)
        count = 0
        async for _ in call:
            count += 1
        return count

    async def work() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        opened = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(channels)]
        request = generation_service_pb2.GenerateRequest(
            prompt=generation_service_pb2.Prompt(token_ids=[1, 2, 3]),
            generation_config=generation_pb2.GenerationConfig(max_new_tokens=tokens),
        ).SerializeToString()
        while await asyncio.to_thread(results.recv):
            begun = time.perf_counter()
            counts = await asyncio.gather(*(stream(opened[i % channels], request) for i in range(streams)))
            results.send((sum(counts), time.perf_counter() - begun))

    uvloop.run(work())


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    streams: int, tokens: int, rounds: int, channels: int, profile: str | None, telemetry: str
) -> tuple[float, float, float]:
    """Medians over the rounds: messages per second; CPU microseconds per message of server and client."""
    context = multiprocessing.get_context("spawn")
    descriptor, name = tempfile.mkstemp(prefix="tokenwire-bench-", suffix=".log")
    os.close(descriptor)
    log = Path(name)
    server = context.Process(target=serve, args=(streams, str(log), profile, telemetry))
    server.start()
    try:
        while '"event":"ready"' not in log.read_text():
            if not server.is_alive():
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        records = [json.loads(line) for line in log.read_text().splitlines()]
        address = next(record["address"] for record in records if record["event"] == "listening")
        here, there = context.Pipe()
        port = int(address.rpartition(":")[2])
        reader = context.Process(target=client, args=(port, streams, tokens, channels, there))
        reader.start()
        rows = []
        for _ in range(rounds + 1):
            before = cpu_seconds(server.pid or 0), cpu_seconds(reader.pid or 0)
            here.send(True)
            messages, seconds = here.recv()
            after = cpu_seconds(server.pid or 0), cpu_seconds(reader.pid or 0)
            if messages != streams * (tokens + 2):
                raise SystemExit(f"{messages} messages instead of {streams * (tokens + 2)}")
            used = [1e6 * (end - begin) / messages for begin, end in zip(before, after, strict=True)]
            rows.append((messages / seconds, *used))
        here.send(False)
        reader.join()
    finally:
        server.terminate()
        server.join()
        log.unlink()
    # The first round opens connections and imports.
    rate, server_us, client_us = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    return rate, server_us, client_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--telemetry", choices=TELEMETRY, nargs="+", default=["off"], help="a row for each")
    parser.add_argument("--profile", help="write the server's cProfile statistics to this file")
    arguments = parser.parse_args()
    print("| streams | telemetry | messages/s | server CPU, us per message | client CPU, us per message |")
    print("|---|---|---|---|---|")
    for streams, telemetry in itertools.product(arguments.streams, arguments.telemetry):
        channels = min(arguments.channels, streams)
        rate, server_us, client_us = measure(
            streams, arguments.tokens, arguments.rounds, channels, arguments.profile, telemetry
        )
        print(f"| {streams} | {telemetry} | {rate:,.0f} | {server_us:.1f} | {client_us:.1f} |", flush=True)


if __name__ == "__main__":
    main()
