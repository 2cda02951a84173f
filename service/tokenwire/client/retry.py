"""When a unary call is sent again, and how long that waits. No I/O: both faces of the client share it.

Generating has no effect but its answer, so every unary call may be sent again; a stream may not, since what was read
cannot be taken back.
"""

import random
import time

from tokenwire.client.errors import ResourceExhausted, TokenwireError, Unavailable

MAX_RETRIES = 10

MAX_DELAY_S = 30.0
"""Longest delay that the server may ask for: no call sleeps unseen for minutes."""

_FIRST_PAUSE_S = 0.2
_MAX_PAUSE_S = 2.0


class Attempts:
    """The attempts at one call, which began now."""

    def __init__(self, retries: int, timeout: float | None) -> None:
        """``timeout``: seconds for all of them together, or None."""
        self._num_failed = 0
        self._retries = retries
        self._ends_at = None if timeout is None else time.monotonic() + timeout

    @property
    def timeout(self) -> float | None:
        """Seconds that the next attempt may take, never negative; None: any."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    def pause_after(self, error: TokenwireError) -> float:
        """Seconds to wait before the call is sent again. Raises ``error`` where that makes no sense."""
        pause = _pause(error, self._num_failed)
        self._num_failed += 1
        if pause is None or self._num_failed > self._retries or (self.timeout is not None and self.timeout < pause):
            raise error from None
        return pause


def _pause(error: TokenwireError, num_failed: int) -> float | None:
    if not isinstance(error, Unavailable | ResourceExhausted):
        return None
    if (delay := error.retry_after) is not None:
        # A little more, so that not all who were told the same come at once.
        return delay * random.uniform(1.0, 1.1) if delay <= MAX_DELAY_S else None  # noqa: S311  no secret
    if isinstance(error, ResourceExhausted):
        # A message that is too large stays too large.
        return None
    pause = min(_FIRST_PAUSE_S * 2.0**num_failed, _MAX_PAUSE_S)
    return pause * random.uniform(0.5, 1.0)  # noqa: S311  no secret
