"""What a stream has shown so far. No I/O: the streams of both faces of the client share it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from tokenwire.client import calls, responses
from tokenwire.client.calls import Call
from tokenwire.client.channel import Connection
from tokenwire.client.errors import Cancelled, ConnectionFailed, InternalError, TokenwireError, from_rpc_error
from tokenwire.client.results import (
    Delta,
    Finish,
    GeneratedSequence,
    Generation,
    PositionLogprobs,
    Start,
    TokenDetail,
    TokenExplanation,
)
from tokenwire.client.types import StreamPosition

_RESUME_S = 30.0
"""How long a resumable stream tries to reach the server again, in seconds."""

_FORGET_S = 5.0
"""How long telling the server that a stream need not be kept may take, in seconds."""


@dataclass(slots=True)
class SequenceRecord:
    """What has come of one sequence."""

    finish: Finish | None = None
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    tokens: list[TokenDetail] = field(default_factory=list)
    explanations: list[TokenExplanation] = field(default_factory=list)
    begun: StreamPosition = field(default_factory=lambda: StreamPosition(token_count=0))
    """What had arrived before; None of its tokens where their number is not known."""
    text_bytes: int = 0
    """Where its text ends, once a delta has come."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing of it is missing."""
        return self.finish is not None or self.begun.is_finished

    def position(self, index: int) -> StreamPosition:
        """How much of it has arrived."""
        before = self.begun.token_count
        return StreamPosition(
            index,
            max(self.text_bytes, self.begun.text_bytes),
            None if before is None else before + len(self.token_ids),
            self.is_finished,
        )

    def take(self, delta: Delta) -> None:
        """Note one delta."""
        self.text_bytes = delta.text_range[1]
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.tokens += delta.tokens
        self.explanations += delta.explanations

    def whole(self, finish: Finish) -> GeneratedSequence:
        """The sequence that ended with ``finish``."""
        return GeneratedSequence(
            "".join(self.texts),
            tuple(self.token_ids),
            tuple(self.logprobs),
            finish,
            tuple(self.tokens),
            tuple(self.explanations),
        )


@dataclass(slots=True)
class StreamRecord:
    """The events of a stream, accumulated."""

    start: Start | None = None
    sequences: list[SequenceRecord] = field(default_factory=lambda: [SequenceRecord()])
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    begun: tuple[StreamPosition, ...] = ()
    """What had arrived before it was resumed."""

    def take(self, message: Any) -> Delta | None:
        """Note one message of the stream; return it if it is a delta."""
        event = responses.event(message)
        if isinstance(event, Start):
            if self.start is None:
                self.start = event
                self.sequences = [SequenceRecord() for _ in range(event.num_sequences)]
                for position in self.begun:
                    self.sequences[position.sequence_index].begun = position
        elif event is not None and not 0 <= event.sequence_index < len(self.sequences):
            raise InternalError(f"the stream has an event of sequence {event.sequence_index}, which nobody asked for")
        elif isinstance(event, Delta):
            self.sequences[event.sequence_index].take(event)
            # They come once; where a stream is resumed before its first token, possibly again.
            self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
            return event
        elif isinstance(event, Finish):
            self.sequences[event.sequence_index].finish = event
        return None

    @property
    def finishes(self) -> list[Finish]:
        """Those that have come, by sequence."""
        return [sequence.finish for sequence in self.sequences if sequence.finish is not None]

    @property
    def is_finished(self) -> bool:
        """Whether every sequence has its finish."""
        return all(sequence.is_finished for sequence in self.sequences)


