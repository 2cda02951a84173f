"""The client commands against the fake server: output, errors, exit codes, pipes and signals."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, item_status
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from tokenwire import cli

COMMAND = [sys.executable, "-m", "tokenwire.cli"]
WARNINGS = "warning: no chat markers\nwarning: cut at 20\n"


@pytest.fixture
def run(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENWIRE_ADDRESS", server.target)

    def run_command(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = cli.main(list(arguments))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run_command


Run = Callable[..., tuple[int, str, str]]


def test_generate_streams_the_answer(run: Run, server: FakeServer) -> None:
    assert run(
        "generate", "hello big world", "--max-new-tokens", "7", "--temperature", "0.5", "--stop-strings", "a"
    ) == (
        0,
        "echo: hello big world\n",
        WARNINGS,
    )
    config = server.requests[0].generation_config
    assert (config.max_new_tokens, config.temperature, list(config.stop_strings.values)) == (7, 0.5, ["a"])


def test_prompts_come_from_standard_input(run: Run) -> None:
    assert run("generate", stdin="from a pipe\n")[1] == "echo: from a pipe\n"
    assert run("chat", stdin="from a pipe\n")[1] == "you said: from a pipe\n"
    assert run("tokenize", "--json", stdin="a b")[1].count('"piece"') == 2


def test_one_message_is_answered_with_stats(run: Run, server: FakeServer) -> None:
    code, out, err = run("chat", "--stats", "--max-new-tokens", "200", "--system", "Be brief.", "What is it?")
    assert (code, out) == (0, "you said: What is it?\n")
    chat = server.requests[-1]
    assert [each.role for each in chat.conversation.messages] == ["system", "user"]
    assert (chat.generation_config.max_new_tokens, chat.generation_config.HasField("max_length")) == (200, False)
    *_, stats = err.splitlines()
    first, *rest = stats.split(" | ")
    assert first.startswith("time to first token ")
    assert first.endswith(" ms")
    assert rest[-4:] == [
        "3 prompt + 5 new tokens",
        "finish reason stop_string",
        "quantization nf4",
        "device cpu",
    ]
    assert rest[0].endswith(" tokens/s")


def test_a_chat_gives_its_template_variables(run: Run, server: FakeServer) -> None:
    given = {"a": "true", "b": "1.5", "c": "2", "d": '"true"', "e": "x=y", "f": "[1]", "g": "NaN", "h": ""}
    flags = [flag for name, value in given.items() for flag in ("--template-var", f"{name}={value}")]
    assert run("chat", "--template", "tool_use", *flags, "hi")[0] == 0
    conversation = server.requests[-1].conversation
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in conversation.template_variables.items()}
    assert conversation.template_name == "tool_use"
    assert values == {"a": True, "b": 1.5, "c": 2, "d": "true", "e": "x=y", "f": "[1]", "g": "NaN", "h": ""}
    code, _, err = run("chat", "--template-var", "enable_thinking", "hi")
    assert code != 0
    assert "NAME=VALUE" in err


def test_an_answer_of_a_chat_may_fill_the_context(run: Run, server: FakeServer) -> None:
    run("chat", "x")
    assert server.requests[-1].generation_config.max_length == 128
    run("generate", "x")
    assert not server.requests[-1].generation_config.HasField("max_length")


def test_tokenize_shows_pieces_and_bytes(run: Run) -> None:
    assert run("tokenize", "größe zählt") == (
        0,
        "     100       0-7       'größe'\n     101       7-14      ' zählt'\n",
        "",
    )
    code, out, _ = run("tokenize", "größe", "--json")
    assert (code, json.loads(out)) == (0, [{"id": 100, "piece": "größe", "range": [0, 7]}])


def test_model_describes_what_is_served(run: Run) -> None:
    code, out, _ = run("model")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()[0]) > 2)
    assert code == 0
    assert (lines["architecture"], lines["quantization"]) == ("LlamaForCausalLM", "nf4")
    # Every name, the longest too, is apart from its value, and the values stand in one column.
    starts = {len(line) - len(line[line.index("  ") :].lstrip()) for line in out.splitlines()}
    assert len(starts) == 1
    described = json.loads(run("model", "--json")[1])
    assert (described["id"], described["limits"]["max_logprobs"]) == ("tiny", 20)


def test_settings_of_the_client_from_the_file(run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENWIRE_ADDRESS")
    Path("tokenwire.toml").write_text(
        f'model = "for serve alone"\n[client]\naddress = "{server.target}"\nmax_new_tokens = 9\ntop_k = 3\n'
    )
    assert run("generate", "x", "--top-k", "4")[0] == 0
    config = server.requests[0].generation_config
    assert (config.max_new_tokens, config.top_k) == (9, 4)
    assert run("model")[0] == 0


def failure(code: str, text: str, *details: Any) -> Any:
    return item_status(code, text, *details)


RETRY = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2))
BAD = error_details_pb2.BadRequest(
    field_violations=[
        error_details_pb2.BadRequest.FieldViolation(field="generation_config.top_p", description="at most 1, got 2"),
        error_details_pb2.BadRequest.FieldViolation(field="prompt.text", description="must not be empty"),
    ]
)

FAILURES: list[tuple[Any, int, str]] = [
    (
        failure("INVALID_ARGUMENT", "2 violations", BAD),
        2,
        "tokenwire: generation_config.top_p: at most 1, got 2\ntokenwire: prompt.text: must not be empty\n",
    ),
    (failure("INVALID_ARGUMENT", "no\ngood"), 2, "tokenwire: no good\n"),
    (
        failure("UNAVAILABLE", "the model is loading", RETRY),
        1,
        "tokenwire: the model is loading; try again in 2 s, or let --wait 60 wait until it serves\n",
    ),
    (failure("RESOURCE_EXHAUSTED", "256 wait", RETRY), 1, "tokenwire: 256 wait; try again in 2 s\n"),
    (failure("NOT_FOUND", "no model x"), 1, "tokenwire: no model x; leave --model away to use the served model\n"),
    (
        failure("INTERNAL", "internal error"),
        1,
        "tokenwire: internal error; the server's log has more under request id request-7\n",
    ),
    (failure("FAILED_PRECONDITION", "no chat template"), 1, "tokenwire: no chat template\n"),
]


@pytest.mark.parametrize(("status", "code", "message"), FAILURES)
def test_failures_say_what_to_do(run: Run, server: FakeServer, status: Any, code: int, message: str) -> None:
    server.failure = status
    assert run("chat", "hello") == (code, "", message)


def test_no_server_says_how_to_start_one(run: Run) -> None:
    assert run("chat", "--address", "127.0.0.1:1", "hello") == (
        1,
        "",
        "tokenwire: no tokenwire server answers at 127.0.0.1:1 (Connection refused); start one with "
        "`tokenwire serve --model PATH`, or give the address of a running one\n",
    )


def test_waiting_ends_with_a_message(run: Run, server: FakeServer) -> None:
    server.serve(status=2)  # NOT_SERVING
    code, out, err = run("chat", "--wait", "0.7", "hello")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == f"waiting up to 0.7 s for {server.target} to serve ..."
    assert "is still loading after" in err.splitlines()[1]


def test_waiting_for_a_server_that_is_ready_says_nothing(run: Run) -> None:
    assert run("chat", "--wait", "60", "hello") == (0, "you said: hello\n", WARNINGS)


def test_output_that_is_no_terminal_is_left_as_it_is(run: Run, server: FakeServer) -> None:
    server.answer = lambda _: "\x1b[31mred"
    assert run("chat", "x")[1] == "\x1b[31mred\n"


def start(server: FakeServer, *arguments: str, **streams: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"TOKENWIRE_ADDRESS": server.target}
    return subprocess.Popen(
        [*COMMAND, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **streams
    )


def test_ctrl_c_ends_one_answer_quietly(server: FakeServer) -> None:
    server.hold(after=2)
    with start(server, "chat", "hello") as process:
        assert server.holding.wait(30)
        assert process.stdout is not None
        assert process.stdout.read(9) == "you said:"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "warning: no chat markers\n")
    assert server.cancelled.wait(10)


def test_a_reader_that_leaves_ends_the_answer_quietly(server: FakeServer) -> None:
    server.hold(after=2)
    with start(server, "generate", "hello big world") as process:
        assert server.holding.wait(30)
        assert process.stdout is not None
        process.stdout.close()
        server.release.set()
        assert process.stderr is not None
        assert process.stderr.read() == "warning: no chat markers\n"
        assert process.wait(30) == 141
