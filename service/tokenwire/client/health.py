"""Waiting until a server serves. No I/O: both faces of the client share it."""

import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenwire.client.channel import Connection
from tokenwire.client.errors import START_ADVICE, DeadlineExceeded, from_rpc_error

RETRY_S = 0.1
"""Pause before a watch that broke is opened again, in seconds."""


class ReadinessWait:
    """One wait with a deadline: what the server said so far, and what a failure of the watch means."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._target = connection.target
        self._health = health_pb2_grpc.HealthStub(connection.channel)
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._answered = False

    def remaining(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self._deadline - time.monotonic())

    def open(self) -> Any:
        """A watch of the server's health, to be iterated in the way of the connection's channel."""
        return self._health.Watch(health_pb2.HealthCheckRequest(), timeout=self.remaining(), wait_for_ready=True)

    def serves(self, response: health_pb2.HealthCheckResponse) -> bool:
        """Whether the server is ready."""
        self._answered = True
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def check(self, error: grpc.RpcError | None) -> None:
        """After a watch broke (None: ended): return to try again, or raise what ends the wait."""
        code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
        if code is grpc.StatusCode.DEADLINE_EXCEEDED or not self.remaining():
            raise DeadlineExceeded(
                f"the server at {self._target} is still loading after {self._timeout:g} s; look at its log"
                if self._answered
                else f"no tokenwire server answers at {self._target} within {self._timeout:g} s; {START_ADVICE}"
            )
        if error is not None and code is not grpc.StatusCode.UNAVAILABLE:
            raise from_rpc_error(error, target=self._target)