class StreamBase:
    """The part of a stream that needs no I/O."""

    completed: Callable[[], None] | None = None
    """Called once, when the answer is complete."""

    def __init__(self, connection: Connection, call: Call, begun: tuple[StreamPosition, ...] = ()) -> None:
        self._connection = connection
        self._request = call
        self._call: Any = None
        self._record = StreamRecord(begun=begun)
        self._cancelled = False
        self._is_kept = bool(call.options.get("resumable"))
        """Whether the server keeps the answer until it is told otherwise."""
        self._forgetting: Any = None
        self._ends_at: float | None = None
        self._lost_at: float | None = None
        """Since when the connection is broken, in seconds of ``time.monotonic``."""
        self._started_at: float | None = None
        """When the start of the call that is read came, if it did."""
        self._num_attempts = 0
        self._pause_s = 0.0
        """The last pause before it was resumed."""

    @property
    def start(self) -> Start:
        """What the server is doing: request id, settings in force, prompt tokens. There once the context is entered."""
        if self._record.start is None:
            raise RuntimeError("the stream has not started: use it in a `with` or `async with` statement")
        return self._record.start

    @property
    def finish(self) -> Finish:
        """How the answer ended, of several sequences the first.

        There once the stream was read to its end; until then RuntimeError.
        """
        return self.finishes[0]

    @property
    def finishes(self) -> tuple[Finish, ...]:
        """How each sequence ended. There once the stream was read to its end; until then RuntimeError."""
        if not self._record.is_finished:
            raise RuntimeError("the stream has not ended: read it to its end first")
        return tuple(self._record.finishes)

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self._record.start is not None and self._record.is_finished

    @property
    def text_so_far(self) -> str:
        """The text that has arrived, of several sequences the first."""
        return "".join(self._record.sequences[0].texts)

    @property
    def positions(self) -> tuple[StreamPosition, ...]:
        """How much of each sequence has arrived: what ``resume`` takes."""
        if self._record.start is None:
            return self._record.begun
        return tuple(sequence.position(index) for index, sequence in enumerate(self._record.sequences))

    def cancel(self) -> None:
        """Stop the answer; the iteration then raises Cancelled. Leaving the context does the same silently."""
        self._cancelled = True
        if self._call is not None:
            self._forget()
            self._call.cancel()

    def detach(self) -> None:
        """Stop reading a resumable stream and leave its answer to ``resume``; the iteration then raises Cancelled."""
        self._is_kept = False
        self.cancel()

    def _forget(self) -> Any:
        """Tell the server, once, that it need not keep the answer. The call that does so, or None."""
        if self._is_kept and self._record.start is not None:
            self._is_kept = False
            options = self._options_for_more(timeout=_FORGET_S)
            self._forgetting = self._connection.start_unary(calls.cancel(self._record.start.request_id, options))
        return self._forgetting

    def _options_for_more(self, *, timeout: float | None) -> dict[str, Any]:
        given = {
            name: self._request.options[name] for name in ("metadata", "request_id") if name in self._request.options
        }
        return {**given, "timeout": timeout}

    def _pause_before_resuming(self, error: TokenwireError) -> float:
        """Seconds until ``_reopen`` may go on with the stream that ``error`` ended; raises it where nothing can.

        With pauses that grow to 1 s, for 30 s from when the connection broke. A call that began and lived longer than
        the pause before it had reached the server, also where its request still waits there: the 30 s begin anew.
        """
        now = time.monotonic()
        if self._lost_at is None or (self._started_at is not None and now - self._started_at > self._pause_s):
            self._lost_at = now
        self._started_at = None
        if (
            not isinstance(error, ConnectionFailed)
            or not self._is_kept
            or self._record.start is None
            or now - self._lost_at > _RESUME_S
            or (self._ends_at is not None and now >= self._ends_at)
        ):
            raise error from None
        self._num_attempts += 1
        self._pause_s = min(1.0, 0.05 * 2.0 ** min(self._num_attempts, 10))
        return self._pause_s

    def _reopen(self) -> None:
        left_s = None if self._ends_at is None else max(0.001, self._ends_at - time.monotonic())
        call = calls.resume(self.start.request_id, self.positions, self._options_for_more(timeout=left_s))
        self._call = self._connection.start(call)
        if self._cancelled:
            self._call.cancel()

    def _take(self, message: Any) -> Delta | None:
        if message.HasField("start"):
            # It comes with every call, also where nothing behind it ever arrives.
            self._started_at = time.monotonic()
        else:
            self._lost_at, self._num_attempts = None, 0
        return self._record.take(message)

    def _open(self) -> None:
        timeout = self._connection.timeout_of(self._request)
        self._ends_at = None if timeout is None else time.monotonic() + timeout
        self._call = self._connection.start(self._request)
        if self._cancelled:
            # By a signal handler, another thread or another task, before there was a call.
            self._call.cancel()

    def _opened(self) -> Any:
        if self._call is None:
            raise RuntimeError("the stream has not started: use it in a `with` or `async with` statement")
        return self._call

    def _begin(self, message: Any) -> None:
        """Take the first message, or None where the stream ended without one."""
        if message is not None:
            self._take(message)
        if self._record.start is None:
            raise InternalError("the stream did not begin with a start event")

    def _check_finish(self) -> None:
        if not self._record.is_finished:
            raise InternalError("the stream ended without a finish event for each sequence")
        completed, self.completed = self.completed, None
        if completed is not None:
            completed()

    def _result(self) -> Generation:
        record = self._record
        self._check_finish()
        sequences = (each.whole(each.finish) for each in record.sequences if each.finish is not None)
        return Generation(self.start, tuple(sequences), record.prompt_logprobs)

    def _error(self, error: grpc.RpcError) -> TokenwireError:
        if self._cancelled:
            return Cancelled("the answer was stopped")
        return from_rpc_error(error, target=self._connection.target, answered=self._record.start is not None)
