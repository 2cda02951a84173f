"""The errors of tokenwire below the gRPC layer.

TokenwireError
├── ConfigurationError        the operator's settings cannot work; `serve` ends with exit code 2
├── ModelLoadError            the checkpoint cannot be loaded or does not fit; `serve` ends with exit code 1
├── RequestError              one request is refused or fails; the service goes on
│   ├── InvalidRequestError   violations of field rules, all of them
│   ├── UnknownModelError     a model id that is not served
│   ├── UnknownServiceError   a service whose health is asked for and that is not here
│   ├── UnauthenticatedError  no credential, or a bad one
│   ├── PermissionDeniedError a good credential that is not allowed this
│   ├── UnsupportedError      something this model cannot do, for example chat without a template
│   ├── QueueFullError        no room to wait; try again later
│   ├── CallerLimitError      a limit of the caller's own; try again later
│   ├── QueueTimeoutError     waited too long for its turn
│   ├── SlowReaderError       the client stopped reading its stream
│   ├── UnknownStreamError    no stream of that id can be resumed by this caller
│   ├── StreamExistsError     the caller has a resumable stream of that id already
│   ├── PositionError         a place in a stream that is beyond what was generated
│   ├── StreamTakenOverError  another call reads the stream now
│   ├── DeadlinePassedError   the deadline of the call that began a stream passed
│   ├── RowFailedError        the model gave this row no usable logits
│   ├── StepFailedError       computing it raised
│   └── RequestAbortedError   cancelled by its caller
└── EngineUnavailableError    loading, draining, or the engine died; try again later

`statuses.py` holds the one table from these to gRPC statuses.
"""

import struct
from dataclasses import dataclass


class TokenwireError(Exception):
    """Base of all errors raised on purpose."""


class ConfigurationError(TokenwireError):
    """The operator's settings cannot work."""


class ModelLoadError(TokenwireError):
    """The checkpoint cannot be loaded or does not fit."""


class RequestError(TokenwireError):
    """One request is refused or fails; the service goes on."""


def spelled(value: object) -> str:
    """A value as a refusal shows it: unset, true, false and lists in protobuf's words, the rest as in Python."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(spelled, value))}]"
    return _shortest(value) if isinstance(value, float) else repr(value)


def _shortest(value: float) -> str:
    """The shortest number that is the same float32, as fields of that type arrive; a float64 as it is."""
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        try:
            if struct.unpack("f", struct.pack("f", float(text)))[0] == value:
                return repr(float(text))
        except OverflowError:
            break
    return repr(value)


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that breaks a rule: its path in the request, the rule, and the value given (shortened)."""

    field: str
    rule: str
    value: str

    def __str__(self) -> str:
        return f"{self.field}: {self.rule}, got {self.value}"


class InvalidRequestError(RequestError):
    """The request breaks rules; carries every violation."""

    def __init__(self, violations: list[Violation]) -> None:
        super().__init__("; ".join(str(violation) for violation in violations))
        self.violations = violations


class UnknownModelError(RequestError):
    """The request names a model that is not served."""

    def __init__(self, model: str, served: str) -> None:
        super().__init__(f"model {model!r} is not served here; the served model is {served!r}")
        self.model = model
        self.served = served


class UnknownServiceError(RequestError):
    """The health of a service that is not here."""

    def __init__(self, service: str) -> None:
        super().__init__(f"service {service!r} is not served here")
        self.service = service


class UnauthenticatedError(RequestError):
    """No credential, or a bad one. ``reason`` is a stable UPPER_SNAKE_CASE identifier."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PermissionDeniedError(RequestError):
    """A good credential that is not allowed this. ``reason`` is a stable UPPER_SNAKE_CASE identifier."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnsupportedError(RequestError):
    """The served model cannot do what is asked. ``reason`` is a stable UPPER_SNAKE_CASE identifier."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class QueueFullError(RequestError):
    """Too much is waiting: requests, or whatever ``unit`` says."""

    def __init__(self, limit: int, retry_after_s: float, unit: str = "requests") -> None:
        super().__init__(f"{limit} {unit} are waiting already; try again in {retry_after_s:.2g} s")
        self.limit = limit
        self.unit = unit
        self.retry_after_s = retry_after_s


class CallerLimitError(RequestError):
    """A limit of the caller's own is reached: max_queued or tokens_per_minute."""

    def __init__(self, caller: str, limit: str, value: int, retry_after_s: float) -> None:
        super().__init__(f"the caller's limit {limit} of {value} is reached; try again in {retry_after_s:.2g} s")
        self.caller = caller
        self.limit = limit
        self.value = value
        self.retry_after_s = retry_after_s


class QueueTimeoutError(RequestError):
    """The request waited for ``timeout_s`` seconds and its turn did not come."""

    def __init__(self, timeout_s: float, retry_after_s: float) -> None:
        super().__init__(f"the request waited {timeout_s:g} s and its turn did not come; try again")
        self.timeout_s = timeout_s
        self.retry_after_s = retry_after_s


class SlowReaderError(RequestError):
    """The client stopped reading its stream for too long."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the stream was not read for {timeout_s:g} s and was cut off")
        self.timeout_s = timeout_s


class UnknownStreamError(RequestError):
    """No stream of that id can be resumed: unknown, another caller's, given up, too large. Never says which."""

    def __init__(self) -> None:
        super().__init__("no stream of this request id can be resumed")


class StreamExistsError(RequestError):
    """The caller has a resumable stream of that request id."""

    def __init__(self) -> None:
        super().__init__("a resumable stream of this request id exists; resume or cancel it, or send another id")


class PositionError(RequestError):
    """A position of ResumeStream lies beyond what was generated."""

    def __init__(self, field: str, limit: int, value: int) -> None:
        super().__init__(f"{field}: must be at most {limit}, what was generated so far, got {value}")
        self.field = field
        self.limit = limit
        self.value = value


class StreamTakenOverError(RequestError):
    """Another call resumed the stream."""

    def __init__(self) -> None:
        super().__init__("the stream was resumed by another call")


class DeadlinePassedError(RequestError):
    """The deadline of the call that began a resumable stream passed, and its answer ended there."""

    def __init__(self) -> None:
        super().__init__("the deadline of the call that began this stream passed")


class RowFailedError(RequestError):
    """The model gave this row no usable logits. The text is for the log, never for a client."""


class StepFailedError(RequestError):
    """The engine raised while it computed this request. The text is for the log, never for a client."""


class RequestAbortedError(RequestError):
    """The request was cancelled."""


class EngineUnavailableError(TokenwireError):
    """The engine is loading, draining or gone. ``retry_after_s``: when to try again, in seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
