"""A real `tokenwire serve` in a process of its own, for end-to-end tests and for `bench`."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

from tokenwire.client import Client

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    address: str
    log: list[dict[str, Any]] = field(default_factory=list)
    """Its log records so far."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self) -> int:
        """SIGTERM, then wait; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


def serve_command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "tokenwire.cli", "serve", "--log-format", "json", *flags]


def clean_environment() -> dict[str, str]:
    """This process's environment without settings that would reach the server behind a test's back."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TOKENWIRE_") or name == "TOKENWIRE_CACHE"
    }


@contextmanager
def running_server(
    model: Path | str,
    flags: Sequence[str] = (),
    *,
    ready: bool = True,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> Iterator[Server]:
    """Serve ``model`` on a port that the system chooses; on leaving the server is gone, whatever happened.

    ``environment``: variables beside those of this process. ``wrapper``: a command that becomes what stands behind it.
    """
    process = subprocess.Popen(
        [*wrapper, *serve_command("--model", str(model), "--port", "0", "--drain-grace", "5", *flags)],
        cwd=ROOT,
        env=clean_environment() | dict(environment or {}),
        stderr=subprocess.PIPE,
        text=True,
    )
    server = Server(process, "")
    addresses: Queue[str | None] = Queue()

    def follow() -> None:
        assert process.stderr
        for line in process.stderr:
            try:
                record = json.loads(line)
            except ValueError:
                record = {"event": "not json", "message": line}
            server.log.append(record)
            if record["event"] == "listening":
                addresses.put(record["address"])
        addresses.put(None)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        address = addresses.get(timeout=START_TIMEOUT_S)
        if address is None:
            raise RuntimeError(f"the server ended with {process.wait()}: {server.log}")
        server.address = address
        if ready:
            with Client(address) as client:
                client.wait_until_ready(START_TIMEOUT_S)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        thread.join()
        if process.stderr:
            process.stderr.close()
