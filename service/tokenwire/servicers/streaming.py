"""Events of one generated sequence on their way out, and what happens when nobody reads them."""

import asyncio
from typing import Any, Self

from tokenwire import convert
from tokenwire.engine.protocol import Delta
from tokenwire.errors import SlowReaderError
from tokenwire.servicers.text import Text
from tokenwire.v1 import generation_pb2, generation_service_pb2

StreamResponse = type[generation_service_pb2.GenerateStreamResponse] | type[generation_service_pb2.ChatStreamResponse]


class DeltaWriter:
    """Turns a sequence's deltas into events; tokens that give no text yet wait for the text that they begin.

    Not for more than one sequence.
    """

    __slots__ = ("_end", "_logprobs", "_response", "_text", "_token_ids")

    def __init__(self, text: Text, response: StreamResponse) -> None:
        self._text = text
        self._response = response
        self._end = 0
        self._token_ids: list[int] = []
        self._logprobs: list[generation_pb2.PositionLogprobs] = []

    def push(self, delta: Delta) -> Any | None:
        """The event for ``delta``, or None while it holds no text and is not the last."""
        token_ids = delta.token_ids
        if delta.logprobs:
            self._logprobs += convert.position_logprobs_of(token_ids, delta.logprobs, self._text.token_text)
        if self._token_ids:
            self._token_ids += token_ids
            token_ids = self._token_ids
        text = delta.text
        if not text and (delta.finish is None or not token_ids):
            self._token_ids = token_ids
            return None
        # Filled in place: half the time of keyword arguments (1.6 against 3.9 us).
        event = self._response()
        message = event.delta
        message.text = text
        message.token_ids.extend(token_ids)
        text_range = message.text_range
        text_range.start = self._end
        self._end += len(text) if text.isascii() else len(text.encode())
        text_range.end = self._end
        if self._logprobs:
            message.logprobs.extend(self._logprobs)
            self._logprobs = []
        self._token_ids = []
        return event


class SlowReaderGuard:
    """Cuts a stream off whose writes have stood still for ``timeout_s``: a reader that stopped must not hold a row.

    One timer per stream, looked at when it fires, so that a write costs two assignments.
    """

    def __init__(self, context: Any, timeout_s: float) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._write_began: float | None = None
        self._cut_off = False

    async def write(self, message: Any) -> None:
        """Send one message; waits while the client's window is full."""
        self._write_began = self._loop.time()
        await self._context.write(message)
        self._write_began = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:  # a coroutine always runs in one
            raise RuntimeError("no current task")
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._timeout_s, self._look)
        return self

    def _look(self) -> None:
        now = self._loop.time()
        since = now if self._write_began is None else self._write_began
        if now - since >= self._timeout_s:
            self._cut_off = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_at(since + self._timeout_s, self._look)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._cut_off and self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            raise SlowReaderError(self._timeout_s) from None
