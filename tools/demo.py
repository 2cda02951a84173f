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
QUESTION = "What is gRPC, and when would I choose it over REST? Answer in one short paragraph."
STOP_TIMEOUT_S = 10


def follow_log(process: subprocess.Popen[str], addresses: "Queue[str | None]") -> None:
    """Show the server's progress; hand on the address it listens on, or None when it ends before that."""
    assert process.stderr
    for line in process.stderr:
        try:
            record = json.loads(line)
        except ValueError:
            print(line, end="", file=sys.stderr)
            continue
        event = record.get("event")
        if event == "listening":
            addresses.put(record["address"])
        elif event == "loading":
            print(f"==> {record['phase']}", flush=True)
        elif event == "ready":
            print("==> ready", flush=True)
        elif record.get("level") in ("warning", "error"):
            print(f"{event}: {record.get('message', '')}", file=sys.stderr)
    addresses.put(None)


def stop(server: subprocess.Popen[str]) -> None:
    """End the server; it ends its engine. Kill it only if it does not obey."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main() -> int:
    """Run the demo; the exit code is the client's, or the server's if it ended first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args()
    command = [TOKENWIRE, "serve", "--model", options.model, "--quantize", "nf4", "--port", "0"]
    print(f"==> tokenwire serve --model {options.model} --quantize nf4", flush=True)
    # A session of its own: Ctrl-C reaches this process alone, which then stops the server in order.
    server = subprocess.Popen(
        [*command, "--drain-grace", "1", "--log-format", "json"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )
    try:
        addresses: Queue[str | None] = Queue()
        threading.Thread(target=follow_log, args=(server, addresses), daemon=True).start()
        address = addresses.get()
        if address is None:
            return server.wait() or 1
        print(f"==> listening on {address}\n\nyou> {options.question}\n", flush=True)
        client = [TOKENWIRE, "chat", "--address", address, "--wait", "300", "--stats", "--max-new-tokens", "200"]
        return subprocess.run([*client, options.question]).returncode
    except KeyboardInterrupt:
        print()
        return 130
    finally:
        stop(server)


if __name__ == "__main__":
    sys.exit(main())
