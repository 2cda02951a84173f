"""What one submitted request gives, on the front's event loop."""

import asyncio
from collections.abc import Callable

from tokenwire.engine.protocol import Delta
from tokenwire.errors import RequestAbortedError


class DeltaStream:
    """Implements `handle.EngineStream`: at most one unread delta per sequence, into which later ones are merged.

    What a reader that lags can make this hold is bounded by the answer itself. For one reader.
    """

    def __init__(
        self, request: int, abort: Callable[[int], None], *, num_sequences: int = 1, num_rows: int = 1
    ) -> None:
        self.request = request
        self.num_rows = num_rows
        """Rows of a batch that the request takes."""
        self.has_begun = False
        """Whether anything has come: the request waits no longer."""
        self.is_over = False
        """Whether every sequence is finished, or the request has failed."""
        self.num_tokens = 0
        """Tokens that have come, over all sequences."""
        self._num_unfinished = num_sequences
        self._on_end: Callable[[], None] | None = None
        self._abort = abort
        # In the order in which they are to be read: the sequence whose unread delta is oldest comes first.
        self._unread: dict[int, tuple[Delta, list[str]]] = {}
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def num_unread(self) -> int:
        """Deltas held for the reader: at most one per sequence."""
        return len(self._unread)

    def push(self, delta: Delta) -> None:
        """Take over what a step gave; the delta is this stream's from now on."""
        self.has_begun = True
        self.num_tokens += len(delta.token_ids)
        unread = self._unread.get(delta.sequence_index)
        if unread is None:
            self._unread[delta.sequence_index] = delta, []
        else:
            merged, texts = unread
            texts.append(delta.text)
            merged.token_ids += delta.token_ids
            merged.logprobs += delta.logprobs
            if delta.explanations is not None:
                merged.explanations = [*(merged.explanations or ()), *delta.explanations]
            merged.finish = delta.finish
        if delta.finish is not None:
            self._num_unfinished -= 1
            if self._num_unfinished == 0:
                self._end()
        self._wake()

    def fail(self, error: Exception) -> None:
        """End without an answer: ``error`` is raised after what is still unread. No-op once it has ended."""
        if not self.is_over:
            self._error = error
            self._end()
            self._wake()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when it is over: at once where it is already."""
        self._on_end = callback
        if self.is_over:
            callback()

    def _end(self) -> None:
        self.is_over = True
        if self._on_end is not None:
            self._on_end()

    def close(self) -> None:
        """Give up: tells the engine once, never waits. No-op once it has ended."""
        if not self.is_over:
            self.fail(RequestAbortedError("the request was given up"))
            self._abort(self.request)

    def __aiter__(self) -> "DeltaStream":
        return self

    async def __anext__(self) -> Delta:
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self.is_over:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        delta, texts = self._unread.pop(next(iter(self._unread)))
        if texts:
            delta.text += "".join(texts)
        return delta

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
