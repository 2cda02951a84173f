"""Whether the engine's loop gets on: what tells a forward pass that hangs from one that takes long."""

import time
from collections.abc import Callable

BEAT_INTERVAL_S = 0.5
"""Pause between two Beat events of the engine process."""


class Pulse:
    """When the engine's loop last got on. Its thread writes, the heartbeat's reads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at: float | None = None

    def beat(self) -> None:
        """The loop got on: a step began, or a layer of the model was reached. Cheap: called for every layer."""
        self._beat_at = self._clock()

    def rest(self) -> None:
        """The loop waits for commands."""
        self._beat_at = None

    def stalled_s(self) -> float:
        """Seconds since the last beat; 0 at rest."""
        beat_at = self._beat_at
        return 0.0 if beat_at is None else self._clock() - beat_at
