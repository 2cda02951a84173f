"""Around every call: request id, the status of an error, one log line. Nothing else aborts a call."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from tokenwire.call import Call, enter_call, log
from tokenwire.errors import InvalidRequestError, Violation
from tokenwire.statuses import Refusal, refusal_of

REQUEST_ID_KEY = "x-request-id"
"""Metadata key: taken from the client where it is sane, always returned in the trailing metadata."""
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_QUIET_SERVICES = ("/grpc.health.", "/grpc.reflection.")


class _Malformed:
    """Stands for a request whose bytes are no message of its type."""


_MALFORMED = _Malformed()


def _forgiving(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    # Left to itself grpc.aio answers undecodable bytes with UNKNOWN and the name of a Python class.
    def parse(data: bytes) -> Any:
        try:
            return data if deserialize is None else deserialize(data)
        except Exception:
            return _MALFORMED

    return parse


def _check_decoded(request: Any) -> Any:
    if request is _MALFORMED:
        rule = "must be a valid protobuf message of the method's request type, strings in UTF-8"
        raise InvalidRequestError([Violation("request", rule, "undecodable bytes")])
    return request


async def _decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _check_decoded(request)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps every method once and serves it with a request id, mapped errors and a log line."""

    def __init__(self) -> None:
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
            wrapped = self._wrapped[method] = _wrap(handler, method)
        return wrapped


def _wrap(handler: Any, method: str) -> Any:
    if handler.request_streaming and handler.response_streaming:

        async def stream_stream(requests: Any, context: Any) -> None:
            async with _Serving(method, context):
                async for response in handler.stream_stream(_decoded(requests), context):
                    await context.write(response)

        return grpc.stream_stream_rpc_method_handler(
            stream_stream, _forgiving(handler.request_deserializer), handler.response_serializer
        )
    if handler.response_streaming:

        async def unary_stream(request: Any, context: Any) -> None:
            async with _Serving(method, context):
                await handler.unary_stream(_check_decoded(request), context)

        return grpc.unary_stream_rpc_method_handler(
            unary_stream, _forgiving(handler.request_deserializer), handler.response_serializer
        )

    async def unary_unary(request: Any, context: Any) -> Any:
        async with _Serving(method, context):
            return await handler.unary_unary(_check_decoded(request), context)

    return grpc.unary_unary_rpc_method_handler(
        unary_unary, _forgiving(handler.request_deserializer), handler.response_serializer
    )


class _Serving:
    """The time in which one call is served."""

    __slots__ = ("_call", "_context")

    def __init__(self, method: str, context: Any) -> None:
        self._call = Call(_request_id(context), method, deadline=_deadline(context))
        self._context = context

    async def __aenter__(self) -> None:
        enter_call(self._call)
        self._context.set_trailing_metadata(((REQUEST_ID_KEY, self._call.request_id),))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            _log(self._call, "OK")
            return
        if isinstance(error, asyncio.CancelledError) and self._cancelled_from_outside():
            _log(self._call, _ending_of(self._context))
            return
        # Everything else gets a status, a panic of Rust (a BaseException) too: a call without one ends UNKNOWN. A
        # coroutine that is being closed cannot wait.
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            return
        refusal = refusal_of(error, self._call.request_id)
        if refusal.is_fault:
            self._call.cause = error
        _log(self._call, refusal.code.name, refusal)
        await abort(self._context, refusal, self._call.request_id)

    @staticmethod
    def _cancelled_from_outside() -> bool:
        # A CancelledError of our own that escapes leaves the client waiting until its deadline (measured).
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0


async def abort(context: Any, refusal: Refusal, request_id: str) -> None:
    """End the call with ``refusal``, its details and the request id in the trailing metadata."""
    status = refusal.status(request_id)
    metadata: list[tuple[str, str | bytes]] = [(REQUEST_ID_KEY, request_id), (DETAILS_KEY, status.SerializeToString())]
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


def _request_id(context: Any) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SANE_REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def _log(call: Call, status: str, refusal: Refusal | None = None) -> None:
    quiet = call.method.startswith(_QUIET_SERVICES)
    level = logging.ERROR if call.cause is not None else logging.DEBUG if quiet else logging.INFO
    fields: dict[str, object] = {
        "request_id": call.request_id,
        "method": call.method.rpartition("/")[2] if not quiet else call.method,
        "status": status,
    }
    if refusal is not None:
        fields["reason"] = refusal.reason
    if call.prompt_tokens is not None:
        fields["prompt_tokens"] = call.prompt_tokens
    if call.completion_tokens is not None:
        fields["completion_tokens"] = call.completion_tokens
    if call.first_token is not None:
        fields["ttft_ms"] = round((call.first_token - call.started) * 1000, 1)
    fields["duration_ms"] = round((time.perf_counter() - call.started) * 1000, 1)
    log(level, "request", fields, call.cause)
