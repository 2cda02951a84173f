"""What a stream has shown so far. No I/O: the streams of both faces of the client share it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from tokenwire.client import responses
from tokenwire.client.errors import Cancelled, InternalError, TokenwireError, from_rpc_error
from tokenwire.client.types import Delta, Finish, Generation, PositionLogprobs, Start


@dataclass(slots=True)
class StreamRecord:
    """The events of a stream, accumulated."""

    start: Start | None = None
    finish: Finish | None = None
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)

    def take(self, message: Any) -> Delta | None:
        """Note one message of the stream; return it if it is a delta."""
        event = responses.event(message)
        if isinstance(event, Delta):
            self.texts.append(event.text)
            self.token_ids += event.token_ids
            self.logprobs += event.logprobs
            return event
        if isinstance(event, Start):
            self.start = event
        elif isinstance(event, Finish):
            self.finish = event
        return None


class StreamBase:
    """The part of a stream that needs no I/O."""

    def __init__(self, target: str, open_call: Callable[[], Any]) -> None:
        self._target = target
        self._open = open_call
        self._call: Any = None
        self._record = StreamRecord()
        self._cancelled = False

    @property
    def start(self) -> Start:
        """What the server is doing: request id, settings in force, prompt tokens. There once the context is entered."""
        if self._record.start is None:
            raise RuntimeError("the stream has not started: use it in a `with` or `async with` statement")
        return self._record.start

    @property
    def finish(self) -> Finish:
        """How the answer ended. There once the stream was read to its end; until then RuntimeError."""
        if self._record.finish is None:
            raise RuntimeError("the stream has not ended: read it to its end first")
        return self._record.finish

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self._record.finish is not None

    @property
    def text_so_far(self) -> str:
        """The text that has arrived."""
        return "".join(self._record.texts)

    def cancel(self) -> None:
        """Stop the answer; the iteration then raises Cancelled. Leaving the context does the same silently."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def _opened(self) -> Any:
        if self._call is None:
            raise RuntimeError("the stream has not started: use it in a `with` or `async with` statement")
        return self._call

    def _check_start(self) -> None:
        if self._record.start is None:
            raise InternalError("the stream did not begin with a start event")

    def _check_finish(self) -> None:
        if self._record.finish is None:
            raise InternalError("the stream ended without a finish event")

    def _result(self) -> Generation:
        record = self._record
        return Generation(self.text_so_far, tuple(record.token_ids), tuple(record.logprobs), self.start, self.finish)

    def _error(self, error: grpc.RpcError) -> TokenwireError:
        if self._cancelled:
            return Cancelled("the answer was stopped")
        return from_rpc_error(error, target=self._target, answered=self._record.start is not None)
