"""Writing to the terminal: model output must not be able to control it."""

import re
import sys
from typing import TextIO

# C0 without newline and tab, DEL, C1, and the characters that reorder what follows them (CVE-2021-42574).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def escape_controls(text: str) -> str:
    """The text with each control character written as an escape; newline and tab stay."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class Output:
    """A text stream that flushes every piece; controls are escaped where it is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._escape = stream.isatty()
        self._at_line_start = True

    def write(self, text: str) -> None:
        """Write a piece of text as it is, or escaped on a terminal."""
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        if self._escape:
            text = escape_controls(text)
        encoding = self._stream.encoding or "utf-8"
        # A locale without the character must not end an answer.
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()

    def line(self, text: str = "") -> None:
        """Write a line."""
        self.write(f"{text}\n")

    def end_line(self) -> None:
        """Go to a new line unless already there."""
        if not self._at_line_start:
            self.write("\n")


def stdout() -> Output:
    """Standard output as it is now."""
    return Output(sys.stdout)


def stderr() -> Output:
    """Standard error as it is now."""
    return Output(sys.stderr)


def fail(code: int, *lines: str) -> int:
    """Write lines about a failure to standard error; return the exit code."""
    err = stderr()
    for line in lines:
        err.line(f"tokenwire: {line}")
    return code
