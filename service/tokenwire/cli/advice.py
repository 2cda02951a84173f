"""What to tell the user about an error of a call."""

from tokenwire import client


def explain(error: client.TokenwireError) -> list[str]:
    """Every violation on a line of its own; any other error on one that ends with the next step, where there is one."""
    if isinstance(error, client.InvalidArgument) and error.violations:
        return [_one_line(violation) for violation in error.violations]
    return [_one_line(error) + _next_step(error)]


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _next_step(error: client.TokenwireError) -> str:
    match error:
        case client.ConnectionFailed():
            return ""  # its text says it
        case client.Unavailable():
            return f"; try again{_in(error.retry_after)}, or let --wait 60 wait until it serves"
        case client.ResourceExhausted():
            return f"; try again{_in(error.retry_after)}"
        case client.Unauthenticated():
            return "; give it with --api-key or TOKENWIRE_API_KEY"
        case client.NotFound():
            return "; leave --model away to use the served model"
        case client.InternalError() if error.request_id and error.request_id not in str(error):
            return f"; the server's log has more under request id {error.request_id}"
        case _:
            return ""


def _in(seconds: float | None) -> str:
    return "" if seconds is None else f" in {seconds:g} s"
