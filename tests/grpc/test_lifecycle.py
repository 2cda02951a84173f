"""The server as a process: start, signals, exit codes, and what stands on standard error."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes import FakeEngine, model_info
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import running
from test_calls import generate_request

from tokenwire.errors import ModelLoadError
from tokenwire.v1 import generation_service_pb2_grpc

PROGRAM = Path(__file__).with_name("serve_fake.py")


class Process:
    """A server process whose log is JSON lines."""

    def __init__(self, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(options)], stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []

    def line(self, event: str) -> dict[str, Any]:
        """The next log line whose event begins so."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            entry = json.loads(line)
            if entry["event"].startswith(event):
                return entry
        raise AssertionError(f"no line {event!r} in {self.lines}")

    def address(self) -> str:
        return str(self.line("listening")["address"])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for the exit code; the rest of standard error is in ``lines``."""
        assert self._process.stderr is not None
        self.lines += self._process.stderr.readlines()
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture
def launch() -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(**options: Any) -> Process:
        processes.append(Process(**options))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def stub(channel: grpc.Channel) -> Any:
    return generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(launch: Callable[..., Process], number: int) -> None:
    process = launch(drain_grace=0.3)
    with grpc.insecure_channel(process.address()) as channel:
        process.line("ready")
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        held = stub(channel).GenerateStream(generate_request("hold"))
        assert next(held).HasField("start")
        assert next(held).delta.text == "a"
        process.signal(number)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            stub(channel).Generate(generate_request("x"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as ended:
            next(held)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert process.end() == 0


def test_a_second_signal_stops_at_once(launch: Callable[..., Process]) -> None:
    process = launch(drain_grace=600.0)
    with grpc.insecure_channel(process.address()) as channel:
        process.line("ready")
        held = stub(channel).GenerateStream(generate_request("hold"))
        assert next(held).HasField("start")
        process.signal(signal.SIGTERM)
        process.line("draining")
        begun = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.end() == 0
        assert time.monotonic() - begun < 1
        with pytest.raises(grpc.RpcError) as ended:
            list(held)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_signal_while_loading_stops(launch: Callable[..., Process]) -> None:
    process = launch(mode="loading")
    process.address()
    process.signal(signal.SIGINT)
    assert process.end() == 0


def test_a_model_that_cannot_be_loaded_is_one_line_and_exit_code_1(launch: Callable[..., Process]) -> None:
    process = launch(mode="broken")
    assert process.end() == 1
    errors = [json.loads(line) for line in process.lines if json.loads(line)["level"] == "error"]
    assert [error["event"] for error in errors] == ["cannot load the model: no config.json in /models/none"]


def test_sighup_reads_files_anew_and_ends_a_server_without_any(launch: Callable[..., Process], tmp_path: Path) -> None:
    callers = tmp_path / "callers.toml"
    callers.write_text("[defaults]\nmax_running = 1\n")
    process = launch(callers=str(callers))
    process.line("ready")
    callers.write_text("[defaults]\nmax_running = 22\n")
    process.signal(signal.SIGHUP)
    process.line("callers read anew")
    process.signal(signal.SIGTERM)
    assert process.end() == 0
    plain = launch()
    plain.line("ready")
    plain.signal(signal.SIGHUP)
    assert plain.end() == -signal.SIGHUP


def test_a_port_in_use_is_one_line_and_exit_code_2(launch: Callable[..., Process]) -> None:
    process = launch()
    address = process.address()
    second = launch(port=int(address.rpartition(":")[2]))
    assert second.end() == 2
    message = f"port: cannot listen on {address}: the port is in use"
    assert [json.loads(line)["event"] for line in second.lines] == [message]


def test_a_port_that_another_program_holds(launch: Callable[..., Process]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = launch(port=other.getsockname()[1], log_format="text")
        assert process.end() == 2
        (line,) = process.lines
        address = "{}:{}".format(*other.getsockname())
        assert line.rstrip().endswith(f"port: cannot listen on {address}: the port is in use")


def test_an_address_that_is_not_here(launch: Callable[..., Process]) -> None:
    process = launch(host="192.0.2.1")
    assert process.end() == 2
    (line,) = process.lines
    assert json.loads(line)["event"].startswith("host: cannot listen on 192.0.2.1:")


def test_one_log_line_per_request_without_any_text(launch: Callable[..., Process]) -> None:
    process = launch()
    with grpc.insecure_channel(process.address()) as channel:
        process.line("ready")
        generation = stub(channel)
        generation.Generate(generate_request("a prompt to keep", max_new_tokens=50), metadata=(("x-request-id", "r1"),))
        entry = process.line("request")
        assert (entry["request_id"], entry["method"], entry["status"]) == ("r1", "Generate", "OK")
        assert (entry["prompt_tokens"], entry["completion_tokens"]) == (16, 17)
        assert 0 <= entry["ttft_ms"] <= entry["duration_ms"]
        with pytest.raises(grpc.RpcError):
            generation.Generate(generate_request("a prompt to keep", top_p=7.0))
        refused = process.line("request")
        assert (refused["status"], refused["reason"]) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        held = generation.GenerateStream(generate_request("hold"))
        next(held)
        held.cancel()
        assert process.line("request")["status"] == "CANCELLED"
        with pytest.raises(grpc.RpcError):
            generation.Generate(generate_request("hold"), timeout=0.2)
        assert process.line("request")["status"] == "DEADLINE_EXCEEDED"
        with pytest.raises(grpc.RpcError):
            generation.Generate(generate_request("crash"))
        crash = process.line("request")
        assert (crash["level"], crash["status"]) == ("error", "INTERNAL")
        assert "KeyError" in crash["exception"]
        process.signal(signal.SIGTERM)
        assert process.end() == 0
    assert "a prompt to keep" not in "".join(process.lines)
    events = [json.loads(line)["event"] for line in process.lines]
    assert events.count("request") == 5
    assert set(events) == {"listening", "ready", "request", "draining", "stopped"}


def test_the_front_and_the_command_line_import_no_model_library() -> None:
    program = (
        "import sys, tokenwire.server, tokenwire.cli\n"
        "print([name for name in ('torch', 'transformers', 'bitsandbytes', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


async def test_a_tokenizer_that_fails_in_any_way_is_a_model_that_cannot_be_loaded() -> None:
    with pytest.raises(ModelLoadError, match=r"^the text side cannot be used: TypeError: .*"):
        async with running(FakeEngine(model_info(tokenizer_json=7))):
            pass
