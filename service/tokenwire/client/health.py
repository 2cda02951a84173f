"""Waiting until a server serves. No I/O: both faces of the client share it."""

import time

import grpc
from grpc_health.v1 import health_pb2

from tokenwire.client.errors import START_ADVICE, DeadlineExceeded, from_rpc_error

RETRY_S = 0.1
"""Pause before a watch that broke is opened again, in seconds."""


class ReadinessWait:
    """One wait with a deadline: what the server said so far, and what a failure of the watch means."""

    request = health_pb2.HealthCheckRequest()

    def __init__(self, target: str, timeout: float) -> None:
        self._target = target
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._answered = False

    def remaining(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self._deadline - time.monotonic())

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
