"""Between servicers and engine: requests wait here until the engine has room, in a fair order and within limits.

The engine takes what it is given first come, first served, so it is given what it can run at once and no more.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from tokenwire.admission.callers import CallerUse, CallerUses
from tokenwire.admission.fair_queue import FairQueue, Place
from tokenwire.admission.waiting import WaitingStream
from tokenwire.config import LimitsConfig
from tokenwire.engine.handle import EngineHandle, EngineState, EngineStream, TokenStream
from tokenwire.engine.protocol import Delta, Finish
from tokenwire.engine.settings import GenerationSettings
from tokenwire.errors import EngineUnavailableError, QueueFullError, QueueTimeoutError, TokenwireError
from tokenwire.security.callers import Caller, Priority

RETRY_AFTER_S = 1.0
"""When a refused caller should come back, give or take a quarter so that not all come at once."""

_GONE = (EngineState.LOADING, EngineState.DRAINING, EngineState.STOPPED)
"""States in which nothing that waits will start soon."""

_DEADLINE_MARGIN_S = 0.5
"""So long before its deadline a deadline-aware request that still waits gets an empty answer: time for its way to the
caller. Not from the engine, which may be in a pass that takes longer."""

_ITEM_MARGIN_S = 0.005
"""So much longer for each item of a batch: those behind the first ones are only tokenized then. Measured on two cores
with nothing else to do: 0.3 to 0.45 s for 256 short prompts."""


@dataclass(slots=True, eq=False)
class _Request:
    """One accepted request."""

    use: CallerUse
    place: Place
    prompt_ids: Sequence[int]
    settings: GenerationSettings
    negative_ids: Sequence[int] | None
    deadline: float | None
    num_items: int
    num_rows: int = field(init=False)
    num_prompt: int = field(init=False)
    """Tokens of its prompts."""
    reserved: int = field(init=False)
    """Tokens taken from the caller's bucket; what is not used goes back."""
    stream: EngineStream | None = None
    """The engine's, once it has the request."""
    waiting: WaitingStream | None = None
    queued_at: float = 0.0
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    """What happens to it if it waits too long."""

    def __post_init__(self) -> None:
        self.num_rows = self.settings.num_rows
        self.num_prompt = len(self.prompt_ids) + len(self.negative_ids or ())
        self.reserved = self.num_prompt + self.settings.max_new_tokens * self.settings.num_return_sequences

    @property
    def may_start(self) -> bool:
        """Whether its caller may have it running now."""
        return self.use.has_room_for(self.num_rows)

    @property
    def num_tokens(self) -> int:
        """Tokens computed for it so far."""
        return self.num_prompt + (0 if self.stream is None else self.stream.num_tokens)


