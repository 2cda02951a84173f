"""Streams that outlive their calls, so that ResumeStream can go on with them."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from tokenwire.call import Call, current_call, log
from tokenwire.config import LimitsConfig
from tokenwire.engine.handle import TokenStream
from tokenwire.errors import (
    DeadlinePassedError,
    RequestAbortedError,
    StreamExistsError,
    StreamTakenOverError,
    UnknownStreamError,
    UnsupportedError,
)
from tokenwire.security.callers import Caller
from tokenwire.servicers.event_log import Entry, EventLog, Position, merged
from tokenwire.servicers.sequences import StreamEvent, StreamResponse
from tokenwire.servicers.streaming import SlowReaderGuard
from tokenwire.statuses import refusal_of
from tokenwire.v1 import generation_pb2

_STREAM_BYTES = 4096
"""What a stream takes before anything has come: its task, timers and entry here."""


class Retention:
    """The resumable streams of all callers. Owned by the event loop.

    A stream is found by its caller's name and its request id. Where streams take more than ``max_retained_bytes``, the
    caller who holds most loses the one that is without a reader for longest: nobody can push another's streams out by
    holding many.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._streams: dict[tuple[str, str], RetainedStream] = {}
        self._bytes_of: Counter[str] = Counter()
        self.num_bytes = 0
        """Taken by all streams that can be resumed."""

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def window_s(self) -> float:
        """Seconds for which a stream without a reader is kept."""
        return self._limits.resume_window

    def check_on(self) -> None:
        """Raise UnsupportedError where no streams are kept."""
        if not self._limits.resume_window:
            raise UnsupportedError("RESUME_OFF", "this server keeps no streams: its resume_window is 0")

    def check_new(self, caller: Caller, request_id: str) -> None:
        """Raise UnsupportedError where no streams are kept, StreamExistsError where there is this one already."""
        self.check_on()
        if (caller.name, request_id) in self._streams:
            raise StreamExistsError

    def add(self, caller: Caller, stream: "RetainedStream") -> None:
        """Keep ``stream``, which a call reads already, from now on."""
        key = caller.name, stream.start.request_id
        self._streams[key] = stream
        stream.begin(self, key)
        self.grow(stream, _STREAM_BYTES + stream.start.ByteSize())

    def find(self, caller: Caller, request_id: str) -> "RetainedStream":
        """The caller's stream. Raises UnsupportedError, UnknownStreamError."""
        self.check_on()
        stream = self._streams.get((caller.name, request_id))
        if stream is None:
            raise UnknownStreamError
        return stream

    def grow(self, stream: "RetainedStream", num_bytes: int) -> None:
        """``stream``, which is kept, takes so many bytes more."""
        stream.num_bytes += num_bytes
        self.num_bytes += num_bytes
        self._bytes_of[stream.key[0]] += num_bytes
        if stream.num_bytes > self._limits.max_retained_stream_bytes:
            stream.lose()
        while self.num_bytes > self._limits.max_retained_bytes:
            self._dispensable().lose()

    def _dispensable(self) -> "RetainedStream":
        caller = max(self._bytes_of, key=self._bytes_of.__getitem__)
        return min(
            (stream for key, stream in self._streams.items() if key[0] == caller), key=lambda each: each.unread_at
        )

    def remove(self, stream: "RetainedStream") -> None:
        """Keep ``stream`` no longer."""
        del self._streams[stream.key]
        self.num_bytes -= stream.num_bytes
        self._bytes_of[stream.key[0]] -= stream.num_bytes
        if not self._bytes_of[stream.key[0]]:
            del self._bytes_of[stream.key[0]]

    @property
    def num_unread(self) -> int:
        """Streams that no call reads now. May be asked from another thread."""
        return sum(stream.unread_at != float("inf") for stream in list(self._streams.values()))

    def close(self) -> None:
        """End all streams, and whatever waits for their readers."""
        for stream in list(self._streams.values()):
            stream.cancel()


