"""The stream of a request that waits for the engine."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from tokenwire.engine.handle import TokenStream
from tokenwire.engine.protocol import Delta
from tokenwire.errors import RequestAbortedError


class WaitingStream:
    """Implements `handle.TokenStream`: nothing until ``start``, then what the engine's stream gives. For one reader.

    Where ``end`` comes instead, what that says.

    ``leave``: called once where the reader gives up before the start.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self._decided = asyncio.Event()
        self._stream: TokenStream | None = None
        self._error: Exception | None = None
        self._answer: deque[Delta] | None = None
        self._waited_ms = 0.0

    def start(self, stream: TokenStream, waited_s: float) -> None:
        """The engine has taken the request, after it waited ``waited_s`` seconds."""
        self._stream, self._waited_ms = stream, waited_s * 1000
        self._decided.set()

    def end(self, answer: Iterable[Delta]) -> None:
        """The request will not start; ``answer`` is all that there is."""
        self._answer = deque(answer)
        self._decided.set()

    def fail(self, error: Exception) -> None:
        """The request will not start."""
        self._error = error
        self._decided.set()

    def close(self) -> None:
        """Give up, waiting or running."""
        if self._stream is not None:
            self._stream.close()
        elif self._error is None and self._answer is None:
            self.fail(RequestAbortedError("the request was given up"))
            self._leave()

    def __aiter__(self) -> "WaitingStream":
        return self

    async def __anext__(self) -> Delta:
        if self._stream is None:
            await self._decided.wait()
            if self._answer:
                return self._answer.popleft()
            if self._stream is None:
                raise self._error or StopAsyncIteration
        delta = await anext(self._stream)
        if delta.finish is not None:
            delta.finish = msgspec.structs.replace(delta.finish, queue_ms=delta.finish.queue_ms + self._waited_ms)
        return delta
