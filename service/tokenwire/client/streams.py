"""What a stream has shown so far. No I/O: the streams of both faces of the client share it."""

from dataclasses import dataclass, field
from typing import Any

import grpc

from tokenwire.client import responses
from tokenwire.client.calls import Call
from tokenwire.client.channel import Connection
from tokenwire.client.errors import Cancelled, InternalError, TokenwireError, from_rpc_error
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


@dataclass(slots=True)
class SequenceRecord:
    """What has come of one sequence."""

    finish: Finish | None = None
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    tokens: list[TokenDetail] = field(default_factory=list)
    explanations: list[TokenExplanation] = field(default_factory=list)

    def take(self, delta: Delta) -> None:
        """Note one delta."""
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

    def take(self, message: Any) -> Delta | None:
        """Note one message of the stream; return it if it is a delta."""
        event = responses.event(message)
        if isinstance(event, Start):
            self.start = event
            self.sequences = [SequenceRecord() for _ in range(event.num_sequences)]
        elif event is not None and not 0 <= event.sequence_index < len(self.sequences):
            raise InternalError(f"the stream has an event of sequence {event.sequence_index}, which nobody asked for")
        elif isinstance(event, Delta):
            self.sequences[event.sequence_index].take(event)
            self.prompt_logprobs += event.prompt_logprobs
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
        return len(self.finishes) == len(self.sequences)


class StreamBase:
    """The part of a stream that needs no I/O."""

    def __init__(self, connection: Connection, call: Call) -> None:
        self._connection = connection
        self._request = call
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

    def cancel(self) -> None:
        """Stop the answer; the iteration then raises Cancelled. Leaving the context does the same silently."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def _open(self) -> None:
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
            self._record.take(message)
        if self._record.start is None:
            raise InternalError("the stream did not begin with a start event")

    def _check_finish(self) -> None:
        if not self._record.is_finished:
            raise InternalError("the stream ended without a finish event for each sequence")

    def _result(self) -> Generation:
        record = self._record
        sequences = (sequence.whole(finish) for sequence, finish in zip(record.sequences, self.finishes, strict=True))
        return Generation(self.start, tuple(sequences), record.prompt_logprobs)

    def _error(self, error: grpc.RpcError) -> TokenwireError:
        if self._cancelled:
            return Cancelled("the answer was stopped")
        return from_rpc_error(error, target=self._connection.target, answered=self._record.start is not None)