class RetainedStream:
    """One resumable stream: a task of its own reads it to its end, whether or not a call reads what came.

    ``stream``: what gives the answer, to be told when nobody wants it any more. ``events``: what it becomes. ``call``:
    the one that began it, after whose deadline the answer ends.
    """

    def __init__(
        self,
        start: generation_pb2.GenerationStart,
        stream: TokenStream,
        events: AsyncIterator[StreamEvent],
        *,
        num_sequences: int,
        call: Call,
    ) -> None:
        self.start = start
        self.key = ("", "")
        self.num_bytes = 0
        self.unread_at = float("inf")
        """Since when no call reads it, in seconds of the event loop; infinite while one does."""
        self._stream = stream
        self._events = events
        self._call = call
        self._log = EventLog(num_sequences)
        self._changed = asyncio.Event()
        self._is_over = False
        self._error: BaseException | None = None
        self._is_told = False
        """Whether its failure has been counted: where several calls are told, it is still one."""
        self._stopped_by: Exception | None = None
        self._retention: Retention | None = None
        """None where it cannot be resumed any more."""
        self._reader: SlowReaderGuard | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._window: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # ---- what retention does with it -----------------------------------------------------------------------

    def begin(self, retention: Retention, key: tuple[str, str]) -> None:
        """Read to the end from now on, kept by ``retention``."""
        self._retention, self.key = retention, key
        self._task = asyncio.create_task(self._read(), name="resumable stream")
        if self._call.deadline is not None:
            left_s = max(0.0, self._call.deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(left_s, self._stop, DeadlinePassedError())

    def lose(self) -> None:
        """It has outgrown its bounds: it is like any other stream from now on, which ends with its reader."""
        self._leave()
        if self._reader is None:
            self._stop(RequestAbortedError("nobody can read the stream any more"))

    def cancel(self) -> None:
        """Its caller, or the end of the server, wants it no longer."""
        self._leave()
        error = RequestAbortedError("the stream was cancelled")
        self._stop(error)
        if self._reader is not None:
            self._reader.cut_off(error)

    def _leave(self) -> None:
        if self._retention is not None:
            self._retention.remove(self)
            self._retention = None
        if self._window is not None:
            self._window.cancel()

    def _wait_for_reader(self) -> None:
        """No call reads it; it is given up unless one comes in time."""
        if self._retention is None:
            self._stop(RequestAbortedError("the client is gone"))
            return
        loop = asyncio.get_running_loop()
        self.unread_at = loop.time()
        self._window = loop.call_later(self._retention.window_s, self.cancel)

    # ---- from the engine -----------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            async for event in self._events:
                num_bytes = self._log.append(event)
                if self._retention is not None:
                    self._retention.grow(self, num_bytes)
                self._changed.set()
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is one; whoever reads is told
            self._error = self._stopped_by or error
            if self._reader is None:
                self._tell_unread()
        finally:
            self._is_over = True
            self._changed.set()
            self._stream.close()
            if self._timer is not None:
                self._timer.cancel()

    def _tell_unread(self) -> None:
        """Count and log how it failed: perhaps nobody comes back to be told."""
        if self._error is None or self._is_told or self._stopped_by is not None:
            return
        self._count(self._error)
        log(logging.WARNING, "a stream without a reader failed", {"request_id": self.start.request_id}, self._error)

    def _count(self, error: BaseException) -> None:
        """Count how it failed, once, as the end of the call that began it."""
        call = self._call
        if not self._is_told and call.observer is not None:
            refusal = refusal_of(error, call.request_id)
            call.observer.failed(refusal.code.name, refusal.reason, call.priority, is_unserved=call.is_unserved)
        self._is_told = True

    def _stop(self, error: Exception) -> None:
        """End the answer with ``error``, unless it has ended. What it holds is free before the next forward pass."""
        if not self._is_over and self._stopped_by is None:
            self._stopped_by = error
            self._stream.close()

    # ---- to a call -----------------------------------------------------------------------------------------

    @contextmanager
    def attached(self, reader: SlowReaderGuard) -> Iterator[None]:
        """The time in which a call reads it. Whoever did so far is told that it lost it."""
        if self._window is not None:
            self._window.cancel()
        if self._reader is not None:
            self._reader.cut_off(StreamTakenOverError())
        self._reader = reader
        self.unread_at = float("inf")
        try:
            yield
        finally:
            if self._reader is reader:
                self._reader = None
                # It may have failed behind what a call that is lost now had still to read.
                self._tell_unread()
                self._wait_for_reader()

    def rest(self, positions: Sequence[tuple[int, Position]]) -> tuple[list[Entry], int]:
        """What lies behind ``positions`` so far, and where what comes next begins.

        Raises PositionError, InvalidRequestError.
        """
        return self._log.rest(positions), self._log.end

    async def events(
        self, rest: list[Entry], place: int, response: StreamResponse
    ) -> AsyncGenerator[StreamEvent, None]:
        """``rest``, then what comes from ``place`` on. A reader that lags gets merged deltas. Raises how it ended."""
        for event in merged(rest, response):
            yield event
        while True:
            self._changed.clear()
            while entries := self._log.batch(place):
                place += len(entries)
                if self._retention is None:
                    self._log.forget(place)
                for event in merged(entries, response):
                    yield event
            if self._is_over:
                if self._error is not None:
                    call = current_call()
                    if call is self._call:
                        self._is_told = True
                    else:
                        self._count(self._error)
                        call.is_failure_told = True
                    raise self._error
                return
            if not self._changed.is_set():
                await self._changed.wait()
