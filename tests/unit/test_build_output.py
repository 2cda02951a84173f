"""What a build and a start tell whoever waits for them."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenwire import logs
from tokenwire.config import LogConfig

ROOT = Path(__file__).parents[2]

BUILD = r"""
import subprocess, sys
sys.path.insert(0, sys.argv[1])
import build_backend
build_backend.generate_stubs = lambda: None
program = "import sys\nfor line in ('the `build-backend`', 'Compiling'): print(line, file=sys.stderr)"
build_backend.maturin.build_editable = lambda *_: subprocess.run([sys.executable, "-c", program], check=True)
build_backend.build_editable("wheels")
"""
"""A build that writes to its standard error: a warning that nobody needs, and a line of the compiler."""


@pytest.mark.parametrize("is_open", [True, False])
def test_the_compiler_writes_where_make_writes(is_open: bool) -> None:
    """uv keeps standard error to itself; the descriptor that make hands down is the terminal's."""
    reader, writer = os.pipe()
    with open(reader) as terminal:
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(ROOT / "tools")],
            env={**os.environ, "TOKENWIRE_BUILD_OUTPUT": str(writer)},
            pass_fds=[writer] if is_open else [],
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
        os.close(writer)
        assert terminal.read() == ("Compiling\n" if is_open else "")
        assert ("Compiling" in done.stderr) == (not is_open)


def test_make_hands_a_descriptor_down() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("$(VENV)/.built:")[2].partition("@touch")[0]
    assert "TOKENWIRE_BUILD_OUTPUT=9" in recipe
    assert "9>&2" in recipe


@pytest.mark.parametrize(
    ("log_format", "expected"),
    [("text", "INFO not ready yet: the model loads address=127.0.0.1:1"), ("json", '"event":"listening"')],
)
def test_an_event_is_put_into_words_for_people_alone(log_format: str, expected: str) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    try:
        logs.configure(LogConfig(log_format=log_format), stream)  # type: ignore[arg-type]
        text = "not ready yet: the model loads"
        logging.getLogger("tokenwire.server").info(
            "listening", extra={"fields": {"address": "127.0.0.1:1"}, "text": text}
        )
    finally:
        root.handlers = handlers
        root.setLevel(level)
    assert expected in stream.getvalue()
