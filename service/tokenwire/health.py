"""grpc.health.v1: overall ("") and per service.

Written on the generated base: the servicer that comes with grpcio-health-checking starts as SERVING, has no List, and
one open Watch holds up a stop until the grace is over.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenwire.call import current_call
from tokenwire.errors import EngineUnavailableError, UnknownServiceError

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

STATE_KEY = "tokenwire-state"
"""Trailing metadata of Check: the engine's state, and while it loads the phase."""

OVERALL = ""
"""Name of the health of the server as a whole."""

LIVENESS = "liveness"
"""Name of what only a restart from outside mends: NOT_SERVING where the engine hangs, and not while it loads, is
started again or drains."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers for the services it was made with; all are NOT_SERVING until ``update`` says otherwise.

    ``describe``: what the service does now, for people; Check returns it as metadata.
    """

    def __init__(self, services: Iterable[str], describe: Callable[[], str]) -> None:
        self._describe = describe
        self._statuses = dict.fromkeys((OVERALL, *services), NOT_SERVING)
        self._changed = asyncio.Event()
        self._closed = False

    def update(self, serving: Mapping[str, bool]) -> None:
        """Set the status of some services and wake their watchers."""
        for service, is_serving in serving.items():
            self._statuses[service] = SERVING if is_serving else NOT_SERVING
        self._wake()

    def close(self) -> None:
        """End every Watch, so that it does not hold up a stop."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:  # noqa: N802
        """The status now, and as metadata why; NOT_FOUND for a service that is not here."""
        current_call().returned = ((STATE_KEY, self._describe()),)
        status = self._statuses.get(request.service)
        if status is None:
            raise UnknownServiceError(request.service)
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Any) -> Any:  # noqa: N802
        """The status of every service."""
        return health_pb2.HealthListResponse(
            statuses={
                service: health_pb2.HealthCheckResponse(status=status) for service, status in self._statuses.items()
            }
        )

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """The status now and at every change; SERVICE_UNKNOWN, with the stream kept open, for an unknown service."""
        sent = None
        while not self._closed:
            changed = self._changed
            status = self._statuses.get(request.service, SERVICE_UNKNOWN)
            if status != sent:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                sent = status
            else:
                await changed.wait()
        raise EngineUnavailableError("the server is shutting down")
