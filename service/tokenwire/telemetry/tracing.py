"""OpenTelemetry traces of calls: a span of the front with queue, prefill and decode below it. Off unless asked for.

Names are those of OpenTelemetry's conventions for RPC and generative AI. No span holds anything of a prompt or an
answer. Spans go out in batches from a thread of their own, out of a bounded queue: what a collector that is slow or
gone does not take is dropped, and no call waits for it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import tokenwire
from tokenwire.call import Call
from tokenwire.engine.protocol import Finish
from tokenwire.errors import ConfigurationError
from tokenwire.telemetry.occasionally import pass_on_occasionally

EXPORT_TIMEOUT_S = 5.0
"""Seconds in which a collector must have taken a batch."""
MAX_QUEUED_SPANS = 2048
"""Spans that wait for the collector; further ones are dropped."""
MAX_BATCH_SPANS = 512
EXPORT_INTERVAL_S = 1.0
MAX_SEQUENCES = 32
"""Sequences of one call that have spans of their own."""
FLUSH_S = 2.0
"""Seconds that the last spans get at the end of the service."""

_SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Codes that are errors of a server by the conventions; others are the caller's."""
_FILES = tuple(
    f"OTEL_EXPORTER_OTLP_{part}{file}"
    for part in ("", "TRACES_")
    for file in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
)
"""Variables of the library that name files of its TLS connection."""
_CHAT_METHODS = ("/Chat", "/ChatStream")

_propagator = TraceContextTextMapPropagator()


class CallTrace:
    """Implements `call.Trace`: the span of one call, and those of the sequences below it."""

    def __init__(self, tracer: trace.Tracer, call: Call, tracestate: str | None) -> None:
        self._tracer = tracer
        # The two clocks are read together once, so that children lie within their parent whatever happens to the time.
        self._epoch_ns = time.time_ns() - round(time.perf_counter() * 1e9)
        method = call.method.removeprefix("/")
        carrier = {} if call.traceparent is None else {"traceparent": call.traceparent}
        if carrier and tracestate:
            carrier["tracestate"] = tracestate
        self._span: Span = tracer.start_span(
            method,
            _propagator.extract(carrier),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method, "tokenwire.request_id": call.request_id},
            start_time=self._ns(call.started),
        )
        self._context = trace.set_span_in_context(self._span)
        self._reasons: list[str] = []
        returned: dict[str, str] = {}
        _propagator.inject(returned, self._context)
        self.traceparent = returned.get("traceparent")
        """W3C trace context of the call's own span, for the caller and for whatever is called on its behalf."""
        self.tracestate = returned.get("tracestate")

    def sequence_ended(self, submitted: float, finish: Finish, index: int) -> None:
        """A sequence has come to its end, whose request was submitted at ``submitted``, in seconds of perf_counter."""
        self._reasons.append(finish.reason)
        if not self._span.is_recording() or len(self._reasons) > MAX_SEQUENCES:
            return
        now = time.perf_counter()
        begin = submitted
        for name, milliseconds in (
            ("queue", finish.queue_ms),
            ("prefill", finish.prefill_ms),
            ("decode", finish.decode_ms),
        ):
            # Measured in the engine, so that rounding and the way from there may exceed what has passed here.
            end = min(begin + milliseconds / 1000, now)
            span = self._tracer.start_span(
                name, self._context, SpanKind.INTERNAL, {"tokenwire.sequence_index": index}, start_time=self._ns(begin)
            )
            if name == "prefill":
                span.set_attribute("gen_ai.usage.input_tokens", finish.prompt_token_count)
                span.set_attribute("gen_ai.usage.cache_read.input_tokens", finish.cached_token_count)
            elif name == "decode":
                span.set_attribute("gen_ai.usage.output_tokens", finish.completion_token_count)
                span.set_attribute("gen_ai.response.finish_reasons", [finish.reason])
            span.end(self._ns(end))
            begin = end

    def end(self, call: Call, code: str, reason: str | None) -> None:
        """The call is over."""
        span = self._span
        if span.is_recording():
            span.set_attribute("rpc.response.status_code", code)
            if code != "OK":
                span.set_attribute("error.type", code if reason is None else reason)
            if code in _SERVER_ERRORS:
                span.set_status(StatusCode.ERROR)
            if call.caller.name:
                span.set_attribute("enduser.id", call.caller.name)
            if call.settings is not None:
                self._describe_request(span, call)
        span.end()

    def _describe_request(self, span: Span, call: Call) -> None:
        settings = call.settings
        if settings is None:
            return
        is_chat = call.method.endswith(_CHAT_METHODS)
        attributes: dict[str, str | float | list[str]] = {
            "gen_ai.operation.name": "chat" if is_chat else "text_completion",
            "gen_ai.provider.name": "tokenwire",
            "gen_ai.request.model": call.model,
            "gen_ai.response.model": call.model,
            "gen_ai.response.id": call.request_id,
            "gen_ai.request.max_tokens": settings.max_new_tokens,
            "gen_ai.request.choice.count": settings.num_return_sequences,
        }
        if settings.do_sample:
            attributes["gen_ai.request.temperature"] = settings.temperature
            attributes["gen_ai.request.top_k"] = settings.top_k
            attributes["gen_ai.request.top_p"] = settings.top_p
            attributes["gen_ai.request.seed"] = settings.seed
        if call.prompt_tokens is not None:
            attributes["gen_ai.usage.input_tokens"] = call.prompt_tokens
        if call.completion_tokens is not None:
            attributes["gen_ai.usage.output_tokens"] = call.completion_tokens
        if self._reasons:
            attributes["gen_ai.response.finish_reasons"] = self._reasons[:MAX_SEQUENCES]
        for name, value in attributes.items():
            span.set_attribute(name, value)
        if call.first_token is not None:
            span.add_event("gen_ai.first_token", timestamp=self._ns(call.first_token))

    def _ns(self, seconds: float) -> int:
        """Nanoseconds since 1970 of a time of perf_counter."""
        return self._epoch_ns + round(seconds * 1e9)


