"""The engine behind a process border: implements `handle.EngineHandle` over a child process, and restarts it."""

import asyncio
import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tokenwire.config import EngineConfig, ModelConfig, SupervisionConfig
from tokenwire.engine.child import Child
from tokenwire.engine.failures import error_of
from tokenwire.engine.figures import EngineFigures
from tokenwire.engine.handle import EngineState
from tokenwire.engine.hang_watch import HangWatch
from tokenwire.engine.protocol import (
    Abort,
    Beat,
    Event,
    GetStats,
    LoadFailed,
    Loading,
    ModelInfo,
    Ready,
    Start,
    Stats,
    StepOutputs,
    Stop,
    Submit,
)
from tokenwire.engine.settings import GenerationSettings
from tokenwire.engine.stream import DeltaStream
from tokenwire.errors import EngineUnavailableError, ModelLoadError, QueueFullError

logger = logging.getLogger("tokenwire.engine")

# -P: a file in the folder where the operator stands must not replace a module of the engine.
ENGINE_COMMAND = (sys.executable, "-P", "-m", "tokenwire.engine")

STOP_TIMEOUT_S = 0.4
"""What a running step gets to end before the process is killed, so that a second SIGTERM ends all within 1 s."""

_RETRY_AFTER_S = 1.0


class EngineProcess:
    """One engine process after another, and the streams that they feed. For one event loop, not for other threads.

    ``max_queued``: rows of a batch that may wait. A request's rows (one per sequence or beam) wait while nothing has
    come for it, except for the ``engine.max_running`` that may be running already; counted here, so that a full queue
    is refused without asking the engine. A request is taken while fewer than ``max_queued`` wait, however many its own
    are. ``command``: the process to run, with the number of its socket appended.
    """

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        *,
        max_queued: int,
        command: Sequence[str] = ENGINE_COMMAND,
        supervision: SupervisionConfig | None = None,
    ) -> None:
        self._start = Start(model, engine)
        self._max_running = engine.max_running
        self._max_queued = max_queued
        self._command = tuple(command)
        self._supervision = supervision or SupervisionConfig()
        self._watch = HangWatch(self._supervision.hang_timeout, self._on_hang)
        self._state = EngineState.LOADING
        self._phase = "starting"
        self._figures = EngineFigures()
        self._info: ModelInfo | None = None
        self._callbacks: list[Callable[[EngineState], None]] = []
        self._child: Child | None = None
        self._ready: asyncio.Future[ModelInfo] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = asyncio.Lock()
        self._streams: dict[int, DeltaStream] = {}
        self._requests = itertools.count()
        self._num_rows = 0
        self._num_unbegun = 0
        self.most_unread = 0
        """Most deltas that were ever held at once for a reader that lagged: at most one for each of its sequences."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._stats: deque[asyncio.Future[Stats]] = deque()

    # ---- what the front reads ------------------------------------------------------------------------------

    @property
    def state(self) -> EngineState:
        """What health reports now."""
        return self._state

    @property
    def phase(self) -> str:
        """What start-up is doing, or why the engine stays down, for the log and error texts."""
        return self._phase

    @property
    def figures(self) -> EngineFigures:
        """What the engine has done and holds, as last heard of."""
        return self._figures

    @property
    def info(self) -> ModelInfo:
        """The loaded model. Raises EngineUnavailableError before the first READY."""
        if self._info is None:
            raise EngineUnavailableError(f"the model is loading: {self._phase}")
        return self._info

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None where there is none."""
        return None if self._child is None else self._child.pid

    @property
    def num_open(self) -> int:
        """Requests that were submitted and have not ended, as far as the front knows."""
        return len(self._streams)

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        """Call ``callback`` at every change of ``state``, on the event loop."""
        self._callbacks.append(callback)

    # ---- life ----------------------------------------------------------------------------------------------

    async def start(self) -> ModelInfo:
        """Spawn, load, warm up. Once. Raises ModelLoadError with one line for the operator."""
        try:
            info = await self._launch()
        except BaseException:
            self._set_state(EngineState.STOPPED)
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        return info

    async def drain(self, grace_s: float) -> None:
        """Refuse new sequences and wait for the running ones, at most ``grace_s`` seconds; then abort the rest."""
        if self._state is not EngineState.STOPPED:
            self._set_state(EngineState.DRAINING)
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            requests = list(self._streams)
            self._fail_streams(EngineUnavailableError("the server is shutting down", _RETRY_AFTER_S))
            self._send(Abort(requests))

    async def stop(self) -> None:
        """End the process. Open streams raise EngineUnavailableError. Idempotent; leaves no process behind."""
        self._set_state(EngineState.STOPPED)
        self._watch.stop()
        self._fail_all(EngineUnavailableError("the engine was stopped", _RETRY_AFTER_S))
        async with self._stopping:
            supervisor, self._supervisor = self._supervisor, None
            if supervisor is not None:
                supervisor.cancel()
                await asyncio.wait([supervisor])
            child, self._child = self._child, None
            if child is not None:
                child.send(Stop())
                await child.end(STOP_TIMEOUT_S)

    async def _launch(self) -> ModelInfo:
        """One process from spawn to READY. Raises ModelLoadError, EngineUnavailableError where ``stop`` came first."""
        if self._state is EngineState.STOPPED:
            raise EngineUnavailableError("the engine was stopped", _RETRY_AFTER_S)
        self._phase = "starting"
        self._figures.begin_process()
        self._ready = asyncio.get_running_loop().create_future()
        try:
            child = self._child = await Child.spawn(self._command, self._on_event, self._on_close)
        except OSError as error:
            raise ModelLoadError(f"the engine process cannot be started: {error}") from None
        try:
            child.send(self._start)
            info = await self._ready
            if child.closed.is_set():
                # It died after it was ready and before this task went on.
                raise ConnectionError("closed")
        except BaseException as error:
            if self._child is child:
                self._child = None
            child.send(Stop())
            how = await child.end(STOP_TIMEOUT_S)
            if isinstance(error, ConnectionError):
                raise ModelLoadError(f"the engine process ended while {self._phase}: {how}") from None
            raise
        self._info = info
        self._figures.enter_phase(None)
        self._watch.start()
        if self._state is EngineState.LOADING:
            self._set_state(EngineState.READY)
        return info

    async def _supervise(self) -> None:
        """Reap an engine that died and start another, until there is none to start or nobody wants one."""
        delays = self._supervision.restart_delays()
        num_ends = 0
        while True:
            child = self._child
            if child is None:
                break
            started_at = time.monotonic()
            await child.closed.wait()
            how = await child.end(STOP_TIMEOUT_S)
            self._child = None
            logger.error("the engine process ended: %s", how)
            if time.monotonic() - started_at >= self._supervision.restart_reset:
                delays = self._supervision.restart_delays()
                num_ends = 0
            num_ends += 1
            if self._state is EngineState.LOADING:
                self._phase = f"it ended {num_ends} times, at last: {how}" if num_ends > 1 else f"it ended: {how}"
                await self._relaunch(delays)
        logger.error("the engine stays down")
        self._set_state(EngineState.STOPPED)

    async def _relaunch(self, delays: Iterator[float]) -> None:
        for delay_s in delays:
            await asyncio.sleep(delay_s)
            if self._state is not EngineState.LOADING:
                return
            logger.warning("restarting the engine")
            self._figures.num_restarts += 1
            try:
                await self._launch()
            except EngineUnavailableError:
                return
            except ModelLoadError as error:
                logger.error("the engine did not come back: %s", error)
                self._phase = f"it did not come back: {error}"
            else:
                return

    # ---- requests ------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        *,
        negative_prompt_ids: Sequence[int] | None = None,
        deadline: float | None = None,
    ) -> DeltaStream:
        """Queue one validated request. Raises QueueFullError or EngineUnavailableError at once, never waits."""
        if self._state is not EngineState.READY or self._child is None:
            raise EngineUnavailableError(f"the engine is {self._state.value}", _RETRY_AFTER_S)
        num_beyond_running = self._num_rows - self._max_running
        if num_beyond_running >= 0 and min(num_beyond_running, self._num_unbegun) >= self._max_queued:
            raise QueueFullError(self._max_queued, _RETRY_AFTER_S)
        request = next(self._requests)
        negative_ids = None if negative_prompt_ids is None else list(negative_prompt_ids)
        submit = Submit(request, list(prompt_ids), settings, negative_prompt_ids=negative_ids, deadline=deadline)
        self._child.send(submit)
        stream = self._streams[request] = DeltaStream(
            request, self._abort, num_sequences=settings.num_return_sequences, num_rows=settings.num_rows
        )
        self._num_rows += stream.num_rows
        self._num_unbegun += stream.num_rows
        self._idle.clear()
        return stream

    async def stats(self) -> Stats:
        """The engine's counters between two steps. Raises EngineUnavailableError."""
        if self._state not in (EngineState.READY, EngineState.STALLED, EngineState.DRAINING) or self._child is None:
            raise EngineUnavailableError(f"the engine is {self._state.value}", _RETRY_AFTER_S)
        answer: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        self._child.send(GetStats())
        return await answer

    def _abort(self, request: int) -> None:
        self._forget(request)
        self._send(Abort([request]))

    def _send(self, command: Abort) -> None:
        if self._child is not None:
            self._child.send(command)

    def _forget(self, request: int) -> None:
        stream = self._streams.pop(request, None)
        if stream is not None:
            self._num_rows -= stream.num_rows
            if not stream.has_begun:
                self._num_unbegun -= stream.num_rows
        if not self._streams:
            self._idle.set()

    # ---- what the engine says ------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case StepOutputs():
                self._watch.hear()
                self._on_outputs(event)
            case Beat(stalled_s=stalled_s, stats=stats):
                self._watch.hear(stalled_s)
                self._figures.hear(stats, stalled_s)
            case Stats():
                answer = self._stats.popleft()
                if not answer.done():
                    answer.set_result(event)
            case Loading(phase=phase):
                self._phase = phase
                self._figures.enter_phase(phase)
                logger.info("loading", extra={"fields": {"phase": phase}})
            case Ready(info=info):
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(info)
            case LoadFailed(message=message):
                if self._ready is not None and not self._ready.done():
                    self._ready.set_exception(ModelLoadError(message))

    def _on_outputs(self, outputs: StepOutputs) -> None:
        streams = self._streams
        for delta in outputs.deltas:
            # Given up a moment ago: the abort and this step crossed.
            stream = streams.get(delta.request)
            if stream is None:
                continue
            if not stream.has_begun:
                self._num_unbegun -= stream.num_rows
            stream.push(delta)
            if stream.num_unread > self.most_unread:
                self.most_unread = stream.num_unread
            if stream.is_over:
                self._forget(delta.request)
        for failure in outputs.failures:
            stream = streams.get(failure.request)
            if stream is not None:
                self._forget(failure.request)
                stream.fail(error_of(failure))

    def _on_close(self) -> None:
        """The process is dead or dying: end what waits for it, at once."""
        self._watch.stop()
        self._figures.end_process()
        if self._state in (EngineState.READY, EngineState.STALLED):
            self._set_state(EngineState.LOADING)
        self._phase = "restarting" if self._info is not None else self._phase
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConnectionError("closed"))
        self._fail_all(EngineUnavailableError("the engine process ended", _RETRY_AFTER_S))

    def _on_hang(self, hangs: bool) -> None:
        if hangs:
            logger.error("the engine makes no progress", extra={"fields": {"seconds": round(self._watch.stalled_s, 1)}})
        else:
            logger.info("the engine makes progress again")
        if self._state is (EngineState.READY if hangs else EngineState.STALLED):
            self._set_state(EngineState.STALLED if hangs else EngineState.READY)

    def _fail_all(self, error: EngineUnavailableError) -> None:
        self._fail_streams(error)
        while self._stats:
            answer = self._stats.popleft()
            if not answer.done():
                answer.set_exception(error)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)

    def _fail_streams(self, error: EngineUnavailableError) -> None:
        streams = list(self._streams.values())
        self._streams.clear()
        self._num_rows = self._num_unbegun = 0
        self._idle.set()
        for stream in streams:
            stream.fail(error)

    def _set_state(self, state: EngineState) -> None:
        if state is self._state or self._state is EngineState.STOPPED:
            return
        self._state = state
        for callback in self._callbacks:
            try:
                callback(state)
            except Exception:
                logger.exception("a callback on the engine's state failed")
