"""The client's errors: one class per way a call can fail, with what the server said about it.

TokenwireError                 base; ``request_id`` finds the call in the server's log
├── InvalidArgument            the request breaks rules; ``violations`` names each field
├── NotFound                   an unknown model, or a stream that cannot be resumed (any more)
├── AlreadyExists              a resumable stream of that request id runs already
├── Aborted                    another call resumed the stream
├── FailedPrecondition         something the served model cannot do, for example chat without a template
├── Unauthenticated            no or a bad credential
├── PermissionDenied           a good credential that is not allowed this
├── ResourceExhausted          queue full, quota used up, message too large; ``retry_after`` in seconds
├── Unavailable                loading, draining, restarting; ``retry_after`` in seconds
│   └── ConnectionFailed       no server answers at the address, or the connection broke
├── DeadlineExceeded           the call's timeout passed
├── Cancelled                  the call was cancelled
└── InternalError              a fault of the server; report it with ``request_id``
"""

# ruff: noqa: N818  the classes carry the names of the gRPC statuses, which callers look for

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

STATUS_DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
START_ADVICE = "start one with `tokenwire serve --model PATH`, or give the address of a running one"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that breaks a rule."""

    field: str
    """Path in the request, for example generation_config.top_p."""
    description: str
    """The rule, and the value given."""

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What came beside the message of a status; empty where the server said nothing."""

    violations: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None
    """Seconds."""
    reason: str = ""
    """Stable UPPER_SNAKE_CASE identifier."""
    info: tuple[tuple[str, str], ...] = ()
    """Further facts by name, for example the limit that was passed."""
    request_id: str = ""


class TokenwireError(Exception):
    """A call failed. ``str()`` is one or more sentences for a person."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """The gRPC status that stands for this class."""

    def __init__(self, message: str, details: ErrorDetails | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or ErrorDetails()

    @property
    def request_id(self) -> str:
        """Id of the call in the server's log, or empty where the call never got there."""
        return self.details.request_id

    @property
    def reason(self) -> str:
        """Stable UPPER_SNAKE_CASE identifier of what went wrong, or empty."""
        return self.details.reason


class InvalidArgument(TokenwireError):
    """The request breaks rules."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """Every field that breaks a rule."""
        return self.details.violations


class NotFound(TokenwireError):
    """The request names a model that is not served, or a stream that cannot be resumed."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(TokenwireError):
    """A resumable stream of this request id exists."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Aborted(TokenwireError):
    """Another call resumed the stream."""

    code = grpc.StatusCode.ABORTED


class FailedPrecondition(TokenwireError):
    """The served model cannot do this."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unauthenticated(TokenwireError):
    """The credential is missing or bad."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(TokenwireError):
    """The credential is good, but not allowed this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class _RetryableError(TokenwireError):
    @property
    def retry_after(self) -> float | None:
        """Seconds after which another attempt makes sense, or None where the server named none."""
        return self.details.retry_after


class ResourceExhausted(_RetryableError):
    """No room now: queue full, quota used up, or a message too large (then a retry does not help)."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(_RetryableError):
    """The server is loading, draining or restarting its engine."""

    code = grpc.StatusCode.UNAVAILABLE


class ConnectionFailed(Unavailable):
    """No server answers at the address, or the connection broke."""


class DeadlineExceeded(TokenwireError):
    """The call's timeout passed; the server has stopped working on it."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(TokenwireError):
    """The call was cancelled; the server has stopped working on it."""

    code = grpc.StatusCode.CANCELLED


class InternalError(TokenwireError):
    """A fault of the server. Report it with ``request_id``."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: Mapping[grpc.StatusCode, type[TokenwireError]] = {
    error.code: error
    for error in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        Aborted,
        FailedPrecondition,
        Unauthenticated,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        InternalError,
    )
} | {grpc.StatusCode.OUT_OF_RANGE: InvalidArgument}

_CODE_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def _parse_details(messages: Iterable[AnyMessage], request_id: str) -> ErrorDetails:
    violations: list[FieldViolation] = []
    retry_after: float | None = None
    reason = ""
    info: dict[str, str] = {}
    bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    error_info, request_info = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    for message in messages:
        if message.Unpack(bad_request):
            violations += [FieldViolation(each.field, each.description) for each in bad_request.field_violations]
        elif message.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif message.Unpack(error_info):
            reason = error_info.reason
            info.update(error_info.metadata)
        elif message.Unpack(request_info):
            request_id = request_info.request_id
    return ErrorDetails(
        tuple(violations), retry_after, reason, tuple(info.items()), request_id or info.get("request_id", "")
    )


def from_status(
    code: grpc.StatusCode, message: str, details: Iterable[AnyMessage] = (), request_id: str = ""
) -> TokenwireError:
    """The error for a gRPC status and its google.rpc details; a code without a class of its own is an InternalError."""
    return _BY_CODE.get(code, InternalError)(message or code.name, _parse_details(details, request_id))


def from_item_status(code: int, message: str, details: Iterable[AnyMessage], request_id: str) -> TokenwireError:
    """The error of one item of a batch; ``code`` is the number of a gRPC status."""
    return from_status(_CODE_BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN), message, details, request_id)


def from_rpc_error(error: grpc.RpcError, *, target: str, answered: bool = False) -> TokenwireError:
    """The error for what gRPC raised. ``answered``: the server had sent something on this call before it failed."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return InternalError(f"gRPC failed: {error}")
    code, message = error.code(), error.details() or ""
    metadata = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
    request_id = next((str(value) for key, value in metadata if key == REQUEST_ID_KEY), "")
    encoded = next((value for key, value in metadata if key == STATUS_DETAILS_KEY), None)
    status = status_pb2.Status()
    if isinstance(encoded, bytes):
        status.MergeFromString(encoded)
    # A tokenwire server sends details with every error; without them it was gRPC that lost the connection, or a proxy
    # that lost its own while an answer came (RST_STREAM, which is INTERNAL).
    is_lost = code is grpc.StatusCode.UNAVAILABLE or (code is grpc.StatusCode.INTERNAL and answered)
    if is_lost and encoded is None:
        # "failed to connect to all addresses; last error: … Failed to connect to remote host: Connection refused"
        message = message.rpartition("Failed to connect to remote host: ")[2]
        text = (
            f"the connection to {target} broke during the answer ({message}); send the request again"
            if answered
            else f"no tokenwire server answers at {target} ({message}); {START_ADVICE}"
        )
        return ConnectionFailed(text, ErrorDetails(request_id=request_id))
    return from_status(code, message, status.details, request_id)
