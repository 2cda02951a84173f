"""Around every call: request id, who calls, the status of an error, one log line. Nothing else aborts a call."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio

from tokenwire.call import Call, Observer, Tracer, enter_call, log
from tokenwire.errors import InvalidRequestError, Violation
from tokenwire.security.authentication import AUTHORIZATION_KEY, Authenticator, check_role
from tokenwire.statuses import Refusal, refusal_of

REQUEST_ID_KEY = "x-request-id"
"""Metadata key: taken from the client where it is sane, always returned in the trailing metadata."""
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

TRACEPARENT_KEY = "traceparent"
"""Metadata key of the W3C trace context. Returned as it came, or where calls are traced, that of the call's span."""
TRACESTATE_KEY = "tracestate"
"""Metadata key of what vendors keep beside it."""

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_SANE_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SANE_TRACESTATE = re.compile(r"[ -~]{1,512}")
_QUIET_SERVICES = ("/grpc.health.", "/grpc.reflection.")


def _parsed(deserialize: Callable[[bytes], Any] | None, data: bytes) -> Any:
    """The request message.

    Parsed here, behind the look at the credential, and not by grpc.aio, which answers undecodable bytes with UNKNOWN
    and the name of a Python class.
    """
    try:
        return data if deserialize is None else deserialize(data)
    except Exception:
        rule = "must be a valid protobuf message of the method's request type, strings in UTF-8"
        raise InvalidRequestError([Violation("request", rule, "undecodable bytes")]) from None


async def _parsed_each(
    deserialize: Callable[[bytes], Any] | None, requests: AsyncIterator[bytes]
) -> AsyncIterator[Any]:
    async for data in requests:
        yield _parsed(deserialize, data)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps every method once and serves it with a request id, a known caller, mapped errors and a log line."""

    def __init__(
        self, authenticator: Authenticator, observer: Observer | None = None, tracer: Tracer | None = None
    ) -> None:
        self._telling = _Telling(authenticator, observer, tracer)
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The wrapped handler of the method; None, and so UNIMPLEMENTED, where there is none."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = _wrap(handler, method, self._telling)
        return wrapped


class _Telling(NamedTuple):
    """Who is asked and told about every call."""

    authenticator: Authenticator
    observer: Observer | None
    tracer: Tracer | None


def _wrap(handler: Any, method: str, telling: _Telling) -> Any:
    deserialize = handler.request_deserializer
    if handler.request_streaming and handler.response_streaming:

        async def stream_stream(requests: Any, context: Any) -> None:
            async with _Serving(method, context, telling) as serving:
                serving.authenticate()
                async for response in handler.stream_stream(_parsed_each(deserialize, requests), context):
                    await context.write(response)

        return grpc.stream_stream_rpc_method_handler(stream_stream, None, handler.response_serializer)
    if handler.response_streaming:

        async def unary_stream(data: bytes, context: Any) -> None:
            async with _Serving(method, context, telling) as serving:
                serving.authenticate()
                await handler.unary_stream(_parsed(deserialize, data), context)

        return grpc.unary_stream_rpc_method_handler(unary_stream, None, handler.response_serializer)

    async def unary_unary(data: bytes, context: Any) -> Any:
        async with _Serving(method, context, telling) as serving:
            serving.authenticate()
            return await handler.unary_unary(_parsed(deserialize, data), context)

    return grpc.unary_unary_rpc_method_handler(unary_unary, None, handler.response_serializer)


class _Serving:
    """The time in which one call is served."""

    __slots__ = ("_authenticator", "_call", "_context")

    def __init__(self, method: str, context: Any, telling: _Telling) -> None:
        request_id, traceparent, tracestate = _ids_of(context)
        is_quiet = method.startswith(_QUIET_SERVICES)
        observer = None if is_quiet else telling.observer
        call = self._call = Call(
            request_id, method, deadline=_deadline(context), traceparent=traceparent, observer=observer
        )
        if telling.tracer is not None and not is_quiet:
            call.trace = telling.tracer.begin(call, tracestate)
            call.traceparent = call.trace.traceparent or traceparent
            call.tracestate = call.trace.tracestate
        self._context = context
        self._authenticator = telling.authenticator

    async def __aenter__(self) -> Self:
        enter_call(self._call)
        self._context.set_trailing_metadata(_returned(self._call))
        return self

    def authenticate(self) -> None:
        """Find out who calls. Raises UnauthenticatedError, PermissionDeniedError."""
        context = self._context
        given = [value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION_KEY]
        texts = [value if isinstance(value, str) else value.decode("latin-1") for value in given]
        call = self._call
        # Known before it is refused: the log line of a call that may not be says whose it was.
        call.caller = self._authenticator.identify(call.method, texts, _certificate_names(context))
        check_role(call.method, call.caller)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            if self._call.returned:
                self._context.set_trailing_metadata(_returned(self._call))
            _end(self._call, "OK")
            return
        if isinstance(error, asyncio.CancelledError) and self._cancelled_from_outside():
            _end(self._call, _ending_of(self._context))
            return
        # Everything else gets a status, a panic of Rust (a BaseException) too: a call without one ends UNKNOWN. A
        # coroutine that is being closed cannot wait.
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            return
        refusal = refusal_of(error, self._call.request_id)
        if refusal.is_fault:
            self._call.cause = error
        _end(self._call, refusal.code.name, refusal)
        await abort(self._context, refusal, self._call)

    @staticmethod
    def _cancelled_from_outside() -> bool:
        # A CancelledError of our own that escapes leaves the client waiting until its deadline (measured).
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0


async def abort(context: Any, refusal: Refusal, call: Call) -> None:
    """End the call with ``refusal``, its details and the ids in the trailing metadata."""
    status = refusal.status(call.request_id)
    metadata: list[tuple[str, str | bytes]] = [*_returned(call), (DETAILS_KEY, status.SerializeToString())]
    if refusal.retry_after_s is not None:
        metadata.append((PUSHBACK_KEY, str(round(refusal.retry_after_s * 1000))))
    await context.abort(refusal.code, status.message, tuple(metadata))


_DEADLINE_SLACK_S = 0.1
"""A client whose deadline passes cancels the call by its own clock, which began before the server's."""


