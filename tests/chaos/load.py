"""A closed loop of seeded callers over one service: every kind of request, cancels, bad requests, slow readers.

Each of `Load`'s workers has one call at a time and looks at how it ends. What may not happen is put down in
``errors``; a kill of the engine excuses UNAVAILABLE for the calls that it met, see `Disturbance`.
"""

import asyncio
import contextlib
import gc
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import load_jobs
from load_jobs import Job

from tokenwire.v1 import generation_service_pb2_grpc

MIX = {
    "stream": 0.35,
    "unary": 0.15,
    "chat": 0.08,
    "sampled": 0.08,
    "beams": 0.04,
    "slow_reader": 0.05,
    "cancel": 0.20,
    "bad": 0.05,
}
"""Share of each kind of call."""

CALL_TIMEOUT_S = 120.0
SLOW_READER_PAUSE_S = 4.0
"""Longest time in which a slow reader reads nothing."""


class Disturbance:
    """Whether the engine is there, as whoever kills it knows."""

    def __init__(self) -> None:
        self.num_kills = 0
        self.is_serving = asyncio.Event()
        self.is_serving.set()

    def begin(self) -> None:
        """Call it before the kill."""
        self.num_kills += 1
        self.is_serving.clear()

    def end(self) -> None:
        """The engine serves again."""
        self.is_serving.set()


