"""docs/tutorial.md and README.md do what they say: their blocks run in order, and print what stands below them.

The answers that the documents show whole are greedy ones in which every token won by at least half a nat (README's
Python answer by 0.06), a thousand times what other vector instructions change.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.documents import FENCE, Block, PythonSession, ShellSession, blocks, check
from tests.serving import ROOT, Server, clean_environment, running_server
from tokenwire.client import DEFAULT_TARGET

TUTORIAL = ROOT / "docs" / "tutorial.md"
README = ROOT / "README.md"
WARNINGS = {
    "python": {
        "default_length_cut",
        "eos_never_likely",
        "seed_without_effect",
        "sampling_without_effect",
        "raw_prompt",
    },
    "sh": {"default_length_cut", "seed_without_effect", "raw_prompt"},
}

pytestmark = pytest.mark.timeout(900)


def runnable(language: str) -> list[Block]:
    return [block for block in blocks(TUTORIAL) if block.language == language and not block.is_serve_command]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """What the tutorial's first command starts, on a free port, on the CPU, and with a cache of a known size."""
    (command,) = (block for block in blocks(TUTORIAL) if block.is_serve_command)
    program, serve, model_flag, model, *flags = shlex.split(command.code)
    assert (program, serve, model_flag) == (".venv/bin/tokenwire", "serve", "--model")
    assert "nf4" in flags
    assert command.output == ""
    with running_server(model, [*flags, "--device", "cpu", "--kv-cache-memory", "1GiB"]) as running:
        yield running


@pytest.fixture(scope="module")
def environment(server: Server) -> dict[str, str]:
    """A reader's environment: it says where the server is, as the tutorial tells for one that is elsewhere."""
    inherited = {name: value for name, value in clean_environment().items() if not name.startswith(("MAKE", "MFLAGS"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
    return {**inherited, "PATH": path, "TOKENWIRE_ADDRESS": server.address}


@pytest.fixture(scope="module")
def grpcurl() -> Path:
    """The program, built where there is Go. Continuous integration must have Go; elsewhere the tests are skipped."""
    if shutil.which("go") is None:
        missing = "no Go on this machine: the grpcurl commands of the documents were not run"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    subprocess.run(["make", "grpcurl"], cwd=ROOT, env=environment, check=True)
    return ROOT / ".cache" / "bin" / "grpcurl"


def test_every_fence_of_the_tutorial_is_run() -> None:
    found = blocks(TUTORIAL)
    kinds = {
        "serve": sum(block.is_serve_command for block in found),
        "python": len(runnable("python")),
        "sh": len(runnable("sh")),
    }
    assert sum(kinds.values()) == len(found), "a block of a language that no test runs"
    fences = sum(line.startswith(FENCE) for line in TUTORIAL.read_text().splitlines())
    assert fences == 2 * (len(found) + sum(bool(block.output) for block in found))
    assert kinds["serve"] == 1
    assert kinds["python"] >= 10
    assert kinds["sh"] >= 8
    for block in found:
        literal = block.output.replace("...", "").strip()
        assert literal or block.is_serve_command, f"line {block.line}: nothing to compare with"


@pytest.mark.parametrize("language", ["python", "sh"])
def test_every_pitfall_is_shown(language: str) -> None:
    shown = {
        code for block in runnable(language) for code in re.findall(r"['\"]([a-z]+(?:_[a-z]+)+)['\"]", block.output)
    }
    assert shown >= WARNINGS[language]


def test_python_of_the_tutorial(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWIRE_ADDRESS", server.address)
    done = []
    with PythonSession() as session:
        for block in runnable("python"):
            check(block, session.run(block.code))
            done.append(block.line)
    assert len(done) == TUTORIAL.read_text().count(f"{FENCE}python\n")


def test_grpcurl_of_the_tutorial(grpcurl: Path, environment: dict[str, str], tmp_path: Path) -> None:
    done = []
    with ShellSession(tmp_path, environment) as session:
        for block in runnable("sh"):
            check(block, session.run(block.code))
            done.append(block.line)
        assert session.run("command -v grpcurl") == f"{grpcurl}\n"
    assert len(done) == TUTORIAL.read_text().count(f"{FENCE}sh\n") - 1  # that starts the server


def test_python_of_the_readme(server: Server) -> None:
    (block,) = (block for block in blocks(README) if block.language == "python")
    assert DEFAULT_TARGET in block.code
    with PythonSession() as session:
        check(block, session.run(block.code.replace(DEFAULT_TARGET, server.address)))


def test_grpcurl_of_the_readme(grpcurl: Path, server: Server, environment: dict[str, str], tmp_path: Path) -> None:
    (block,) = (block for block in blocks(README) if block.code.startswith("grpcurl "))
    assert DEFAULT_TARGET in block.code
    with ShellSession(
        tmp_path, {**environment, "PATH": f"{grpcurl.parent}{os.pathsep}{environment['PATH']}"}
    ) as session:
        check(block, session.run(block.code.replace(DEFAULT_TARGET, server.address)))
