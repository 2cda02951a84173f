"""`tokenwire top` where what answers is no server of tokenwire: one line that names the address, no traceback."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tokenwire.cli import main
from tokenwire.cli.top import _Seen, _Server
from tokenwire.telemetry import snapshots

PATIENCE_S = 60.0
BASE = "tokenwire_requests_running 0\n"

Answer = Callable[[socket.socket, threading.Event], None]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """Address of a server that does ``answer`` with each connection; the event is set at the end."""
    end = threading.Event()
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65_536)
            answer(connection, end)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while not end.is_set():
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=serve, args=(listener,))
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            end.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def saying(raw: bytes) -> Answer:
    return lambda connection, _: connection.sendall(raw)


def page(text: str) -> Answer:
    body = text.encode()
    return saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def drip(connection: socket.socket, end: threading.Event) -> None:
    """A byte after the other, each soon enough for a timeout that holds for one."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not end.wait(0.05):
        connection.sendall(b"#")


def drip_a_header(connection: socket.socket, end: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not end.wait(0.05):
        connection.sendall(b"x")


GARBAGE = [
    (page(BASE + "tokenwire_engine_state 1\n"), "tokenwire_engine_state lacks the label state"),
    (page(BASE + 'tokenwire_model_info{model="m"} 1\n'), "tokenwire_model_info lacks the label"),
    (page(BASE + "tokenwire_startup_phase_seconds 1\n"), "tokenwire_startup_phase_seconds lacks the label phase"),
    (page(BASE + "tokenwire_queue_seconds_bucket 1\n"), "tokenwire_queue_seconds_bucket lacks the label le"),
    (page(BASE + 'tokenwire_queue_seconds_bucket{le="x"} 1\n'), "has a bound that is no number"),
    (page(BASE + 'tokenwire_queue_seconds_bucket{le="NaN"} 1\n'), "has a bound that is no number"),
    (page(BASE + "nonsense nonsense\n"), "no metrics"),
    (page("<html>"), "no metrics"),
    (page("up 1\n"), "not tokenwire's metrics"),
    (saying(b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe"), "no metrics"),
    (saying(b"HTTP/1.1 200 OK\r\n\r\n" + b"#" * (4 * 2**20 + 1)), "longer than 4 MiB"),
    (saying(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"), "it answers 302"),
    (saying(b"HTTP/1.1 500 No\r\n\r\n"), "it answers 500"),
    (saying(b"SSH-2.0-x\r\n"), "no HTTP server"),
    (saying(b""), ""),
]


def check(address: str, message: str, error: str) -> None:
    first, hint, *more = error.splitlines()
    assert first.startswith(f"tokenwire: {address}: ")
    assert message in first
    assert "--metrics-port" in hint
    assert not more


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(("answer", "message"), GARBAGE)
def test_garbage_is_one_line(answer: Answer, message: str, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with answering(answer) as address:
        assert main(["top", address, "--once", "--interval", "0.1", *form]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    check(address, message, shown.err)


@pytest.mark.parametrize(
    "address", ["ftp://127.0.0.1/metrics", "file:///etc/hostname", "127.0.0.1:port", "http://", "http://[", "a b:1"]
)
def test_what_is_no_address_is_one_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", address, "--once"]) == 1
    check(address, "", capsys.readouterr().err)


@pytest.mark.parametrize("answer", [drip, drip_a_header])
def test_the_time_limit_holds_for_the_whole_scrape_of_all_servers_together(
    answer: Answer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "TIMEOUT_S", 2.0)
    with answering(answer) as address:
        addresses = [address] * 12
        before = time.monotonic()
        assert main(["top", *addresses, "--once"]) == 1
        took = time.monotonic() - before
    lines = capsys.readouterr().err.splitlines()
    assert lines[:-1] == [f"tokenwire: {address}: no whole answer within 2 s"] * 12
    # One after the other they would take 24 s.
    assert took < 20


def test_a_server_that_drips_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "TIMEOUT_S", PATIENCE_S)
    end = threading.Event()
    with answering(drip) as slow, answering(page(BASE)) as quick:
        servers = [_Server(slow), _Server(quick)]
        watching = [threading.Thread(target=server.watch, args=(0.01, end)) for server in servers]
        for thread in watching:
            thread.start()
        try:
            limit = time.monotonic() + PATIENCE_S / 2
            while len(servers[1].seen.snapshots) < 3:
                assert time.monotonic() < limit
                time.sleep(0.01)
            assert servers[0].seen == _Seen()
        finally:
            end.set()
    for thread in watching:
        thread.join()


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_what_is_no_number_is_null_in_json_and_a_dash_for_people(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        f"tokenwire_requests_running {value}\ntokenwire_preemptions_total {value}\n"
        f'tokenwire_engine_step_seconds_total{{phase="forward"}} {value}\n'
        f'tokenwire_queue_seconds_bucket{{le="0.1"}} {value}\ntokenwire_queue_seconds_bucket{{le="+Inf"}} {value}\n'
    )

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    with answering(page(text)) as address:
        assert main(["top", address, "--once", "--interval", "0.1", "--json"]) == 0
        record = json.loads(capsys.readouterr().out, parse_constant=refuse)
        assert record["requests_running"] is None
        assert record["preemptions_per_second"] is None
        assert main(["top", address, "--once", "--interval", "0.1"]) == 0
    shown = capsys.readouterr().out.lower()
    assert "nan" not in shown
    assert " inf" not in shown
