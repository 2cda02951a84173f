"""Log lines of a library that would come again and again."""

import logging
import time
from collections.abc import Callable

INTERVAL_S = 60.0
"""Seconds in which one kind of line is written once."""

_logger = logging.getLogger("tokenwire.telemetry")


class _Occasionally(logging.Handler):
    """Writes the first line of each kind in a minute, as a warning with the count of those left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Pass ``record`` on unless one of its kind, with the same template, has just been."""
        now = self._clock()
        kind = str(record.msg)
        written_at, left_out = self._seen.get(kind, (now - INTERVAL_S, 0))
        if now - written_at < INTERVAL_S:
            self._seen[kind] = written_at, left_out + 1
            return
        self._seen[kind] = now, 0
        again = f" ({left_out} more like it before)" if left_out else ""
        _logger.warning("%s: %s%s", record.name.partition(".")[0], " ".join(record.getMessage().split()), again)


def pass_on_occasionally(name: str) -> None:
    """Let the logger ``name`` and those below it write each kind of line once a minute, without traces."""
    logger = logging.getLogger(name)
    logger.propagate = False
    logger.handlers = [_Occasionally()]
