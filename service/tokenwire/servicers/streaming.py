"""What happens to a stream when nobody reads it."""

import asyncio
from typing import Any, Self

import grpc.aio

from tokenwire.errors import RequestAbortedError, SlowReaderError


class SlowReaderGuard:
    """Cuts a stream off whose writes have stood still for ``timeout_s``: a reader that stopped must not hold a row.

    Others may cut it off as well, for their own reasons.

    One timer per stream, looked at when it fires, so that a write costs two assignments.
    """

    def __init__(self, context: Any, timeout_s: float) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._write_began: float | None = None
        self._error: Exception | None = None
        self._headers: asyncio.Future[None] | None = None
        """Sends the initial metadata, which a status must not overtake: gRPC refuses a second try of what is under way,
        and the client would wait for ever."""

    async def write(self, message: Any) -> None:
        """Send one message; waits while the client's window is full. Raises RequestAbortedError once it is gone."""
        self._write_began = self._loop.time()
        try:
            if self._headers is None:
                self._headers = asyncio.ensure_future(self._context.send_initial_metadata(()))
                await asyncio.shield(self._headers)
            await self._context.write(message)
        except grpc.aio.BaseError:
            # A write that waits when its call is cancelled fails before the call's task is cancelled.
            raise RequestAbortedError("the client is gone") from None
        self._write_began = None

    async def __aenter__(self) -> Self:
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
            self.cut_off(SlowReaderError(self._timeout_s))
        else:
            self._timer = self._loop.call_at(since + self._timeout_s, self._look)

    def cut_off(self, error: Exception) -> None:
        """End the call with ``error``, also where it is in a write that never ends. The first one counts."""
        if self._error is None:
            self._error = error
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._error is not None and self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            if self._headers is not None:
                # No reader holds them up: they are not under the client's flow control.
                await asyncio.wait({self._headers})
                # Where it failed the client is gone, and the status finds that out.
                self._headers.exception()
            raise self._error from None
