"""What is written to standard error: one readable line, or one JSON object, per event. Never a prompt or an answer."""

import logging
import sys
import time
from typing import Any, TextIO

import msgspec

from tokenwire.config import LogConfig

_JSON = msgspec.json.Encoder(enc_hook=str)


def one_line(text: str) -> str:
    """``text`` without what could begin a line of its own or steer a terminal: that is written as Python escapes it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _encodable(value: Any) -> Any:
    """``value`` with lone surrogates, which UTF-8 does not have, written as escapes."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_encodable(each) for each in value]
    return value if isinstance(value, bool | int | float | None) else _encodable(str(value))


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
        """One line; a traceback follows on indented lines of its own, so that none of it can pass for an event."""
        fields: dict[str, object] = getattr(record, "fields", {})
        text: str = getattr(record, "text", record.getMessage())
        words = [self._time(record), record.levelname, one_line(text.replace("\n", " "))]
        words += [f"{name}={one_line(str(value))}" for name, value in fields.items()]
        lines = [" ".join(words)]
        if record.exc_info:
            lines += [f"  {one_line(line)}" for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


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
        try:
            return _JSON.encode(event).decode()
        except UnicodeEncodeError:
            return _JSON.encode(_encodable(event)).decode()


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