class Admission:
    """One queue in front of one engine. Owned by the event loop.

    ``max_running``: rows that the engine computes at the same time.
    """

    def __init__(
        self,
        engine: EngineHandle,
        limits: LimitsConfig,
        *,
        max_running: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._max_running = max_running
        self._clock = clock
        self._queue: FairQueue[_Request] = FairQueue()
        self._running: set[_Request] = set()
        self._callers = CallerUses()
        self._num_rows = 0
        self.num_waiting = 0
        """Requests that wait."""
        self.num_waiting_tokens = 0
        """Of their prompts."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._filling = False
        engine.on_state_change(self._engine_changed)

    @property
    def num_running(self) -> int:
        """Requests that the engine has."""
        return len(self._running)

    def check_room(self, caller: Caller) -> None:
        """Refuse early what ``submit`` would refuse whatever the request is: before its prompt is tokenized.

        Raises QueueFullError, CallerLimitError.
        """
        now = self._clock()
        use = self._callers.of(caller, now)
        use.check_tokens(1, now)
        if self._num_rows >= self._max_running or not use.has_room_for(1):
            self._check_queue(use)

    def submit(
        self,
        caller: Caller,
        priority: Priority,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        *,
        negative_prompt_ids: Sequence[int] | None = None,
        deadline: float | None = None,
        num_items: int = 1,
    ) -> TokenStream:
        """Hand a validated request to the engine, or let it wait for room there. Never waits itself.

        ``num_items``: how many requests the caller's call has, all of which are to be answered before ``deadline``.
        Raises QueueFullError, CallerLimitError or EngineUnavailableError; the stream may raise QueueTimeoutError.
        """
        if self._engine.state is not EngineState.READY:
            raise EngineUnavailableError(f"the engine is {self._engine.state.value}")
        now = self._clock()
        use = self._callers.of(caller, now)
        place = Place(priority, caller.name)
        request = _Request(use, place, prompt_ids, settings, negative_prompt_ids, deadline, num_items)
        use.check_tokens(request.reserved, now)
        if request.may_start and self._fits(request) and self._next() is None:
            self._take_tokens(request, now)
            try:
                return self._start(request)
            except TokenwireError:
                self._return_tokens(request, request.reserved)
                raise
        self._check_queue(use)
        self._take_tokens(request, now)
        return self._wait(request, now)

    async def drain(self, grace_s: float) -> None:
        """Let what waits and runs come to its end, at most ``grace_s`` seconds; then end the rest."""
        began_at = self._clock()
        try:
            async with asyncio.timeout(grace_s):
                await self._empty.wait()
        except TimeoutError:
            self._fail_waiting("the server is shutting down")
        await self._engine.drain(max(0.0, grace_s - (self._clock() - began_at)))

    # ---- what there is room for ----------------------------------------------------------------------------

    def _check_queue(self, use: CallerUse) -> None:
        limits = self._limits
        retry_after_s = RETRY_AFTER_S * random.uniform(0.75, 1.25)  # noqa: S311  no secret
        if self.num_waiting >= limits.max_queued:
            raise QueueFullError(limits.max_queued, retry_after_s)
        if self.num_waiting_tokens >= limits.max_queued_tokens:
            raise QueueFullError(limits.max_queued_tokens, retry_after_s, "prompt tokens")
        use.check_queue(retry_after_s)

    def _fits(self, request: _Request) -> bool:
        """Whether the engine can begin with it at once: it has the rows, and blocks for the prompt."""
        if not self._running:
            return True
        if self._num_rows + request.num_rows > self._max_running:
            return False
        held = sum(other.num_tokens for other in self._running)
        return held + request.num_prompt <= self._engine.info.kv_token_capacity

    def _next(self) -> tuple[Place, _Request] | None:
        if not self.num_waiting:
            return None
        return self._queue.next(lambda request: request.may_start)

    # ---- what waits ----------------------------------------------------------------------------------------

    def _wait(self, request: _Request, now: float) -> TokenStream:
        loop = asyncio.get_running_loop()
        request.queued_at = now
        request.waiting = WaitingStream(lambda: self._leave(request, None))
        self._queue.add(request, request.place)
        request.use.num_queued += 1
        self.num_waiting += 1
        self.num_waiting_tokens += request.num_prompt
        self._empty.clear()
        limit_s = self._limits.queue_timeout
        if limit_s is not None:
            error = QueueTimeoutError(limit_s, RETRY_AFTER_S)
            request.timers.append(loop.call_later(limit_s, lambda: self._leave(request, error)))
        if request.deadline is not None:
            margin_s = _DEADLINE_MARGIN_S + _ITEM_MARGIN_S * (request.num_items - 1)
            in_s = max(0.0, request.deadline - now - margin_s)
            request.timers.append(loop.call_later(in_s, lambda: self._end_empty(request)))
        # It may go before all that wait, and fit where they do not.
        self._fill_later()
        return request.waiting

    def _unqueue(self, request: _Request) -> None:
        """It waits no longer."""
        request.use.num_queued -= 1
        self.num_waiting -= 1
        self.num_waiting_tokens -= request.num_prompt
        for timer in request.timers:
            timer.cancel()
        if not self.num_waiting:
            self._empty.set()

    def _leave(self, request: _Request, error: TokenwireError | None) -> None:
        """Give up waiting; ``error``: what its reader is told, if there is one."""
        self._queue.remove(request, request.place)
        self._unqueue(request)
        self._return_tokens(request, request.reserved)
        if error is not None and request.waiting is not None:
            request.waiting.fail(error)
        # Those behind it may have waited for its start alone.
        self._fill_later()

    def _end_empty(self, request: _Request) -> None:
        """Its deadline is near, and it asked for what there is by then: nothing."""
        if request.waiting is not None:
            request.waiting.end(_empty_answer(request, self._clock() - request.queued_at))
        self._leave(request, None)

    def _fail_waiting(self, message: str) -> None:
        for request in list(self._queue):
            self._leave(request, EngineUnavailableError(message, RETRY_AFTER_S))

    def _engine_changed(self, state: EngineState) -> None:
        if state is EngineState.READY:
            self._fill_later()
        elif state in _GONE:
            self._fail_waiting(f"the engine is {state.value}")

    # ---- what runs -----------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start whoever goes next, as long as there is room.

        Nobody overtakes one that needs more room than there is now: it might never get it.
        """
        self._filling = False
        if self._engine.state is not EngineState.READY:
            # It would refuse them. Once it gets on, or is gone, there is word of it.
            return
        while (found := self._next()) is not None:
            place, request = found
            if not self._fits(request):
                return
            self._queue.start(place)
            self._begin(request)

    def _fill_later(self) -> None:
        # Not from within the engine's own bookkeeping of what has just ended.
        if not self._filling and self.num_waiting:
            self._filling = True
            asyncio.get_running_loop().call_soon(self._fill)

    def _begin(self, request: _Request) -> None:
        """Give the engine a request that has waited."""
        self._unqueue(request)
        waited_s = self._clock() - request.queued_at
        if request.settings.max_time is not None:
            # It counts from when the request came.
            left_s = max(request.settings.max_time - waited_s, 0.001)
            request.settings = msgspec.structs.replace(request.settings, max_time=left_s)
        waiting = request.waiting
        if waiting is None:
            return
        try:
            waiting.start(self._start(request), waited_s)
        except TokenwireError as error:
            self._return_tokens(request, request.reserved)
            waiting.fail(error)

    def _start(self, request: _Request) -> EngineStream:
        stream = request.stream = self._engine.submit(
            request.prompt_ids,
            request.settings,
            negative_prompt_ids=request.negative_ids,
            deadline=request.deadline,
        )
        # The engine has them now.
        request.prompt_ids = ()
        request.negative_ids = None
        self._running.add(request)
        self._num_rows += request.num_rows
        request.use.num_running += request.num_rows
        stream.on_end(lambda: self._ended(request))
        return stream

    def _ended(self, request: _Request) -> None:
        self._running.discard(request)
        self._num_rows -= request.num_rows
        request.use.num_running -= request.num_rows
        self._return_tokens(request, request.reserved - request.num_tokens)
        self._fill_later()

    # ---- tokens per minute ---------------------------------------------------------------------------------

    @staticmethod
    def _take_tokens(request: _Request, now: float) -> None:
        if request.use.bucket is not None:
            request.use.bucket.take(request.reserved, now)

    @staticmethod
    def _return_tokens(request: _Request, count: int) -> None:
        if request.use.bucket is not None:
            request.use.bucket.give_back(max(count, 0))


def _empty_answer(request: _Request, waited_s: float) -> list[Delta]:
    """What a request that never started has, sequence by sequence."""
    finish = Finish(
        reason="deadline",
        stop_string=None,
        stop_token_id=None,
        # The one that is healed is one of the prompt, and comes apart from it.
        prompt_token_count=len(request.prompt_ids) + (request.settings.healed_token_id is not None),
        completion_token_count=0,
        queue_ms=waited_s * 1000,
        prefill_ms=0.0,
        decode_ms=0.0,
    )
    return [Delta(0, [], "", [], finish, index) for index in range(request.settings.num_return_sequences)]
