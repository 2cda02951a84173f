"""What one submitted sequence gives, on the front's event loop."""

import asyncio
from collections.abc import Callable

from tokenwire.engine.protocol import Delta, Finish, TokenLogprobs
from tokenwire.errors import RequestAbortedError


class DeltaStream:
    """Implements `handle.TokenStream`: at most one unread delta, into which later ones are merged.

    What a reader that lags can make this hold is bounded by the answer itself. For one reader.
    """

    def __init__(self, request: int, abort: Callable[[int], None]) -> None:
        self.request = request
        self.has_begun = False
        """Whether anything has come: the sequence waits no longer."""
        self._abort = abort
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finish: Finish | None = None
        self._has_unread = False
        self._is_over = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def push(self, delta: Delta) -> None:
        """Take over what a step gave."""
        self.has_begun = True
        self._has_unread = True
        self._token_ids += delta.token_ids
        self._texts.append(delta.text)
        self._logprobs += delta.logprobs
        if delta.finish is not None:
            self._finish = delta.finish
            self._is_over = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """End without an answer: ``error`` is raised after what is still unread. No-op once it has ended."""
        if not self._is_over:
            self._is_over = True
            self._error = error
            self._wake()

    def close(self) -> None:
        """Give up: tells the engine once, never waits. No-op once it has ended."""
        if not self._is_over:
            self.fail(RequestAbortedError("the request was given up"))
            self._abort(self.request)

    def __aiter__(self) -> "DeltaStream":
        return self

    async def __anext__(self) -> Delta:
        while not self._has_unread:
            if self._error is not None:
                raise self._error
            if self._is_over:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        delta = Delta(self.request, self._token_ids, "".join(self._texts), self._logprobs, self._finish)
        self._token_ids, self._texts, self._logprobs, self._has_unread = [], [], [], False
        return delta

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
