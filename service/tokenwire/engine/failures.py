"""From what the engine says of a request that failed to the error that its reader gets."""

from tokenwire.engine.protocol import Failure
from tokenwire.errors import InvalidRequestError, RequestError, RowFailedError, StepFailedError, Violation

_NOTHING_ALLOWED = "no token is allowed"
"""How the extension's error begins where processors removed every token (rust/core's ``RowError``)."""


def error_of(failure: Failure) -> RequestError:
    """The error of ``failure``."""
    match failure.kind:
        case "row" if failure.message.startswith(_NOTHING_ALLOWED):
            # A model gives no row of -infinity: settings that change with the answer came to forbid every token.
            rule = "must leave a token to generate at every step"
            return InvalidRequestError([Violation("generation_config", rule, failure.message)])
        case "row":
            return RowFailedError(failure.message)
        case "step":
            return StepFailedError(failure.message)
        case "capacity":
            return InvalidRequestError([Violation("prompt", "must fit the engine with its answer", failure.message)])
        case "invalid":
            rule = "must be settings that the sampler takes"
            return InvalidRequestError([Violation("generation_config", rule, failure.message)])