class Load:
    """``num_workers`` callers over ``num_connections`` connections to ``address``.

    ``answers``: what each of ``jobs`` gives from an idle service.
    """

    def __init__(
        self, address: str, jobs: Sequence[Job], answers: Sequence[tuple[int, ...]], disturbance: Disturbance
    ) -> None:
        self._address = address
        self._jobs = list(zip(jobs, answers, strict=True))
        self._disturbance = disturbance
        self._stubs: list[Any] = []
        self._narrow: Any = None
        self.ends: Counter[tuple[str, str]] = Counter()
        """How often each kind of call came to which end."""
        self.errors: list[str] = []
        self.seconds: list[float] = []
        """Of the greedy calls that were answered, each whole."""
        self.num_tokens = 0

    @property
    def num_calls(self) -> int:
        return sum(self.ends.values())

    def count(self, kind: str, end: str | None = None) -> int:
        """Calls of one kind, to one end or to any."""
        return sum(number for (each, how), number in self.ends.items() if each == kind and end in (None, how))

    @asynccontextmanager
    async def running(self, seed: int, num_workers: int, num_connections: int) -> AsyncIterator[None]:
        """Call in a closed loop inside; on leaving each worker ends its call, and the connections are closed."""
        is_over = asyncio.Event()
        async with AsyncExitStack() as stack:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channels = [grpc.aio.insecure_channel(self._address, options) for _ in range(num_connections)]
            # Its windows stay at 64 KiB: a reader that pauses is soon felt by the server.
            channels.append(grpc.aio.insecure_channel(self._address, [*options, ("grpc.http2.bdp_probe", 0)]))
            for channel in channels:
                await stack.enter_async_context(channel)
            *self._stubs, self._narrow = (_stub(channel) for channel in channels)
            workers = [
                asyncio.create_task(self._work(random.Random(seed * 1000 + number), is_over))
                for number in range(num_workers)
            ]
            try:
                yield
            finally:
                is_over.set()
                await asyncio.gather(*workers)
        # Calls are in reference cycles, and one that was cancelled keeps its connection open until it is collected.
        self._stubs, self._narrow = [], None
        gc.collect()

    async def _work(self, generator: random.Random, is_over: asyncio.Event) -> None:
        kinds: dict[str, Callable[[Any, random.Random], Awaitable[str]]] = {
            kind: getattr(self, f"_{kind}") for kind in MIX
        }
        while not is_over.is_set():
            await self._disturbance.is_serving.wait()
            (kind,) = generator.choices(list(kinds), list(MIX.values()))
            num_kills = self._disturbance.num_kills
            try:
                end = await kinds[kind](generator.choice(self._stubs), generator)
            except grpc.aio.AioRpcError as error:
                end = error.code().name
                is_excused = error.code() is grpc.StatusCode.UNAVAILABLE and self._disturbance.num_kills != num_kills
                if is_excused:
                    end = "killed"
                else:
                    self.errors.append(f"{kind}: {end}: {error.details()}")
            except AssertionError as error:
                end = "wrong"
                self.errors.append(f"{kind}: {error}")
            self.ends[kind, end] += 1

    async def _stream(self, stub: Any, generator: random.Random) -> str:
        job, expected = generator.choice(self._jobs)
        began = time.monotonic()
        tokens = await _read(stub.GenerateStream(job.request(), timeout=CALL_TIMEOUT_S))
        self._compare(tuple(tokens), expected)
        self.seconds.append(time.monotonic() - began)
        return "OK"

    async def _unary(self, stub: Any, generator: random.Random) -> str:
        job, expected = generator.choice(self._jobs)
        began = time.monotonic()
        answer = await stub.Generate(job.request(), timeout=CALL_TIMEOUT_S)
        self._compare(tuple(answer.sequences[0].token_ids), expected)
        self.seconds.append(time.monotonic() - began)
        return "OK"

    def _compare(self, tokens: tuple[int, ...], expected: tuple[int, ...]) -> None:
        self.num_tokens += len(tokens)
        assert tokens == expected, f"{tokens} instead of {expected}"

    async def _chat(self, stub: Any, generator: random.Random) -> str:
        await stub.Chat(load_jobs.chat(generator), timeout=CALL_TIMEOUT_S)
        return "OK"

    async def _sampled(self, stub: Any, generator: random.Random) -> str:
        await _read(stub.GenerateStream(load_jobs.sampled(generator), timeout=CALL_TIMEOUT_S))
        return "OK"

    async def _beams(self, stub: Any, generator: random.Random) -> str:
        await stub.Generate(load_jobs.beams(generator), timeout=CALL_TIMEOUT_S)
        return "OK"

    async def _slow_reader(self, _: Any, generator: random.Random) -> str:
        """Reads one message, nothing for a while, and then what is there: all of it, or that it was cut off."""
        call = self._narrow.GenerateStream(load_jobs.large(), timeout=CALL_TIMEOUT_S)
        await call.read()
        await asyncio.sleep(generator.uniform(0.5, SLOW_READER_PAUSE_S))
        try:
            await _read(call)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return "cut off"
        return "OK"

    async def _cancel(self, stub: Any, generator: random.Random) -> str:
        """Gives up after some messages, or before any."""
        job, _ = generator.choice(self._jobs)
        call = stub.GenerateStream(job.request(), timeout=CALL_TIMEOUT_S)
        for _ in range(generator.choice((0, 0, 1, 2, 5, 20))):
            if await call.read() is grpc.aio.EOF:
                return "OK"
        await asyncio.sleep(generator.choice((0, 0.01)))
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call.code()
        return "cancelled"

    async def _bad(self, stub: Any, generator: random.Random) -> str:
        try:
            await stub.Generate(load_jobs.bad(generator), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            return "refused"
        raise AssertionError("a bad request was answered")


def _stub(channel: grpc.aio.Channel) -> Any:
    return generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]


async def _read(call: Any) -> list[int]:
    """The tokens of a stream, sequences in whatever order they come. Raises AioRpcError."""
    tokens: list[int] = []
    while (event := await call.read()) is not grpc.aio.EOF:
        tokens += event.delta.token_ids
    if await call.code() is not grpc.StatusCode.OK:
        raise AssertionError(f"a stream ended with {await call.code()}")
    return tokens


async def answers_of(address: str, jobs: Sequence[Job]) -> list[tuple[int, ...]]:
    """What each job gives, one after the other."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = _stub(channel)
        return [tuple((await stub.Generate(job.request())).sequences[0].token_ids) for job in jobs]
