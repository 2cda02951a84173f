"""An OTLP collector: takes spans over gRPC on loopback and keeps them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Received:
    """One span as it came over the wire."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    status: int
    trace_state: str
    resource: dict[str, Any]


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Implements the collector's Export."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.raw = b""
        """All requests, as bytes."""
        self._came = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._came:
            self.raw += request.SerializeToString()
            for resource_spans in request.resource_spans:
                resource = {each.key: _value(each.value) for each in resource_spans.resource.attributes}
                for scope in resource_spans.scope_spans:
                    self.spans += [
                        Received(
                            span.name,
                            span.kind,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            {each.key: _value(each.value) for each in span.attributes},
                            span.status.code,
                            span.trace_state,
                            resource,
                        )
                        for span in scope.spans
                    ]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def until(self, count: int) -> list[Received]:
        """Wait until so many spans have come; all of them."""
        end = time.monotonic() + PATIENCE_S
        with self._came:
            while len(self.spans) < count:
                assert self._came.wait(end - time.monotonic()), f"only {[span.name for span in self.spans]}"
            return list(self.spans)


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector, and the endpoint that spans go to."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
