"""`make demo`: start the server on loopback, wait until it serves, stream one chat answer, stop the server."""

import argparse
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import Queue

TOKENWIRE = str(Path(sys.executable).parent / "tokenwire")
QUESTION = "What is gravity? Answer in one short paragraph."
STOP_TIMEOUT_S = 10


SAMPLING = ["--temperature", "0.2", "--top-p", "0.9", "--repetition-penalty", "1.1", "--seed", "7"]
"""What the model's authors recommend, with a seed: the same demo for everyone."""


class Server:
    """`tokenwire serve` as a child, its log shown as progress."""

    def __init__(self, model: str) -> None:
        command = [TOKENWIRE, "serve", "--model", model, "--quantize", "nf4", "--port", "0"]
        print(f"==> {' '.join(['tokenwire', *command[1:]])}", flush=True)
        # A session of its own: Ctrl-C reaches the demo alone, which then stops the server in order.
        self.process = subprocess.Popen(
            [*command, "--drain-grace", "1", "--log-format", "json"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.addresses: Queue[str | None] = Queue()
        """Where it listens, then None once it has ended."""
        self.client: subprocess.Popen[bytes] | None = None
        """Ended with the server, so that nobody waits for an answer that cannot come."""
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            try:
                record = json.loads(line)
            except ValueError:
                print(line, end="", file=sys.stderr)
                continue
            event = record.get("event")
            if event == "listening":
                self.addresses.put(record["address"])
            elif event == "loading":
                print(f"==> {record['phase']}", flush=True)
            elif record.get("level") in ("warning", "error"):
                print(event, file=sys.stderr)
        self.addresses.put(None)
        if self.client:
            self.client.terminate()

    def stop(self) -> None:
        """End the server; it ends its engine. Kill it only if it does not obey."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main() -> int:
    """Run the demo; the exit code is the client's, or the server's if it ended first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args()
    server = Server(options.model)
    try:
        address = server.addresses.get()
        if address is None:
            return server.process.wait() or 1
        chat = ["chat", "--address", address, "--wait", "600", "--stats", "--max-new-tokens", "160", *SAMPLING]
        server.client = subprocess.Popen([TOKENWIRE, *chat, options.question])
        code = server.client.wait()
        return code if server.process.poll() is None else server.process.returncode or 1
    except KeyboardInterrupt:
        print()
        return 130
    finally:
        if server.client:
            server.client.terminate()
            server.client.wait()
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
