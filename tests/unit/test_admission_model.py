"""Admission against a model of it: in whatever order requests come, run, end and give up, nothing is lost or stuck."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenwire.admission.admission import _DEADLINE_MARGIN_S, Admission
from tokenwire.config import LimitsConfig
from tokenwire.engine.handle import EngineState
from tokenwire.engine.settings import GenerationSettings
from tokenwire.errors import CallerLimitError, EngineUnavailableError, QueueFullError, QueueTimeoutError
from tokenwire.security.callers import Caller, Limits, Priority

# For the deep profile.
pytestmark = pytest.mark.timeout(1800)

limits = st.none() | st.integers(1, 6)
CALLERS = ("alice", "bob", "nightly")


@dataclass(eq=False)
class Stream:
    """What the engine gives: ends when the test says so."""

    engine: "Engine"
    request: int
    num_rows: int
    num_tokens: int = 0
    ended: bool = False
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    def on_end(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            del self.engine.running[self.request]
            for callback in self.callbacks:
                callback()


class Engine:
    """Implements of `handle.EngineHandle` what admission needs."""

    def __init__(self, capacity: int) -> None:
        self.state = EngineState.READY
        self.info = SimpleNamespace(kv_token_capacity=capacity)
        self.running: dict[int, Stream] = {}
        self.started: list[int] = []
        self.callbacks: list[Callable[[EngineState], None]] = []

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        self.callbacks.append(callback)

    def submit(self, prompt_ids: list[int], settings: GenerationSettings, **_: Any) -> Stream:
        if self.state is not EngineState.READY:
            raise EngineUnavailableError(f"the engine is {self.state.value}")
        request = prompt_ids[0]
        assert request not in self.started, "started twice"
        self.started.append(request)
        stream = self.running[request] = Stream(self, request, settings.num_rows)
        return stream

    def enter(self, state: EngineState) -> None:
        self.state = state
        if state is EngineState.LOADING:
            for stream in list(self.running.values()):
                stream.close()
        for callback in self.callbacks:
            callback(state)

    async def drain(self, grace_s: float) -> None:
        for stream in list(self.running.values()):
            stream.close()


@dataclass
class Request:
    """One that was accepted."""

    caller: str
    priority: Priority
    num_prompt: int
    num_rows: int
    stream: Any
    deadline: float | None
    given_up: bool = False


class AdmissionMachine(RuleBasedStateMachine):
    """The real admission on a loop whose clock the test sets."""

    @initialize(
        max_running=st.integers(1, 6),
        capacity=st.integers(10, 80),
        max_queued=st.integers(1, 8),
        max_queued_tokens=st.integers(5, 60),
        queue_timeout=st.none() | st.floats(1.0, 30.0),
        own=st.tuples(*[st.tuples(limits, limits, st.none() | st.integers(20, 200)) for _ in CALLERS]),
    )
    def begin(
        self,
        max_running: int,
        capacity: int,
        max_queued: int,
        max_queued_tokens: int,
        queue_timeout: float | None,
        own: tuple[tuple[int | None, int | None, int | None], ...],
    ) -> None:
        self.now = 1000.0
        self.loop = asyncio.new_event_loop()
        self.loop.time = lambda: self.now  # type: ignore[method-assign]
        self.engine = Engine(capacity)
        self.max_running = max_running
        self.limits = LimitsConfig(
            max_queued=max_queued, max_queued_tokens=max_queued_tokens, queue_timeout=queue_timeout
        )
        self.callers = {
            name: Caller(
                name=name,
                roles=frozenset({"inference"}),
                limits=Limits(max_running=running, max_queued=queued, tokens_per_minute=tokens),
            )
            for name, (running, queued, tokens) in zip(CALLERS, own, strict=True)
        }
        self.requests: dict[int, Request] = {}
        self.num_asked = 0
        self.gone: set[int] = set()
        """Those that waited when the engine died."""
        self.on_loop(self.create)

    def create(self) -> None:
        engine: Any = self.engine
        self.admission = Admission(engine, self.limits, max_running=self.max_running, clock=lambda: self.now)

    def on_loop(self, act: Callable[[], Any]) -> Any:
        """Act on the loop, and let what follows from it happen."""

        async def acting() -> Any:
            result = act()
            for _ in range(5):
                await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(acting())

    # ---- what happens --------------------------------------------------------------------------------------

    @rule(
        caller=st.sampled_from(CALLERS),
        priority=st.sampled_from(["low", "normal", "high"]),
        num_prompt=st.integers(1, 20),
        num_rows=st.integers(1, 3),
        max_new_tokens=st.integers(1, 8),
        max_time=st.none() | st.floats(0.1, 20.0),
        deadline_in=st.none() | st.floats(0.0, 20.0),
    )
    def submit(
        self,
        caller: str,
        priority: Priority,
        num_prompt: int,
        num_rows: int,
        max_new_tokens: int,
        max_time: float | None,
        deadline_in: float | None,
    ) -> None:
        number, self.num_asked = self.num_asked, self.num_asked + 1
        settings = GenerationSettings(
            max_new_tokens=max_new_tokens, num_return_sequences=num_rows, do_sample=True, max_time=max_time
        )
        deadline = None if deadline_in is None else self.now + deadline_in
        before = self.admission.num_waiting

        def submit() -> Any:
            return self.admission.submit(
                self.callers[caller], priority, [number] * num_prompt, settings, deadline=deadline
            )

        try:
            stream = self.on_loop(submit)
        except EngineUnavailableError:
            assert self.engine.state is not EngineState.READY
        except QueueFullError:
            tokens = self.admission.num_waiting_tokens
            assert before >= self.limits.max_queued or tokens >= self.limits.max_queued_tokens
        except CallerLimitError:
            assert self.callers[caller].limits != Limits()
        else:
            self.requests[number] = Request(caller, priority, num_prompt, num_rows, stream, deadline)

    @precondition(lambda self: self.engine.running)
    @rule(data=st.data(), count=st.integers(1, 5))
    def generate(self, data: st.DataObject, count: int) -> None:
        self.engine.running[data.draw(st.sampled_from(sorted(self.engine.running)))].num_tokens += count

    @precondition(lambda self: self.engine.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.on_loop(self.engine.running[data.draw(st.sampled_from(sorted(self.engine.running)))].close)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = self.requests[data.draw(st.sampled_from(sorted(self.requests)))]
        request.given_up = True
        self.on_loop(request.stream.close)

    @rule(seconds=st.floats(0.01, 30.0))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        self.on_loop(lambda: None)

    @rule()
    def the_engine_hangs_or_gets_on(self) -> None:
        is_ready = self.engine.state is EngineState.READY
        self.on_loop(lambda: self.engine.enter(EngineState.STALLED if is_ready else EngineState.READY))

    @rule()
    def the_engine_dies_and_comes_back(self) -> None:
        self.gone.update(self.waiting())
        self.on_loop(lambda: self.engine.enter(EngineState.LOADING))
        assert not self.waiting()
        self.on_loop(lambda: self.engine.enter(EngineState.READY))

    @rule()
    def all_end_one_after_the_other(self) -> None:
        """Whatever waits starts, as long as what runs ends: nobody starves."""
        self.on_loop(lambda: self.engine.enter(EngineState.READY))
        for _ in range(len(self.requests) + 1):
            if not self.engine.running:
                break
            self.on_loop(self.engine.running[min(self.engine.running)].close)
        assert not self.waiting()
        assert not self.engine.running

    def teardown(self) -> None:
        if hasattr(self, "admission"):
            self.loop.run_until_complete(self.admission.drain(0.0))
            assert not self.waiting()
            assert not self.admission._num_rows
            for use in self.admission._callers._by_name.values():
                assert (use.num_running, use.num_queued) == (0, 0)
            self.loop.close()

    # ---- what must hold ------------------------------------------------------------------------------------

    def waiting(self) -> list[int]:
        """Requests that were accepted and neither started nor ended."""
        return [
            number
            for number, request in self.requests.items()
            if number not in self.engine.started
            and getattr(request.stream, "_error", None) is None
            and not self.is_answered(request)
        ]

    @staticmethod
    def is_answered(request: Request) -> bool:
        """Whether it ended without having begun, as its deadline came near."""
        return getattr(request.stream, "_answer", None) is not None

    @invariant()
    def the_counts_are_those_of_the_requests(self) -> None:
        if not hasattr(self, "admission"):
            return
        admission, waiting = self.admission, self.waiting()
        assert admission.num_waiting == len(waiting) == len(list(admission._queue))
        assert admission.num_waiting <= self.limits.max_queued
        assert admission.num_waiting_tokens == sum(self.requests[number].num_prompt for number in waiting)
        rows = {number: self.requests[number].num_rows for number in self.engine.running}
        assert admission._num_rows == sum(rows.values())
        assert len(rows) <= 1 or admission._num_rows <= self.max_running
        running, queued = Counter[str](), Counter(self.requests[number].caller for number in waiting)
        for number, count in rows.items():
            running[self.requests[number].caller] += count
        for use in admission._callers._by_name.values():
            assert (use.num_running, use.num_queued) == (running[use.name], queued[use.name])
            assert use.bucket is None or use.bucket._level <= use.bucket._capacity
        assert admission._empty.is_set() == (not waiting)

    @invariant()
    def nobody_waits_who_could_start(self) -> None:
        if not hasattr(self, "admission") or self.engine.state is not EngineState.READY:
            return
        found = self.admission._next()
        assert found is None or not self.admission._fits(found[1])
        # A request whose caller may not start waits for one of that caller's own to end.
        assert self.engine.running or not self.waiting(), "they wait for nothing"

    @invariant()
    def those_of_one_caller_and_class_start_in_order(self) -> None:
        if not hasattr(self, "admission"):
            return
        last: dict[tuple[str, Priority], int] = {}
        for number in self.engine.started:
            request = self.requests.get(number)
            if request is not None:
                place = request.caller, request.priority
                assert last.get(place, -1) < number
                last[place] = number

    @invariant()
    def who_did_not_start_was_told_why(self) -> None:
        for number, request in getattr(self, "requests", {}).items():
            error = getattr(request.stream, "_error", None)
            if self.is_answered(request):
                assert number not in self.engine.started
                assert request.deadline is not None
                assert request.deadline <= self.now + _DEADLINE_MARGIN_S
            if error is None or request.given_up:
                continue
            if isinstance(error, EngineUnavailableError):
                assert number in self.gone
            else:
                assert isinstance(error, QueueTimeoutError)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = hypothesis_settings(stateful_step_count=25)


def machine(max_running: int, capacity: int) -> AdmissionMachine:
    state = AdmissionMachine()
    state.begin(
        max_running=max_running,
        capacity=capacity,
        max_queued=8,
        max_queued_tokens=60,
        queue_timeout=None,
        own=((None, None, None),) * len(CALLERS),
    )
    return state


def submit(state: AdmissionMachine, num_prompt: int) -> None:
    state.submit(
        caller="alice",
        priority="normal",
        num_prompt=num_prompt,
        num_rows=1,
        max_new_tokens=1,
        max_time=None,
        deadline_in=None,
    )


def test_who_waits_behind_one_that_gives_up_starts_at_once() -> None:
    state = machine(max_running=4, capacity=10)
    for num_prompt in (8, 5, 2):
        submit(state, num_prompt)
    assert state.engine.started == [0]
    state.on_loop(state.requests[1].stream.close)
    assert state.engine.started == [0, 2]
    state.teardown()


def test_who_waits_while_the_engine_hangs_is_not_refused() -> None:
    state = machine(max_running=1, capacity=10)
    for _ in range(2):
        submit(state, 1)
    state.on_loop(lambda: state.engine.enter(EngineState.STALLED))
    state.on_loop(state.engine.running[0].close)
    assert state.waiting() == [1]
    state.on_loop(lambda: state.engine.enter(EngineState.READY))
    assert state.engine.started == [0, 1]
    state.teardown()
