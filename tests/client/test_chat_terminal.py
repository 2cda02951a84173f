"""The conversation at a terminal: a pseudo-terminal, a fake server, and no clock."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, item_status
from tokenwire.cli.chat import ChatSession
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
def terminal(server: FakeServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    opened = Terminal(server.target, *getattr(request, "param", ()), folder=tmp_path)
    opened.expect("> ")
    yield opened
    opened.close()


def conversation(request: Any) -> list[tuple[str, str]]:
    return [(each.role, each.content[0].text) for each in request.conversation.messages]


def test_a_conversation_is_kept(terminal: Terminal, server: FakeServer) -> None:
    terminal.send("first\n")
    terminal.expect("you said: first\r\n")
    terminal.expect("> ")
    terminal.send("second\n")
    terminal.expect("you said: second\r\n")
    terminal.expect("> ")
    terminal.send(CTRL_D)
    assert terminal.end() == 0
    assert conversation(server.requests[-1]) == [
        ("user", "first"),
        ("assistant", "you said: first"),
        ("user", "second"),
    ]


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(terminal: Terminal, server: FakeServer) -> None:
    server.hold(after=3)
    terminal.send("one two three\n")
    terminal.expect("you said: one")
    assert server.holding.wait(30)
    terminal.send(CTRL_C)
    terminal.expect("[stopped]")
    terminal.expect("> ")
    assert server.cancelled.wait(30)
    server.hold_after = None
    terminal.send("again\n")
    terminal.expect("you said: again\r\n")
    terminal.expect("> ")
    terminal.send(CTRL_D)
    assert terminal.end() == 0
    assert conversation(server.requests[-1]) == [
        ("user", "one two three"),
        ("assistant", "you said: one"),
        ("user", "again"),
    ]


def test_an_answer_stopped_before_it_began_leaves_no_trace(terminal: Terminal, server: FakeServer) -> None:
    server.hold(after=0)
    terminal.send("one\n")
    assert server.holding.wait(30)
    terminal.send(CTRL_C)
    terminal.expect("[stopped before the answer began; your message is forgotten]")
    terminal.expect("> ")
    server.hold_after = None
    terminal.send("two\n")
    terminal.expect("you said: two")
    assert conversation(server.requests[-1]) == [("user", "two")]
    terminal.expect("> ")
    terminal.send("/exit\n")
    assert terminal.end() == 0


def test_ctrl_c_at_the_prompt_drops_the_line(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Without a terminal: a Ctrl-C right after a key reaches CPython's readline too early to interrupt its select.
    lines = iter([KeyboardInterrupt(), "whole", EOFError()])

    def read_line(_prompt: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read_line)
    with Client(server.target) as client:
        ChatSession(client, {}, model="", system="", stats=False).run()
    assert capsys.readouterr().out == "\nyou said: whole\n\n"
    assert conversation(server.requests[-1]) == [("user", "whole")]


def test_reset_and_system(terminal: Terminal, server: FakeServer) -> None:
    for line, shown in (
        ("one", "you said: one"),
        ("/system Be brief.", "System message set."),
        ("two", "you said: two"),
        ("/reset", "The conversation starts anew."),
        ("three", "you said: three"),
        ("/system", "System message removed."),
        ("/nonsense", "Unknown command /nonsense."),
        ("four", "you said: four"),
    ):
        terminal.send(f"{line}\n")
        terminal.expect(f"{shown}")
        terminal.expect("> ")
    chats = [conversation(each) for each in server.requests if hasattr(each, "conversation")]
    assert chats[1] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "you said: one"),
        ("user", "two"),
    ]
    assert chats[2] == [("system", "Be brief."), ("user", "three")]
    assert chats[3] == [("user", "three"), ("assistant", "you said: three"), ("user", "four")]


def test_a_failed_turn_is_forgotten(terminal: Terminal, server: FakeServer) -> None:
    server.failure, server.fail_after = item_status("UNAVAILABLE", "the engine restarts"), 2
    terminal.send("one\n")
    terminal.expect("you said:\r\n")
    terminal.expect("tokenwire: the engine restarts; try again")
    terminal.expect("> ")
    server.failure = None
    terminal.send("two\n")
    terminal.expect("you said: two")
    assert conversation(server.requests[-1]) == [("user", "two")]


def test_an_answer_cannot_control_the_terminal(terminal: Terminal, server: FakeServer) -> None:
    server.answer = lambda _: "\x1b]0;owned\x07 \x1b[2J\r\u202e done"
    terminal.send("one\n")
    terminal.expect("\\x1b]0;owned\\x07 \\x1b[2J\\r\\u202e done")


@pytest.mark.parametrize("terminal", [("--stats", "--system", "Be kind.")], indirect=True)
def test_stats_and_system_hold_for_every_turn(terminal: Terminal, server: FakeServer) -> None:
    for line in ("one", "two"):
        terminal.send(f"{line}\n")
        terminal.expect(f"you said: {line}")
        terminal.expect("quantization nf4 | device cpu")
        terminal.expect("> ")
    chats = [conversation(each) for each in server.requests if hasattr(each, "conversation")]
    assert [chat[0] for chat in chats] == [("system", "Be kind.")] * 2
