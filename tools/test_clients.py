#!/usr/bin/env python3
"""Runs the clients' tests: unit tests, checks of generated code, examples, and the conformance cases of each language.

    tools/test_clients.py [--write] [LANGUAGE…]

A language whose toolchain is missing is left out with a line that says so; with CI set it fails. The table in
docs/clients.md is compared with what this run gives, or with --write made from it.
"""

import argparse
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "clients" / "conformance.json"
DOCUMENT = ROOT / "docs" / "clients.md"
GO = ROOT / "clients" / "go"
BEGIN, END = "<!-- table of tools/test_clients.py -->\n", "<!-- end of the table -->\n"

START_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 900.0
"""How long one command may take: the first build of a client compiles gRPC."""
EXAMPLE_ADDRESS = "127.0.0.1:50051"
"""The address in the documents' examples."""


class CheckError(Exception):
    """A check failed; the text says which."""


def run(*command: str | Path, cwd: Path = ROOT, **options: Any) -> str:
    """Run a command; its standard output. Raises CheckError with all that it printed."""
    shown = " ".join(map(str, command))
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        **options,
    )
    if done.returncode:
        raise CheckError(f"{shown}\n{done.stdout}{done.stderr}ended with {done.returncode}")
    return done.stdout


# ---- the languages -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Language:
    """How one client is tested."""

    name: str
    """As the table names it."""
    tool: str | None
    """The program that must be there."""
    check: Callable[[Path], None]
    """What needs no server; may build into a folder of its own."""
    runner: Callable[[Path], Sequence[str | Path]]
    """The command of the conformance runner, without its arguments."""
    examples: Callable[[Mapping[str, Any]], None] = lambda profiles: None
    """Runs the examples against a server."""


def check_go(build: Path) -> None:
    """Format, stubs, vet, unit tests; builds the runner."""
    if unformatted := run("gofmt", "-l", ".", cwd=GO):
        raise CheckError(f"gofmt would change\n{unformatted}")
    buf = Path(sys.executable).with_name("buf")
    run(buf, "generate", ROOT, "--template", "buf.gen.yaml", "--output", build, cwd=GO)
    stubs, fresh = GO / "tokenwirepb", build / "tokenwirepb"
    names = sorted({path.name for folder in (stubs, fresh) for path in folder.iterdir()})
    _, differing, missing = filecmp.cmpfiles(stubs, fresh, names, shallow=False)
    if differing or missing:
        raise CheckError(
            f"clients/go: {', '.join(differing + missing)} is not what the proto gives; run `make clients-stubs`"
        )
    run("go", "vet", "./...", cwd=GO)
    run("go", "test", "./...", cwd=GO)
    run("go", "build", "-o", build, "./internal/conformance", "./examples/chat", cwd=GO)


def go_examples(profiles: Mapping[str, Any]) -> None:
    """The README's first example as it would be pasted, and the chat."""
    target = profiles["plain"]["target"]
    example = re.search(r"```go\n(.*?)```", (GO / "README.md").read_text(), re.DOTALL)
    if example is None or EXAMPLE_ADDRESS not in example[1]:
        raise CheckError("clients/go/README.md has no example")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "main.go"
        program.write_text(example[1].replace(EXAMPLE_ADDRESS, target))
        if not run("go", "run", program, cwd=GO).strip():
            raise CheckError("the example of clients/go/README.md prints nothing")
    if not run("go", "run", "./examples/chat", "-target", target, "-max-new-tokens", "20", "Hello", cwd=GO).strip():
        raise CheckError("clients/go/examples/chat prints nothing")


LANGUAGES = {
    "python": Language(
        name="Python",
        tool=None,
        check=lambda build: None,  # its unit tests are among the service's
        runner=lambda build: (sys.executable, ROOT / "clients" / "python" / "conformance"),
    ),
    "go": Language(
        name="Go",
        tool="go",
        check=check_go,
        runner=lambda build: (build / "conformance",),
        examples=go_examples,
    ),
}
"""To add a language: a line here, its folder under clients, and a runner as clients/CONFORMANCE.md describes it."""


# ---- servers, runs, table ----------------------------------------------------------------------------------


