"""`tokenwire top` in a pseudo-terminal, against a live server; and what it says where there is none."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from test_calls import generate_request

from tokenwire.cli import main
from tokenwire.telemetry.metrics import ENGINE_RESTARTS, REQUESTS, TIME_TO_FIRST_TOKEN
from tokenwire.telemetry.snapshots import ScrapeError, Snapshot, Window, scrape
from tokenwire.v1 import generation_service_pb2_grpc

PATIENCE_S = 60.0
HERE = Path(__file__).resolve().parent
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextmanager
def served() -> Iterator[tuple[str, str]]:
    """A server's address, and that of its metrics."""
    options = json.dumps({"metrics_port": 0})
    process = subprocess.Popen(
        [sys.executable, str(HERE / "serve_fake.py"), options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            record = json.loads(line)
            if record["event"] == "listening":
                addresses = record["address"], record["metrics_address"]
            if record["event"] == "ready":
                break
        yield addresses
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str]]:
    with served() as addresses:
        yield addresses


def ask(address: str, count: int) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        for _ in range(count):
            stub.Generate(generate_request("four"), timeout=PATIENCE_S)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokenwire.cli", "top", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_view_lives_and_ends_on_ctrl_c(server: tuple[str, str]) -> None:
    address, metrics = server
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenwire.cli", "top", metrics, "127.0.0.1:1", "--interval", "0.1"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = ""
    end = time.monotonic() + PATIENCE_S
    try:
        # Until a rate is above nothing: it has scraped before and after.
        while not re.search(r"tokens generated +[1-9][\d.,]*/s", ESCAPES.sub("", seen)):
            assert time.monotonic() < end, ESCAPES.sub("", seen)
            ask(address, 1)
            if select.select([ours], [], [], 0.05)[0]:
                seen += os.read(ours, 65536).decode()
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            assert time.monotonic() < end
            if select.select([ours], [], [], 0.05)[0]:
                with suppress(OSError):  # Linux's way of saying that the other end is closed
                    seen += os.read(ours, 65536).decode()
        while select.select([ours], [], [], 0)[0]:
            try:
                seen += os.read(ours, 65536).decode()
            except OSError:
                break
        assert process.returncode == 0
        text = ESCAPES.sub("", seen)
        assert "Traceback" not in text
        assert re.search(r"state +ready +connection refused", text)
        # The terminal has its own screen and cursor back.
        assert seen.count("\x1b[?1049h") == seen.count("\x1b[?1049l") == 1
        assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)


def test_once_prints_figures_for_people_and_for_programs(server: tuple[str, str]) -> None:
    _, metrics = server
    shown = run(metrics, "--once", "--interval", "0.1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.search(r"^  state +ready$", shown.stdout, flags=re.M)
    assert re.search(r"^  memory of the front +[1-9]\d* MiB$", shown.stdout, flags=re.M)
    printed = run(metrics, f"http://{metrics}/metrics", "--once", "--json", "--interval", "0.1")
    first, second = map(json.loads, printed.stdout.splitlines())
    assert (first["address"], second["address"]) == (metrics, f"http://{metrics}/metrics")
    assert first["state"] == second["state"] == "ready"
    assert first["requests_running"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name at least one address"),
        (["127.0.0.1:1", "--json"], 2, "--json needs --once"),
        (["127.0.0.1:1", "--once"], 1, "127.0.0.1:1: connection refused"),
        (["nonsense", "--once"], 1, "nonsense: "),
        (["127.0.0.1:1", "--interval", "0"], 2, "interval"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    if code == 1:
        assert "--metrics-port" in error


def test_the_grpc_port_is_no_metrics_port(server: tuple[str, str]) -> None:
    with pytest.raises(ScrapeError):
        scrape(server[0])


def snapshot(at: float, text: str) -> Snapshot:
    return Snapshot.of("tokenwire_requests_running 0\n" + text, at)


def test_rates_are_of_the_window_and_survive_a_restart() -> None:
    before = snapshot(10.0, 'tokenwire_requests_total{method="a",code="OK"} 5\ntokenwire_engine_restarts_total 1\n')
    after = snapshot(
        12.0,
        'tokenwire_requests_total{method="a",code="OK"} 8\ntokenwire_requests_total{method="b",code="OK"} 1\n'
        "tokenwire_engine_restarts_total 0\n",
    )
    window = Window(before, after)
    assert window.rate(REQUESTS) == 2.0
    assert window.rate(REQUESTS, method="a") == 1.5
    assert window.growth(ENGINE_RESTARTS) == 0
    assert Window(after, after).rate(REQUESTS) == 0.0


def histogram(*counts: int) -> str:
    bounds = ("0.1", "0.2", "0.4", "+Inf")
    name = f"{TIME_TO_FIRST_TOKEN.name}_bucket"
    return "".join(f'{name}{{le="{bound}"}} {count}\n' for bound, count in zip(bounds, counts, strict=True))


@pytest.mark.parametrize(
    ("before", "after", "q", "expected"),
    [
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.5, None),
        ((0, 0, 0, 0), (10, 10, 10, 10), 0.5, 0.05),
        ((10, 10, 10, 10), (10, 20, 20, 20), 0.5, 0.15),
        ((0, 0, 0, 0), (0, 5, 10, 10), 0.75, 0.3),
        ((0, 0, 0, 0), (0, 0, 0, 4), 0.5, 0.4),
        ((90, 90, 90, 90), (10, 10, 10, 10), 0.5, 0.05),
    ],
)
def test_quantiles(before: tuple[int, ...], after: tuple[int, ...], q: float, expected: float | None) -> None:
    window = Window(snapshot(0.0, histogram(*before)), snapshot(1.0, histogram(*after)))
    found = window.quantile(TIME_TO_FIRST_TOKEN, q)
    assert found == (None if expected is None else pytest.approx(expected))