class Tracing:
    """Implements `call.Tracer`: spans to an OTLP collector.

    ``endpoint``: http://HOST:PORT or https://HOST:PORT of its gRPC port. ``sample_ratio``: part of the calls that have
    spans, where the caller has not decided. Headers, certificates and the service's name may come from OpenTelemetry's
    own variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and so on). Raises
    ConfigurationError where one of them names a file that cannot be read, and whatever the library raises for others.
    """

    def __init__(
        self, endpoint: str, sample_ratio: float = 1.0, make_exporter: Callable[[str], SpanExporter] | None = None
    ) -> None:
        pass_on_occasionally("opentelemetry")
        self._exporter = (make_exporter or _otlp_exporter)(endpoint)
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=Resource.create({"service.name": "tokenwire", "service.version": tokenwire.__version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=MAX_QUEUED_SPANS,
                max_export_batch_size=MAX_BATCH_SPANS,
                schedule_delay_millis=EXPORT_INTERVAL_S * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("tokenwire", tokenwire.__version__)

    def begin(self, call: Call, tracestate: str | None) -> CallTrace:
        """The span of ``call``, below the caller's where it sent a trace context."""
        return CallTrace(self._tracer, call, tracestate)

    def close(self) -> None:
        """Send what is left, for two seconds at most. Blocks."""
        flushing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)
        if flushing.is_alive():
            # Ends the attempt that is under way; the SDK's own bound is half a minute.
            self._exporter.shutdown()
            flushing.join(FLUSH_S)
            if flushing.is_alive():
                logging.getLogger("tokenwire.telemetry").warning("the last spans were not sent")


def _otlp_exporter(endpoint: str) -> SpanExporter:
    if endpoint.startswith("https:"):
        _check_files()
    return OTLPSpanExporter(
        endpoint=endpoint,
        timeout=EXPORT_TIMEOUT_S,
        compression=grpc.Compression.Gzip,
    )


def _check_files() -> None:
    """Raise ConfigurationError for a file of the TLS variables that cannot be read.

    The library goes on without one that is not there: then nothing would reach the collector, or all of it would
    without the certificate that was asked for.
    """
    for name in _FILES:
        if path := os.environ.get(name):
            try:
                with open(path, "rb"):
                    pass
            except (OSError, ValueError) as error:
                reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
                raise ConfigurationError(f"otlp_endpoint: {name}: cannot read {path}: {reason.lower()}") from None
