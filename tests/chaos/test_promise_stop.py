"""Lifecycle: SIGTERM drains in the right order, a second one stops at once, and nothing is left behind."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import psutil
import pytest
from chaos_service import NOT_SERVING, PATIENCE_S, SERVING, Calls, Front, answer_to, request
from grpc_health.v1 import health_pb2

from bench import reliability

NUM_STREAMS = 32
SECOND_SIGNAL_WITHIN_S = 1.0


class Reader:
    """Reads a stream in a thread, with the times at which things came."""

    def __init__(self, call: Any) -> None:
        self.events: list[Any] = []
        self.code: grpc.StatusCode | None = None
        self.ended_at = 0.0
        self._call = call
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.events.append((time.monotonic(), event))
        except grpc.RpcError:
            pass
        self.ended_at = time.monotonic()
        self.code = self._call.code()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_sigterm_with_32_streams_and_an_open_watch_ends_in_the_right_order_with_exit_code_0(
    front: Callable[..., Front],
) -> None:
    """Watch sees load, serve and drain, and nothing else; what runs is finished, what is new is refused."""
    started = front({"step_s": 0.02})
    with grpc.insecure_channel(started.address()) as channel:
        calls = Calls(channel)
        watch = Reader(calls.health.Watch(health_pb2.HealthCheckRequest()))
        started.until_logged("ready")
        engine = started.engine()
        prompts = [f"stream {number}" for number in range(NUM_STREAMS)]
        streams = [Reader(calls.generation.GenerateStream(request(prompt, 100))) for prompt in prompts]
        for prompt in prompts:
            started.until_begun(prompt)
        started.process.send_signal(signal.SIGTERM)
        started.until_logged("draining")
        with pytest.raises(grpc.RpcError) as refused:
            calls.generation.Generate(request("new"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        for prompt, stream in zip(prompts, streams, strict=True):
            stream.join()
            assert stream.code is grpc.StatusCode.OK
            tokens = [token for _, event in stream.events for token in event.delta.token_ids]
            assert tokens == answer_to(prompt, 100)
        assert started.end() == 0
        watch.join()
        assert [event.status for _, event in watch.events] == [NOT_SERVING, SERVING, NOT_SERVING]
        drained_at = watch.events[-1][0]
        assert all(drained_at <= stream.ended_at for stream in streams)
        assert watch.code is grpc.StatusCode.UNAVAILABLE
    engine.wait(5)
    assert [entry["event"] for entry in started.log()][-1] == "stopped"
    assert "new" not in started.journal()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_is_out_within_1_s_also_when_a_forward_hangs(
    front: Callable[..., Front], number: signal.Signals
) -> None:
    started = front()
    started.until_logged("ready")
    engine = started.engine()
    with grpc.insecure_channel(started.address()) as channel:
        hung = Reader(Calls(channel).generation.GenerateStream(request("Hang")))
        started.until_begun("Hang")
        started.process.send_signal(signal.SIGTERM)
        started.until_logged("draining")
        began = time.monotonic()
        started.process.send_signal(number)
        assert started.end() == 0
        seconds = time.monotonic() - began
        reliability.record(
            f"A second {number.name} is out, also when a forward hangs", {"after, ms": 1000 * seconds}, "1 s"
        )
        assert seconds < SECOND_SIGNAL_WITHIN_S
        assert not psutil.pid_exists(engine.pid)
        hung.join()
        assert hung.code is grpc.StatusCode.UNAVAILABLE
