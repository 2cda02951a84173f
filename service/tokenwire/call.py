"""What is known of the call being served: set by the interceptor, filled in by servicers, written to the log."""

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from tokenwire.errors import TokenwireError
from tokenwire.security.callers import ANONYMOUS, Caller, Priority

logger = logging.getLogger("tokenwire.requests")


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
    """W3C trace context of the caller, where it sent one."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token: float | None = None
    cause: BaseException | None = None
    """What failed, for the log, where it was not the request that was wrong."""

    def count(self, tokens: int) -> None:
        """Note that ``tokens`` more tokens came out of the model."""
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self.completion_tokens = (self.completion_tokens or 0) + tokens

    def count_prompt(self, tokens: int) -> None:
        """Note that a prompt of ``tokens`` tokens was accepted."""
        self.prompt_tokens = (self.prompt_tokens or 0) + tokens


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