def _ending_of(context: Any) -> str:
    remaining = context.time_remaining()
    return "DEADLINE_EXCEEDED" if remaining is not None and remaining <= _DEADLINE_SLACK_S else "CANCELLED"


def _deadline(context: Any) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _ids_of(context: Any) -> tuple[str, str | None, str | None]:
    """Request id, trace context and trace state of a call: the client's where they are sane."""
    request_id, traceparent, tracestate = "", None, None
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SANE_REQUEST_ID.fullmatch(value):
            request_id = request_id or value
        elif key == TRACEPARENT_KEY and isinstance(value, str) and _SANE_TRACEPARENT.fullmatch(value):
            traceparent = traceparent or value
        elif key == TRACESTATE_KEY and isinstance(value, str) and _SANE_TRACESTATE.fullmatch(value):
            tracestate = tracestate or value
    return request_id or secrets.token_hex(8), traceparent, tracestate


def _returned(call: Call) -> tuple[tuple[str, str], ...]:
    """Metadata that every call ends with."""
    ids = [(REQUEST_ID_KEY, call.request_id)]
    if call.traceparent is not None:
        ids.append((TRACEPARENT_KEY, call.traceparent))
        if call.tracestate is not None:
            ids.append((TRACESTATE_KEY, call.tracestate))
    return (*ids, *call.returned)


def _certificate_names(context: Any) -> Iterator[str]:
    """Names in the client's verified certificate: the alternative ones, then the common name."""
    properties = context.auth_context()
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for name in properties.get(key, ()):
            yield name.decode("utf-8", "replace")


def _end(call: Call, status: str, refusal: Refusal | None = None) -> None:
    """Tell the observer and the log how the call ended."""
    seconds = time.perf_counter() - call.started
    if call.observer is not None:
        if status != "OK" and not call.is_failure_told:
            reason = status if refusal is None else refusal.reason
            call.observer.failed(status, reason, call.priority, is_unserved=call.is_unserved)
        call.observer.call_ended(call, status, seconds)
    if call.trace is not None:
        call.trace.end(call, status, None if refusal is None else refusal.reason)
    _log(call, status, seconds, refusal)


def _log(call: Call, status: str, seconds: float, refusal: Refusal | None) -> None:
    quiet = call.method.startswith(_QUIET_SERVICES)
    level = logging.ERROR if call.cause is not None else logging.DEBUG if quiet else logging.INFO
    fields: dict[str, object] = {
        "request_id": call.request_id,
        "method": call.method.rpartition("/")[2] if not quiet else call.method,
        "status": status,
    }
    if call.caller.name:
        fields["caller"] = call.caller.name
    if call.traceparent is not None:
        fields["trace_id"] = call.traceparent.split("-")[1]
    if call.trace is not None and call.traceparent is not None:
        fields["span_id"] = call.traceparent.split("-")[2]
    if refusal is not None:
        fields["reason"] = refusal.reason
    if call.prompt_tokens is not None:
        fields["prompt_tokens"] = call.prompt_tokens
    if call.completion_tokens is not None:
        fields["completion_tokens"] = call.completion_tokens
    if call.first_token is not None:
        fields["ttft_ms"] = round((call.first_token - call.started) * 1000, 1)
    if call.finish is not None:
        # Of the sequence that ended last, where there are several.
        fields["finish_reason"] = call.finish.reason
        fields["queue_ms"] = round(call.finish.queue_ms, 1)
        fields["prefill_ms"] = round(call.finish.prefill_ms, 1)
        fields["decode_ms"] = round(call.finish.decode_ms, 1)
    fields["duration_ms"] = round(seconds * 1000, 1)
    log(level, "request", fields, call.cause)
