"""What is known of the call being served: set by the interceptor, filled in by servicers, written to the log."""

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from tokenwire.engine.protocol import Finish
from tokenwire.engine.settings import GenerationSettings
from tokenwire.errors import TokenwireError
from tokenwire.security.callers import ANONYMOUS, Caller, Priority

logger = logging.getLogger("tokenwire.requests")

_GENERATING = frozenset(
    f"/tokenwire.v1.GenerationService/{name}"
    for name in ("Generate", "GenerateStream", "GenerateBatch", "Chat", "ChatStream")
)


class Observer(Protocol):
    """Is told what calls do. On the event loop, for every token: nothing here may take long, wait or raise."""

    def begun(self, seconds: float, tokens: int) -> None:
        """The first tokens of a sequence came ``seconds`` after its call."""

    def went_on(self, seconds: float, tokens: int) -> None:
        """``tokens`` came ``seconds`` after the ones before them of the same sequence."""

    def sequence_ended(self, finish: Finish) -> None:
        """A sequence came to its end."""

    def failed(self, code: str, reason: str, priority: Priority, *, is_unserved: bool) -> None:
        """A call, or an item of a batch, ended with an error. ``is_unserved``: it was to generate, no token came."""

    def call_ended(self, call: "Call", code: str, seconds: float) -> None:
        """A call is over; ``seconds``: since it came."""


class Trace(Protocol):
    """The span of one call. Nothing here may wait or raise."""

    @property
    def traceparent(self) -> str | None:
        """W3C trace context of the call's own span."""

    @property
    def tracestate(self) -> str | None:
        """What vendors keep beside it."""

    def sequence_ended(self, submitted: float, finish: Finish, index: int) -> None:
        """A sequence has come to its end, whose request was submitted at ``submitted``, in seconds of perf_counter."""

    def end(self, call: "Call", code: str, reason: str | None) -> None:
        """The call is over."""


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, call: "Call", tracestate: str | None) -> Trace:
        """The span of ``call``, below the caller's where it sent a trace context."""


@dataclass(slots=True)
class Call:
    """One RPC. Times in seconds of ``time.perf_counter``; counts stay None for calls that generate nothing."""

    request_id: str
    method: str
    started: float = field(default_factory=time.perf_counter)
    deadline: float | None = None
    """When the caller gives up, in seconds of ``time.monotonic``; None for never."""
    caller: Caller = ANONYMOUS
    priority: Priority = "normal"
    """Where its requests wait."""
    traceparent: str | None = None
    """W3C trace context: of the call's own span where it is traced, otherwise of the caller where it sent one."""
    tracestate: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None
    observer: Observer | None = None
    """Who is told what it does."""
    finish: Finish | None = None
    """Of the sequence that ended last."""
    trace: Trace | None = None
    """Its span, where calls are traced."""
    settings: GenerationSettings | None = None
    """Of the request that was submitted last."""
    model: str = ""
    """Id of the model that answers."""
    returned: tuple[tuple[str, str], ...] = ()
    """Metadata that it ends with beside the ids."""
    cause: BaseException | None = None
    """What failed, for the log, where it was not the request that was wrong."""
    is_failure_told: bool = False
    """Whether the observer knows how it fails: from another call of the same stream."""

    @property
    def is_unserved(self) -> bool:
        """Whether it is to generate and no token has come."""
        return self.method in _GENERATING and not self.completion_tokens

    def count_prompt(self, tokens: int) -> None:
        """Note that a prompt of ``tokens`` tokens was accepted."""
        self.prompt_tokens = (self.prompt_tokens or 0) + tokens


class Progress:
    """The answer to one request of a call, from its submission on. A batch has one per item, other calls have one."""

    __slots__ = ("_call", "_last", "_submitted", "_went_on")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._went_on = None if call.observer is None else call.observer.went_on
        self._submitted = time.perf_counter()
        # By sequence: when its latest tokens came.
        self._last: dict[int, float] = {}

    @property
    def has_begun(self) -> bool:
        """Whether a token has come, as far as an observer is to know."""
        return bool(self._last)

    def count(self, tokens: int, sequence_index: int) -> None:
        """Note that ``tokens`` more tokens of a sequence came out of the model."""
        if not tokens:
            return
        call = self._call
        call.completion_tokens = (call.completion_tokens or 0) + tokens
        if self._went_on is None:
            if call.first_token is None:
                call.first_token = time.perf_counter()
            return
        now = time.perf_counter()
        last = self._last.get(sequence_index)
        self._last[sequence_index] = now
        if last is not None:
            self._went_on(now - last, tokens)
            return
        if call.first_token is None:
            call.first_token = now
        if call.observer is not None:
            call.observer.begun(now - call.started, tokens)

    def finish(self, finish: Finish, sequence_index: int) -> None:
        """Note that a sequence has ended."""
        call = self._call
        call.finish = finish
        if call.trace is not None:
            call.trace.sequence_ended(self._submitted, finish, sequence_index)
        if call.observer is not None:
            call.observer.sequence_ended(finish)


_current: ContextVar[Call] = ContextVar("tokenwire_call")


def enter_call(call: Call) -> None:
    """Make ``call`` the current one of this task and of the tasks that it starts."""
    _current.set(call)


def current_call() -> Call:
    """The call that this task serves."""
    return _current.get()


def log(level: int, event: str, fields: dict[str, object], cause: BaseException | None) -> None:
    """Write one line. An error raised on purpose is a field of it; one that nobody foresaw comes with its trace."""
    if not logger.isEnabledFor(level):
        return
    if isinstance(cause, TokenwireError):
        fields["cause"] = " ".join(str(cause).split())
        cause = None
    logger.log(level, event, extra={"fields": fields}, exc_info=cause)
