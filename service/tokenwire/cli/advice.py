"""What to do next about an error of a call."""

from tokenwire import client


def advice(error: client.TokenwireError) -> str:
    """The error in one line that ends with the next step, as far as there is one."""
    text = " ".join(str(error).split())
    match error:
        case client.ConnectionFailed() | client.FailedPrecondition():
            return text
        case client.Unavailable():
            return f"{text}; try again{_in(error.retry_after)}, or let --wait 60 wait until it serves"
        case client.ResourceExhausted():
            return f"{text}; try again{_in(error.retry_after)}"
        case client.NotFound():
            return f"{text}; leave --model away to use the served model"
        case client.InternalError() if error.request_id:
            return f"{text}; the server's log has more under request id {error.request_id}"
        case _:
            return text


def _in(seconds: float | None) -> str:
    return "" if seconds is None else f" in {seconds:g} s"
