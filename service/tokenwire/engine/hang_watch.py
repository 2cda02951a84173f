"""The front's judgement of the engine's heartbeat."""

import asyncio
from collections.abc import Callable

_LOOK_INTERVAL_S = 0.25

_OVERSLEPT_S = 1.0
"""A front that was itself stopped this long has heard nothing meanwhile, which says nothing about the engine."""


class HangWatch:
    """Says when an engine that has to get on no longer does, and when it does again.

    ``on_change`` is called on the event loop with True where there was no progress for ``timeout_s`` seconds, as far
    as the engine tells or because it is silent, and with False at the next progress.
    """

    def __init__(self, timeout_s: float, on_change: Callable[[bool], None]) -> None:
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._progress_at = 0.0
        self._hangs = False
        self._task: asyncio.Task[None] | None = None

    @property
    def stalled_s(self) -> float:
        """Seconds without progress."""
        return asyncio.get_running_loop().time() - self._progress_at

    def start(self) -> None:
        """Watch an engine that has just begun to serve."""
        self.stop()
        self._hangs = False
        self.hear()
        self._task = asyncio.create_task(self._look(), name="engine watch")

    def stop(self) -> None:
        """Watch no longer; nothing is called any more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def hear(self, stalled_s: float = 0.0) -> None:
        """The engine says that it last got on ``stalled_s`` seconds ago."""
        self._progress_at = asyncio.get_running_loop().time() - stalled_s
        if self._hangs:
            self._judge()

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(_LOOK_INTERVAL_S)
            if loop.time() - began > _LOOK_INTERVAL_S + _OVERSLEPT_S:
                self.hear()
            self._judge()

    def _judge(self) -> None:
        hangs = self.stalled_s >= self._timeout_s
        if self._task is not None and hangs is not self._hangs:
            self._hangs = hangs
            self._on_change(hangs)
