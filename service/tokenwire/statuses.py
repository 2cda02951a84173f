"""The one table from errors to gRPC statuses.

A client never sees an exception's text or a class name: what is not in the table is INTERNAL with a fixed text and the
request id.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tokenwire.errors import (
    CallerLimitError,
    DeadlinePassedError,
    EngineUnavailableError,
    InvalidRequestError,
    PermissionDeniedError,
    PositionError,
    QueueFullError,
    QueueTimeoutError,
    RequestAbortedError,
    RowFailedError,
    SlowReaderError,
    StepFailedError,
    StreamExistsError,
    StreamTakenOverError,
    UnauthenticatedError,
    UnknownModelError,
    UnknownServiceError,
    UnknownStreamError,
    UnsupportedError,
    Violation,
)

ERROR_DOMAIN = "tokenwire"
"""Domain of every ErrorInfo."""

QUEUE_FULL = "QUEUE_FULL"
CALLER_LIMIT = "CALLER_LIMIT"
QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
ENGINE_UNAVAILABLE = "ENGINE_UNAVAILABLE"
ADMISSION_REASONS = frozenset({QUEUE_FULL, CALLER_LIMIT, QUEUE_TIMEOUT, ENGINE_UNAVAILABLE})
"""Reasons of ErrorInfo for which a request is not admitted, or not kept."""
SLOW_READER = "SLOW_READER"
"""That of a stream that nobody read."""

# gRPC refuses trailing metadata above 8 KiB, base64 included; the message is sent twice, once percent-encoded.
_MAX_MESSAGE_CHARACTERS = 400
_MAX_VIOLATION_BYTES = 3000


@dataclass(frozen=True, slots=True)
class Refusal:
    """A gRPC status before it is written: code, one sentence, and the google.rpc details."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    details: tuple[Message, ...] = ()
    retry_after_s: float | None = None

    @property
    def is_fault(self) -> bool:
        """Whether the service failed, and not the request: such an error belongs into the log."""
        return self.code is grpc.StatusCode.INTERNAL

    def status(self, request_id: str) -> status_pb2.Status:
        """The google.rpc.Status, with ErrorInfo first."""
        info = error_details_pb2.ErrorInfo(
            reason=self.reason, domain=ERROR_DOMAIN, metadata={**self.metadata, "request_id": request_id}
        )
        details: list[Message] = [info, *self.details]
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_after_s * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], message=_cut(self.message))
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


def _cut(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE_CHARACTERS else message[: _MAX_MESSAGE_CHARACTERS - 1] + "…"


def _invalid_request(error: InvalidRequestError) -> Refusal:
    first = error.violations[0]
    count = len(error.violations)
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        str(error),
        "INVALID_REQUEST",
        {"field": first.field, "rule": first.rule, "value": first.value, "violation_count": str(count)},
        (error_details_pb2.BadRequest(field_violations=list(_field_violations(error.violations))),),
    )


def _field_violations(violations: Iterable[Violation]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    room = _MAX_VIOLATION_BYTES
    for violation in violations:
        item = error_details_pb2.BadRequest.FieldViolation(
            field=violation.field, description=f"{violation.rule}, got {violation.value}"
        )
        room -= item.ByteSize()
        if room < 0:
            return
        yield item


def _quota(subject: str, description: str) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=description)
    return error_details_pb2.QuotaFailure(violations=[violation])


def _queue_full(error: QueueFullError) -> Refusal:
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        str(error),
        QUEUE_FULL,
        {"limit": str(error.limit)},
        (_quota("queue", f"at most {error.limit} {error.unit} may wait"),),
        error.retry_after_s,
    )


def _caller_limit(error: CallerLimitError) -> Refusal:
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        str(error),
        CALLER_LIMIT,
        {"limit": error.limit, "value": str(error.value)},
        (_quota(f"caller:{error.caller}", f"{error.limit} {error.value}"),),
        error.retry_after_s,
    )


def _queue_timeout(error: QueueTimeoutError) -> Refusal:
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        str(error),
        QUEUE_TIMEOUT,
        {"limit": f"{error.timeout_s:g} s"},
        (_quota("queue", f"a request may wait for {error.timeout_s:g} s"),),
        error.retry_after_s,
    )


def _slow_reader(error: SlowReaderError) -> Refusal:
    return Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        str(error),
        SLOW_READER,
        {"limit": f"{error.timeout_s:g} s"},
        (_quota("stream", f"unread events are kept for {error.timeout_s:g} s"),),
    )


STATUSES: dict[type[Exception], Callable[[Any], Refusal]] = {
    InvalidRequestError: _invalid_request,
    UnknownModelError: lambda error: Refusal(
        grpc.StatusCode.NOT_FOUND, str(error), "MODEL_NOT_FOUND", {"model": error.model, "served": error.served}
    ),
    UnknownServiceError: lambda error: Refusal(
        grpc.StatusCode.NOT_FOUND, str(error), "SERVICE_NOT_FOUND", {"service": error.service[:200]}
    ),
    UnauthenticatedError: lambda error: Refusal(grpc.StatusCode.UNAUTHENTICATED, str(error), error.reason),
    PermissionDeniedError: lambda error: Refusal(grpc.StatusCode.PERMISSION_DENIED, str(error), error.reason),
    UnsupportedError: lambda error: Refusal(grpc.StatusCode.FAILED_PRECONDITION, str(error), error.reason),
    QueueFullError: _queue_full,
    CallerLimitError: _caller_limit,
    QueueTimeoutError: _queue_timeout,
    SlowReaderError: _slow_reader,
    UnknownStreamError: lambda error: Refusal(grpc.StatusCode.NOT_FOUND, str(error), "STREAM_NOT_FOUND"),
    StreamExistsError: lambda error: Refusal(grpc.StatusCode.ALREADY_EXISTS, str(error), "STREAM_EXISTS"),
    PositionError: lambda error: Refusal(
        grpc.StatusCode.OUT_OF_RANGE,
        str(error),
        "POSITION_OUT_OF_RANGE",
        {"field": error.field, "limit": str(error.limit), "value": str(error.value)},
    ),
    StreamTakenOverError: lambda error: Refusal(grpc.StatusCode.ABORTED, str(error), "STREAM_TAKEN_OVER"),
    DeadlinePassedError: lambda error: Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, str(error), "DEADLINE_PASSED"),
    RowFailedError: lambda _: Refusal(
        grpc.StatusCode.INTERNAL, "the model gave this request no usable logits", "ROW_FAILED"
    ),
    StepFailedError: lambda _: Refusal(
        grpc.StatusCode.INTERNAL, "computing this request failed; the server's log says why", "STEP_FAILED"
    ),
    RequestAbortedError: lambda _: Refusal(grpc.StatusCode.CANCELLED, "the request was cancelled", "CANCELLED"),
    EngineUnavailableError: lambda error: Refusal(
        grpc.StatusCode.UNAVAILABLE, str(error), ENGINE_UNAVAILABLE, retry_after_s=error.retry_after_s
    ),
}
"""The table. Every error that is raised on purpose and may reach a client is here; the rest is INTERNAL."""


def refusal_of(error: BaseException, request_id: str) -> Refusal:
    """The status that ``error`` becomes."""
    for kind, refuse in STATUSES.items():
        if isinstance(error, kind):
            return refuse(error)
    return Refusal(grpc.StatusCode.INTERNAL, f"internal error; the server's log has it under {request_id}", "INTERNAL")