@contextmanager
def servers(folder: Path) -> Iterator[Callable[[], Path]]:
    """Start the harness; gives what waits for its file. It is gone at the end."""
    file, log = folder / "servers.json", folder / "servers.log"
    harness = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "conformance" / "serve_conformance.py", file],
        stdin=subprocess.PIPE,
        # Engines that fail as they are told to say so at length.
        stderr=log.open("wb"),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("TOKENWIRE_")},
    )

    def wait() -> Path:
        end = time.monotonic() + START_TIMEOUT_S
        while not file.exists():
            if harness.poll() is not None or time.monotonic() > end:
                raise CheckError(f"the servers did not start\n{log.read_text()}")
            time.sleep(0.1)
        return file

    try:
        yield wait
    finally:
        # The end of its standard input ends it.
        harness.communicate(timeout=START_TIMEOUT_S)


def available(names: Sequence[str]) -> list[str]:
    """Those of the languages whose toolchain is there."""
    found = []
    for name in names:
        tool = LANGUAGES[name].tool
        if tool is None or shutil.which(tool):
            found.append(name)
        elif os.environ.get("CI"):
            raise CheckError(f"{tool} is missing, and nothing is left out where CI is set")
        else:
            print(f"tokenwire: {tool} is missing: the client for {LANGUAGES[name].name} is not tested")
    return found


def conformance(language: Language, build: Path, live: Path) -> set[str]:
    """Run the cases; the names of those that passed."""
    results = build / "results.json"
    began = time.monotonic()
    done = subprocess.run(
        [*map(str, language.runner(build)), live, CASES, results],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=RUN_TIMEOUT_S,
        check=False,
        # Handshakes that fail are what some cases are about.
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )
    if not results.exists():
        raise CheckError(f"{language.name}: the runner ended with {done.returncode} and without results")
    print(f"{language.name}: {time.monotonic() - began:.0f} s", flush=True)
    return set(json.loads(results.read_text())["passed"])


def table(passed: Mapping[str, set[str]], written: str) -> str:
    """The table of docs/clients.md; columns of languages that did not run stay as they are ``written``."""
    groups: dict[str, list[str]] = {}
    for case in json.loads(CASES.read_text())["cases"]:
        groups.setdefault(case["name"].partition("/")[0], []).append(case["name"])
    groups["all"] = [name for names in groups.values() for name in names]
    before = {
        cells[0]: dict(zip(LANGUAGES, cells[2:], strict=False))
        for cells in ([cell.strip() for cell in line.strip("|\n").split("|")] for line in written.splitlines())
    }
    lines = [
        "| cases | number | " + " | ".join(language.name for language in LANGUAGES.values()) + " |",
        "|---|---|" + "---|" * len(LANGUAGES),
    ]
    for group, names in groups.items():
        cells = [
            f"{len(passed[name].intersection(names))} passed" if name in passed else before.get(group, {}).get(name, "")
            for name in LANGUAGES
        ]
        lines.append(f"| {group} | {len(names)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the table of docs/clients.md from this run")
    parser.add_argument("languages", nargs="*", choices=[*LANGUAGES, []], metavar="LANGUAGE", help=", ".join(LANGUAGES))
    arguments = parser.parse_args()
    names = available(arguments.languages or list(LANGUAGES))
    if not names:
        return 0
    num_cases = len(json.loads(CASES.read_text())["cases"])
    passed: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory(prefix="tokenwire-clients-") as scratch, servers(Path(scratch)) as wait:
        builds = {name: Path(scratch) / name for name in names}
        for name, build in builds.items():
            build.mkdir()
            LANGUAGES[name].check(build)  # while the servers load
        live = wait()
        for name, build in builds.items():
            LANGUAGES[name].examples(json.loads(live.read_text())["profiles"])
            passed[name] = conformance(LANGUAGES[name], build, live)
    document = DOCUMENT.read_text()
    written = document.partition(BEGIN)[2].partition(END)[0]
    fresh = table(passed, written)
    if arguments.write:
        DOCUMENT.write_text(document.replace(f"{BEGIN}{written}{END}", f"{BEGIN}{fresh}{END}"))
    elif fresh != written:
        raise CheckError(f"the table in {DOCUMENT.relative_to(ROOT)} is not what this run gives:\n{fresh}")
    if short := [name for name in names if len(passed[name]) < num_cases]:
        raise CheckError(f"cases failed in {', '.join(short)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckError as error:
        print(f"tokenwire: {error}", file=sys.stderr)
        sys.exit(1)
