"""What is logged stays one line per event, whatever its texts hold."""

import json
import logging
import sys
from io import BytesIO, TextIOWrapper
from typing import Any

import pytest

from tokenwire import logs
from tokenwire.config import LogConfig

TEXTS = [
    "plain",
    "größer, 世界 🙂",
    "x\n2026-01-31T12:00:00.000Z INFO request caller=admin",
    "\r\x1b[2K\x1b[31mred",
    "a\x00b\x7f\x85\u2028\u2029c",
    "\u202egnp",
    "lone \ud800 surrogate",
]


def written(log_format: str, **record: Any) -> str:
    """What a server writes for one event, to a sink in UTF-8 that takes nothing else."""
    raw = BytesIO()
    with TextIOWrapper(raw, encoding="utf-8", errors="strict", newline="") as stream:
        root = logging.getLogger()
        before = root.handlers, root.level
        try:
            logs.configure(LogConfig(log_format=log_format), stream)  # type: ignore[arg-type]
            logging.getLogger("tokenwire.test").error(
                record.get("event", "request"), extra=record.get("extra"), exc_info=record.get("exc_info")
            )
        finally:
            root.handlers, level = before
            root.setLevel(level)
        stream.flush()
        return raw.getvalue().decode()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("place", ["event", "text", "caller"])
def test_text_is_one_line_without_control_characters(text: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"event": {}, "text": {"text": text}, "caller": {"fields": {"caller": text}}}[place]
    line = written("text", event=text if place == "event" else "request", extra=extra)
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    if text.isprintable():
        assert text in line
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_traceback_cannot_pass_for_an_event(log_format: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        lines = written(log_format, exc_info=sys.exc_info()).removesuffix("\n").split("\n")
    if log_format == "json":
        assert len(lines) == 1
    assert all(line.startswith("  ") and line.isprintable() for line in lines[1:])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("value_of", [str, lambda text: [text], lambda text: {text: (text, 1, None, True, 0.5)}])
def test_json_takes_any_text(text: str, value_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line = written("json", event=text, extra={"fields": {"caller": value_of(text), text: text, "other": object}})
    assert line.count("\n") == 1
    event = json.loads(line)
    readable = text.replace("\ud800", "\\ud800")
    assert event["event"] == event[readable] == readable
    expected = json.loads(json.dumps(value_of(readable)))
    assert event["caller"] == expected
    assert event["other"] == str(object)
    assert capsys.readouterr().err == ""
