"""The conversation at a terminal: a pseudo-terminal, a fake server, and no clock."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_server import FakeServer, item_status

from tokenwire.cli.chat import HELP, ChatSession
from tokenwire.client import Client

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A `tokenwire chat` whose terminal is in our hands."""

    def __init__(self, target: str, *arguments: str, folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        environment = os.environ | {"TOKENWIRE_ADDRESS": target, "TERM": "dumb", "INPUTRC": "/dev/null"}
        command = [sys.executable, "-m", "tokenwire.cli", "chat", *arguments]
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # The terminal must be the controlling one, or Ctrl-C would be a character like any other.
            preexec_fn=lambda: _take_terminal(0),
        )
        os.close(theirs)
        self._unread = ""

    def expect(self, text: str) -> str:
        """Read until the text has come; return everything up to it."""
        while text not in self._unread:
            if not select.select([self._ours], [], [], 30)[0]:
                pytest.fail(f"{text!r} did not come after {self._unread!r}")
            try:
                chunk = os.read(self._ours, 4096)
            except OSError:  # Linux's way of saying that the other end is closed
                chunk = b""
            if not chunk:
                pytest.fail(f"ended without {text!r} after {self._unread!r}")
            self._unread += chunk.decode()
        before, _, self._unread = self._unread.partition(text)
        return before

    def send(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """The exit code, when the process has ended by itself."""
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)


def _take_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(server: FakeServer, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(server.target, folder=tmp_path)
    opened.expect("> ")
    yield opened
    opened.close()


Converse = Callable[..., tuple[str, str]]


@pytest.fixture
def converse(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Converse]:
    """Type lines, or what is raised in their place, at a conversation in this process; return its output and errors."""
    with Client(server.target) as client:

        def type_lines(*lines: str | BaseException, system: str = "", stats: bool = False) -> tuple[str, str]:
            typed = iter(lines)

            def read_line(_prompt: str) -> str:
                line = next(typed, EOFError())
                if isinstance(line, BaseException):
                    raise line
                return line

            monkeypatch.setattr("builtins.input", read_line)
            ChatSession(client, {}, {}, model="", system=system, stats=stats).run()
            shown = capsys.readouterr()
            return shown.out, shown.err

        yield type_lines


def conversations(server: FakeServer) -> list[list[tuple[str, str]]]:
    """What each chat sent, as roles and texts."""
    return [
        [(each.role, each.content[0].text) for each in request.conversation.messages]
        for request in server.requests
        if hasattr(request, "conversation")
    ]


def test_a_conversation_at_a_terminal(terminal: Terminal, server: FakeServer) -> None:
    # One terminal for all that needs one: Ctrl-C as a signal, what is printed to a terminal, the process's end.
    server.hold(after=0)
    terminal.send("forgotten\n")
    assert server.holding.wait(30)
    terminal.send(CTRL_C)
    terminal.expect("[stopped before the answer began; your message is forgotten]")
    terminal.expect("> ")
    assert server.cancelled.wait(30)

    server.hold(after=3)
    terminal.send("one two three\n")
    terminal.expect("you said: one")
    assert server.holding.wait(30)
    terminal.send(CTRL_C)
    terminal.expect("[stopped]")
    terminal.expect("> ")
    assert server.cancelled.wait(30)

    server.hold_after = None
    server.answer = lambda _: "\x1b]0;owned\x07 \x1b[2J\r\u202e done"
    terminal.send("again\n")
    terminal.expect("\\x1b]0;owned\\x07 \\x1b[2J\\r\\u202e done\r\n")
    terminal.expect("> ")
    terminal.send(CTRL_D)
    assert terminal.end() == 0
    assert conversations(server)[1:] == [
        [("user", "one two three")],
        [("user", "one two three"), ("assistant", "you said: one"), ("user", "again")],
    ]


def test_a_conversation_is_kept(converse: Converse, server: FakeServer) -> None:
    assert converse("first", "second")[0] == "you said: first\nyou said: second\n\n"
    assert conversations(server)[-1] == [("user", "first"), ("assistant", "you said: first"), ("user", "second")]


@pytest.mark.parametrize("leave", ["/exit", " /quit "])
def test_a_command_leaves(converse: Converse, server: FakeServer, leave: str) -> None:
    converse("one", leave, "never read")
    assert conversations(server) == [[("user", "one")]]


def test_ctrl_c_at_the_prompt_drops_the_line(converse: Converse, server: FakeServer) -> None:
    # Without a terminal: a Ctrl-C right after a key reaches CPython's readline too early to interrupt its select.
    assert converse(KeyboardInterrupt(), "whole")[0] == "\nyou said: whole\n\n"
    assert conversations(server) == [[("user", "whole")]]


def test_reset_and_system(converse: Converse, server: FakeServer) -> None:
    _, shown = converse("one", "/system Be brief.", "two", "/reset", "three", "/system", "/nonsense", "/help", "four")
    assert shown.count(HELP) == 3
    for line in (
        "System message set.",
        "The conversation starts anew.",
        "System message removed.",
        "Unknown command /nonsense.",
    ):
        assert line in shown
    assert conversations(server) == [
        [("user", "one")],
        [("system", "Be brief."), ("user", "one"), ("assistant", "you said: one"), ("user", "two")],
        [("system", "Be brief."), ("user", "three")],
        [("user", "three"), ("assistant", "you said: three"), ("user", "four")],
    ]


def test_a_failed_turn_is_forgotten(converse: Converse, server: FakeServer) -> None:
    server.failure, server.fail_after, server.failures_left = item_status("UNAVAILABLE", "the engine restarts"), 2, 1
    out, err = converse("one", "two")
    assert out == "you said:\nyou said: two\n\n"
    assert "tokenwire: the engine restarts; try again" in err
    assert conversations(server) == [[("user", "one")], [("user", "two")]]


def test_stats_and_system_hold_for_every_turn(converse: Converse, server: FakeServer) -> None:
    _, shown = converse("one", "two", system="Be kind.", stats=True)
    assert shown.count("quantization nf4 | device cpu") == 2
    assert [chat[0] for chat in conversations(server)] == [("system", "Be kind.")] * 2
