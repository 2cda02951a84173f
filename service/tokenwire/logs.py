"""What is written to standard error: one readable line, or one JSON object, per event. Never a prompt or an answer."""

import logging
import sys
import time
from typing import TextIO

import msgspec

from tokenwire.config import LogConfig


class _Formatter(logging.Formatter):
    """Time in UTC, level, event; an event's fields come in ``record.fields``."""

    converter = staticmethod(time.gmtime)

    def _time(self, record: logging.LogRecord) -> str:
        return f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"


class TextFormatter(_Formatter):
    """``2026-01-31T12:00:00.000Z INFO request request_id=… status=OK``.

    ``record.text`` is printed in the place of an event whose name alone would say too little to a person.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on lines of its own."""
        fields: dict[str, object] = getattr(record, "fields", {})
        text: str = getattr(record, "text", record.getMessage())
        words = [self._time(record), record.levelname, text.replace("\n", " ")]
        words += [f"{name}={value}" for name, value in fields.items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(_Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The event, its fields, and a traceback as text."""
        event: dict[str, object] = {
            "time": self._time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(event).decode()


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send all logging of this process to ``stream``, by default standard error. Calling again replaces the sink."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(config.log_level.upper())
    # Debug lines of the event loop and of gRPC say nothing about requests.
    for name in ("asyncio", "grpc"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
