"""The engine as a process: whatever happens to it or to the front, nobody waits in vain and nothing stays behind."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
import uvloop
from engine_fakes import NAN_TOKEN, PANIC, expected_answer
from fake_engine import HANG_TOKEN, KILL_TOKEN, RAISE_TOKEN, model_info

from tokenwire.config import EngineConfig, ModelConfig, SupervisionConfig
from tokenwire.engine.channel import FrameWriter
from tokenwire.engine.child import Child
from tokenwire.engine.handle import EngineHandle, EngineState
from tokenwire.engine.process import EngineProcess
from tokenwire.engine.protocol import Command, Event, Ready, Start, Submit
from tokenwire.engine.settings import GenerationSettings
from tokenwire.engine.stream import DeltaStream
from tokenwire.errors import (
    EngineUnavailableError,
    InvalidRequestError,
    ModelLoadError,
    QueueFullError,
    RequestAbortedError,
    RowFailedError,
    StepFailedError,
)

HERE = Path(__file__).parent
COMMAND = (sys.executable, str(HERE / "fake_engine.py"))
SHORT = GenerationSettings(max_new_tokens=5)
ENDLESS = GenerationSettings(max_new_tokens=90_000)


def make_engine(model: str = "ok", *, max_queued: int = 64, **engine: int) -> EngineProcess:
    return EngineProcess(
        ModelConfig(model=model),
        EngineConfig(**engine),  # type: ignore[arg-type]
        max_queued=max_queued,
        command=COMMAND,
        supervision=SupervisionConfig(max_restarts=2, restart_delay=0),
    )


@asynccontextmanager
async def running(model: str = "ok", **settings: int) -> AsyncIterator[EngineProcess]:
    engine = make_engine(model, **settings)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()
        assert engine.pid is None
        assert not children()


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


async def read(stream: DeltaStream) -> list[int]:
    return [token async for delta in stream for token in delta.token_ids]


async def until_state(engine: EngineProcess, state: EngineState) -> None:
    reached = asyncio.Event()
    engine.on_state_change(lambda new: reached.set() if new is state else None)
    if engine.state is not state:
        await asyncio.wait_for(reached.wait(), 30)


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_a_life_from_loading_to_stopped(loop: Callable[[Coroutine[None, None, None]], None]) -> None:
    async def life() -> None:
        engine: EngineHandle = make_engine()
        states: list[EngineState] = []
        engine.on_state_change(states.append)
        assert engine.state is EngineState.LOADING
        with pytest.raises(EngineUnavailableError):
            _ = engine.info
        with pytest.raises(EngineUnavailableError):
            engine.submit([1], SHORT)
        info = await engine.start()
        assert info == engine.info
        assert info.model_id == "ok"
        streams = [engine.submit([request + 1] * 3, SHORT) for request in range(10)]
        for request, stream in enumerate(streams):
            assert isinstance(stream, DeltaStream)
            assert await read(stream) == expected_answer([request + 1] * 3, 5)
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
        await engine.drain(10)
        await engine.stop()
        await engine.stop()
        assert states == [EngineState.READY, EngineState.DRAINING, EngineState.STOPPED]
        with pytest.raises(EngineUnavailableError):
            engine.submit([1], SHORT)
        with pytest.raises(EngineUnavailableError):
            await engine.stats()
        assert not children()

    loop(life())


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("refuse", r"^no checkpoint here$"),
        ("bug", r"^KeyError: 'embed_tokens'$"),
        ("panic", r"^the engine process ended while pretending: exit code 1$"),
        ("die", r"^the engine process ended while pretending: exit code 3$"),
    ],
)
async def test_a_model_that_cannot_be_loaded_is_one_line(model: str, line: str) -> None:
    engine = make_engine(model)
    with pytest.raises(ModelLoadError, match=line):
        await engine.start()
    assert engine.state is EngineState.STOPPED
    assert not children()
    await engine.stop()


async def test_a_command_that_cannot_be_started_is_one_line() -> None:
    engine = EngineProcess(ModelConfig(model="ok"), EngineConfig(), max_queued=1, command=("/no/such/program",))
    with pytest.raises(ModelLoadError, match=r"cannot be started: .*/no/such/program"):
        await engine.start()
    assert engine.state is EngineState.STOPPED


@pytest.mark.parametrize("by", ["stop", "cancel"])
async def test_loading_can_be_given_up(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_loading = asyncio.Event()
    monkeypatch.setattr(logging.getLogger("tokenwire.engine"), "info", lambda *_, **__: is_loading.set())
    engine = make_engine("hang")
    starting = asyncio.create_task(engine.start())
    await is_loading.wait()
    if by == "stop":
        await engine.stop()
        with pytest.raises(EngineUnavailableError):
            await starting
    else:
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert not children()


async def test_a_killed_engine_ends_its_streams_within_a_second_and_comes_back() -> None:
    async with running() as engine:
        states: list[EngineState] = []
        engine.on_state_change(states.append)
        streams = [engine.submit([request + 1], ENDLESS) for request in range(4)]
        for stream in streams:
            await anext(stream)
        asked = asyncio.create_task(engine.stats())
        first_pid = engine.pid
        assert first_pid is not None
        os.kill(first_pid, signal.SIGKILL)
        killed_at = time.monotonic()
        for stream in streams:
            with pytest.raises(EngineUnavailableError, match="ended"):
                await read(stream)
        await asyncio.gather(asked, return_exceptions=True)
        assert time.monotonic() - killed_at < 1
        assert engine.state is EngineState.LOADING
        with pytest.raises(EngineUnavailableError):
            engine.submit([1], SHORT)
        await until_state(engine, EngineState.READY)
        assert engine.pid != first_pid
        assert await read(engine.submit([7], SHORT)) == expected_answer([7], 5)
        assert states == [EngineState.LOADING, EngineState.READY]


async def test_an_engine_that_keeps_dying_stays_down() -> None:
    async with running() as engine:
        for attempt in range(3):
            stream = engine.submit([KILL_TOKEN], SHORT)
            with pytest.raises(EngineUnavailableError):
                await read(stream)
            await until_state(engine, EngineState.READY if attempt < 2 else EngineState.STOPPED)
        assert not children()


async def test_an_engine_that_cannot_be_loaded_again_stays_down(tmp_path: Path) -> None:
    async with running(f"once:{tmp_path / 'marker'}") as engine:
        stream = engine.submit([KILL_TOKEN], SHORT)
        with pytest.raises(EngineUnavailableError):
            await read(stream)
        await until_state(engine, EngineState.STOPPED)
        assert not children()


@pytest.mark.parametrize("what", ["loading", "idle", "computing"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_engine_ends_with_its_front(what: str, how: signal.Signals) -> None:
    script = str(HERE / "front_of_fake_engine.py")
    with subprocess.Popen([sys.executable, script, what], stderr=subprocess.PIPE, text=True) as front:
        try:
            assert front.stderr is not None
            engine = psutil.Process(int(front.stderr.readline()))
            front.send_signal(how)
            front.wait(30)
            # Not a child of this process: psutil looks until it is gone.
            engine.wait(5)
        finally:
            front.kill()


@pytest.mark.parametrize("what", ["loading", "computing"])
def test_a_closed_socket_alone_ends_the_engine(what: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*COMMAND, str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE) as engine:
            try:
                theirs.close()
                writer = FrameWriter()
                model = ModelConfig(model="hang" if what == "loading" else "ok")
                ours.sendall(writer.frame(Start(model, EngineConfig())))
                ours.sendall(writer.frame(Submit(0, [HANG_TOKEN], SHORT)))
                assert engine.stderr is not None
                assert int(engine.stderr.readline()) == engine.pid
                ours.close()
                assert engine.wait(5) == 0
            finally:
                engine.kill()


async def test_an_answer_that_fits_into_no_frame_fails_alone() -> None:
    """And answers of one step that fit each, but not together, all arrive."""
    async with running("narrow", max_step_tokens=4096) as engine:
        pid = engine.pid
        neighbour = engine.submit([1, 2, 3], ENDLESS)
        await anext(neighbour)
        scored = GenerationSettings(max_new_tokens=5, prompt_logprobs=0)
        large = engine.submit([5] * 800, scored)
        fitting = [engine.submit([number] * 150, scored) for number in range(6, 10)]
        with pytest.raises(StepFailedError, match=r"a StepOutputs of \d+ bytes exceeds the 4000 of a frame"):
            await read(large)
        for number, stream in enumerate(fitting, start=6):
            deltas = [delta async for delta in stream]
            assert len(deltas[0].prompt_logprobs or []) == 149
            assert [token for delta in deltas for token in delta.token_ids] == expected_answer([number] * 150, 5)
        await anext(neighbour)
        neighbour.close()
        stats = await engine.stats()
        assert (stats.running, stats.waiting, engine.pid) == (0, 0, pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_engine_leaves_signals_to_the_front(number: signal.Signals) -> None:
    async with running() as engine:
        assert engine.pid is not None
        assert os.getpgid(engine.pid) != os.getpgid(0)
        os.kill(engine.pid, number)
        assert await read(engine.submit([7], SHORT)) == expected_answer([7], 5)


async def test_a_closed_stream_frees_its_row_and_blocks() -> None:
    async with running() as engine:
        running_stream = engine.submit([1, 2, 3], ENDLESS)
        await anext(running_stream)
        fresh_stream = engine.submit([4], ENDLESS)
        running_stream.close()
        fresh_stream.close()
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
        with pytest.raises(RequestAbortedError):
            await read(running_stream)


async def test_hundreds_of_streams_given_up_in_any_state_hold_nothing() -> None:
    async with running(max_running=32, max_queued=500) as engine:
        streams = [engine.submit([request % 80 + 1] * 20, ENDLESS) for request in range(500)]
        for stream in streams[:20]:
            await anext(stream)
        for stream in streams:
            stream.close()
        closed_at = time.monotonic()
        stats = await engine.stats()
        assert time.monotonic() - closed_at < 0.5
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
        assert await read(engine.submit([7], SHORT)) == expected_answer([7], 5)


async def test_a_row_that_fails_raises_and_its_neighbour_goes_on() -> None:
    async with running() as engine:
        good, bad = engine.submit([5], SHORT), engine.submit([NAN_TOKEN], SHORT)
        with pytest.raises(RowFailedError, match="the logits hold NaN"):
            await read(bad)
        assert await read(good) == expected_answer([5], 5)


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "match"),
    [
        ([RAISE_TOKEN], SHORT, StepFailedError, "RuntimeError: injected"),
        ([1], GenerationSettings(max_new_tokens=5, temperature=-1.0), InvalidRequestError, r"^generation_config: "),
        ([1], GenerationSettings(max_new_tokens=5, temperature=PANIC), StepFailedError, "RuntimeError: a panic"),
        ([1], GenerationSettings(max_new_tokens=10**6), InvalidRequestError, r"^prompt: .*1000001 tokens"),
        ([], SHORT, InvalidRequestError, r"^prompt: .*empty"),
    ],
)
async def test_a_failure_becomes_the_error_of_its_kind_and_the_engine_goes_on(
    prompt: list[int], settings: GenerationSettings, error: type[Exception], match: str
) -> None:
    async with running() as engine:
        with pytest.raises(error, match=match):
            await read(engine.submit(prompt, settings))
        assert await read(engine.submit([5], SHORT)) == expected_answer([5], 5)


class DyingChild:
    """Is ready and gone before anyone hears of either."""

    pid = 0

    def __init__(self, on_event: Callable[[Event], None], on_close: Callable[[], None]) -> None:
        self.closed = asyncio.Event()
        self._on_event, self._on_close = on_event, on_close

    def send(self, command: Command) -> None:
        if isinstance(command, Start):
            self._on_event(Ready(model_info("ok")))
            self.closed.set()
            self._on_close()

    async def end(self, timeout_s: float) -> str:
        return "exit code 9"


async def test_an_engine_that_dies_right_after_it_was_ready_never_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    async def spawn(_: object, on_event: Callable[[Event], None], on_close: Callable[[], None]) -> DyingChild:
        return DyingChild(on_event, on_close)

    monkeypatch.setattr(Child, "spawn", spawn)
    engine = make_engine()
    states: list[EngineState] = []
    engine.on_state_change(states.append)
    with pytest.raises(ModelLoadError, match="exit code 9"):
        await engine.start()
    assert states == [EngineState.STOPPED]


async def test_the_queue_counts_rows() -> None:
    beams = msgspec.structs.replace(ENDLESS, num_beams=3)
    several = msgspec.structs.replace(ENDLESS, do_sample=True, num_return_sequences=2, guidance_scale=2.0)
    async with running(max_running=2, max_queued=3) as engine:
        wide = [engine.submit([1], beams), engine.submit([2], several)]
        with pytest.raises(QueueFullError):
            engine.submit([9], SHORT)
        wide[1].close()
        narrow = [engine.submit([3 + number], ENDLESS) for number in range(2)]
        with pytest.raises(QueueFullError):
            engine.submit([9], SHORT)
        for stream in (wide[0], *narrow):
            stream.close()
        assert await read(engine.submit([9], SHORT)) == expected_answer([9], 5)


async def test_a_full_queue_is_refused_at_once_and_opens_again() -> None:
    async with running(max_running=2, max_queued=3) as engine:
        streams = [engine.submit([request + 1], ENDLESS) for request in range(5)]
        with pytest.raises(QueueFullError) as refused:
            engine.submit([9], SHORT)
        assert refused.value.limit == 3
        for stream in streams[:2]:
            await anext(stream)
        with pytest.raises(QueueFullError):
            engine.submit([9], SHORT)
        streams[0].close()
        streams.append(engine.submit([9], SHORT))
        with pytest.raises(QueueFullError):
            engine.submit([9], SHORT)
        for stream in streams[1:5]:
            stream.close()
        assert await read(streams[5]) == expected_answer([9], 5)


async def test_drain_refuses_new_waits_for_old_and_ends_the_rest() -> None:
    async with running() as engine:
        short, endless = engine.submit([5], SHORT), engine.submit([6], ENDLESS)
        await anext(endless)
        draining = asyncio.create_task(engine.drain(0.3))
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailableError, match="draining"):
            engine.submit([1], SHORT)
        assert await read(short) == expected_answer([5], 5)
        await draining
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await read(endless)
        stats = await engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)


async def test_stop_ends_streams_and_does_not_wait_for_a_long_step() -> None:
    async with running() as engine:
        stream = engine.submit([HANG_TOKEN], SHORT)
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        began = time.monotonic()
        await engine.stop()
        assert time.monotonic() - began < 2
        with pytest.raises(EngineUnavailableError):
            await reader


async def test_an_engine_that_dies_while_draining_is_not_restarted() -> None:
    async with running() as engine:
        stream = engine.submit([6], ENDLESS)
        await anext(stream)
        draining = asyncio.create_task(engine.drain(30))
        await asyncio.sleep(0)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await draining
        await until_state(engine, EngineState.STOPPED)
        with pytest.raises(EngineUnavailableError):
            await read(stream)
