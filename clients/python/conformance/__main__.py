"""Runs the cases of clients/conformance.json against live servers with the Python client.

    python clients/python/conformance SERVERS CASES [RESULTS]

SERVERS is the file that the harness writes, RESULTS one that gets the names of the cases that passed and failed.
clients/CONFORMANCE.md says what all of them hold.
"""

import json
import sys
import threading
import time
import traceback
import urllib.request
from pathlib import Path
from typing import Any

from matching import mismatch, resolve
from steps import call

from tokenwire.client import Client

CASE_LIMIT_S = 120.0
"""Ends a case that hangs."""


def connect(profile: dict[str, Any], settings: dict[str, Any]) -> Client:
    """A client as the profile and the case want it."""
    connection = {name: value for name, value in profile.items() if name != "target"}
    timeout_ms = settings.get("timeout_ms")
    return Client(
        profile["target"],
        retries=settings.get("retries", 0),
        timeout=None if timeout_ms is None else timeout_ms / 1000,
        **connection,
    )


def control(url: str) -> Any:
    """What the harness answers."""
    # Loopback: the environment's proxy has no part in it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=CASE_LIMIT_S) as answer:
        return json.load(answer)


def run(case: dict[str, Any], servers: dict[str, Any]) -> str:
    """Run a case; what went wrong, or an empty string."""
    values: dict[str, Any] = {}
    with connect(servers["profiles"][case["profile"]], case.get("connect", {})) as client:
        for index, step in enumerate(case["steps"]):
            if "control" in step:
                outcome = control(servers["control"] + step["control"])
            else:
                request = resolve(step.get("request", {}), servers["facts"], values)
                began = time.monotonic()
                outcome = call(client, step, request, lambda path: control(servers["control"] + path))
                outcome["elapsed_ms"] = (time.monotonic() - began) * 1000
            if "id" in step:
                values[step["id"]] = outcome
            if "expect" in step:
                expected = resolve(step["expect"], servers["facts"], values)
                if wrong := mismatch(expected, outcome, f"step {index}"):
                    return f"{wrong} (status {outcome.get('status')}, message {outcome.get('message')})"
    return ""


def limited(case: dict[str, Any], servers: dict[str, Any]) -> str:
    """Run a case, and leave it where it hangs."""
    outcome = ["it hangs"]

    def target() -> None:
        try:
            outcome[0] = run(case, servers)
        except Exception:
            outcome[0] = traceback.format_exc()

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(CASE_LIMIT_S)
    return outcome[0]


def main() -> int:
    servers, cases = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    for expected, actual, fits in cases["matching"]:
        pair = [resolve(each, {}, {}) for each in (expected, actual)]
        if (mismatch(*pair, "value") == "") is not fits:
            print(f"FAILED matching {expected} {actual}")
            return 1
    passed: list[str] = []
    failed: list[str] = []
    for case in cases["cases"]:
        if wrong := limited(case, servers):
            print(f"FAILED {case['name']}: {wrong}", flush=True)
        (failed if wrong else passed).append(case["name"])
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(json.dumps({"passed": passed, "failed": failed}))
    print(f"{len(passed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
