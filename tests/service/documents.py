"""The code blocks of a Markdown document, and two sessions that run them as a reader would paste them."""

import doctest
import shlex
import subprocess
from code import InteractiveConsole
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.serving import ROOT

FENCE = "```"
ELLIPSIS = "..."


@dataclass(frozen=True)
class Block:
    """Code, and what the document says that it prints."""

    document: str
    line: int
    """Of the opening fence, from 1."""
    language: str
    code: str
    output: str
    """Of the fence without a language that follows; empty where none does: then nothing may be printed."""

    @property
    def is_serve_command(self) -> bool:
        return self.language == "sh" and "tokenwire serve" in self.code


def blocks(path: Path) -> list[Block]:
    """All code blocks of a document, in order. Raises ValueError where a fence is not one of code or of its output."""
    found: list[Block] = []
    lines = iter(enumerate(path.read_text().splitlines(), 1))
    output_may_follow = False
    for number, line in lines:
        if not line.startswith(FENCE):
            output_may_follow = output_may_follow and not line.strip()
            continue
        language = line.removeprefix(FENCE)
        content = []
        for _, inner in lines:
            if inner.startswith(FENCE):
                break
            content.append(f"{inner}\n")
        else:
            raise ValueError(f"{path.name}:{number}: the fence is never closed")
        text = "".join(content)
        if language:
            found.append(Block(path.name, number, language, text, ""))
        elif output_may_follow:
            code = found.pop()
            found.append(Block(code.document, code.line, code.language, code.code, text))
        else:
            raise ValueError(f"{path.name}:{number}: output of no code, or a fence without a language")
        output_may_follow = bool(language)
    return found


def check(block: Block, printed: str) -> None:
    """Compare what a block printed with what its document says, as doctest does with ELLIPSIS."""
    if not doctest.OutputChecker().check_output(block.output, printed, doctest.ELLIPSIS):
        raise AssertionError(
            f"{block.document}:{block.line}\n--- code\n{block.code}--- documented\n{block.output}--- printed\n{printed}"
        )


class PythonSession:
    """An interactive interpreter; leaving it closes the client that the blocks named ``client``."""

    def __init__(self) -> None:
        self._console = InteractiveConsole({"__name__": "__console__"})

    def run(self, code: str) -> str:
        """Paste ``code`` line by line, then press Enter if it is still open; return all that is shown, errors too."""
        shown = StringIO()
        with redirect_stdout(shown), redirect_stderr(shown):
            is_open = False
            for line in code.splitlines():
                is_open = self._console.push(line)
            if is_open and self._console.push(""):
                raise AssertionError(f"incomplete:\n{code}")
        return shown.getvalue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        client: Any = self._console.locals.get("client")
        if client is not None:
            client.close()


class ShellSession:
    """A bash in the repository's root, which keeps variables and functions from block to block."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._code = folder / "block.sh"
        self._shown = folder / "shown.txt"
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str) -> str:
        """Run ``code`` in the session; return all that is shown, errors too."""
        assert self._process.stdin
        assert self._process.stdout
        self._code.write_text(code)
        paths = [shlex.quote(str(path)) for path in (self._code, self._shown)]
        self._process.stdin.write("source {} >{} 2>&1 </dev/null; echo done\n".format(*paths))
        self._process.stdin.flush()
        shown = self._process.stdout.readline()
        if shown != "done\n":
            raise AssertionError(f"the shell ended in\n{code}")
        return self._shown.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The end of its input ends it. After a time-out a command may still run.
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
