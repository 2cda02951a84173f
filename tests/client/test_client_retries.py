"""Which calls are sent again, how long that waits, and what a deadline makes of it."""

import time

import pytest
from fake_server import FakeServer, item_status
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import tokenwire.client as tw
from tokenwire.client import AsyncClient, Client
from tokenwire.client.errors import ErrorDetails, TokenwireError
from tokenwire.client.retry import MAX_DELAY_S, Attempts


def asked_to_wait(seconds: float | None) -> ErrorDetails:
    return ErrorDetails(retry_after=seconds)


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (tw.Unavailable("", asked_to_wait(1.5)), 1.5, 1.65),
        (tw.Unavailable("", asked_to_wait(0.0)), 0.0, 0.0),
        (tw.Unavailable(""), 0.1, 0.2),
        (tw.ConnectionFailed(""), 0.1, 0.2),
        (tw.ResourceExhausted("", asked_to_wait(1.5)), 1.5, 1.65),
        (tw.Unavailable("", asked_to_wait(MAX_DELAY_S)), MAX_DELAY_S, MAX_DELAY_S * 1.1),
    ],
)
def test_the_pause_is_the_servers_or_a_short_one(error: TokenwireError, least: float, most: float) -> None:
    for _ in range(20):
        assert least <= Attempts(1, None).pause_after(error) <= most


@pytest.mark.parametrize(
    "error",
    [
        tw.ResourceExhausted(""),  # a message that is too large
        tw.ResourceExhausted("", asked_to_wait(MAX_DELAY_S + 1)),
        tw.Unavailable("", asked_to_wait(MAX_DELAY_S + 1)),
        tw.InvalidArgument(""),
        tw.DeadlineExceeded(""),
        tw.Cancelled(""),
        tw.InternalError("", asked_to_wait(0.0)),
    ],
)
def test_nothing_else_is_sent_again(error: TokenwireError) -> None:
    with pytest.raises(type(error)) as raised:
        Attempts(10, None).pause_after(error)
    assert raised.value is error


def test_pauses_without_a_word_of_the_server_grow_up_to_two_seconds() -> None:
    attempts = Attempts(10, None)
    for number in range(10):
        longest = min(0.2 * 2**number, 2.0)
        assert longest / 2 <= attempts.pause_after(tw.Unavailable("")) <= longest
    with pytest.raises(tw.Unavailable):
        attempts.pause_after(tw.Unavailable(""))


def test_all_attempts_together_have_one_deadline() -> None:
    attempts = Attempts(10, 100.0)
    assert attempts.timeout is not None
    assert 90 < attempts.timeout <= 100
    with pytest.raises(tw.Unavailable):
        Attempts(10, 1.0).pause_after(tw.Unavailable("", asked_to_wait(2.0)))


async def test_a_call_waits_as_long_as_the_server_asks(server: FakeServer) -> None:
    delay = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=300_000_000))
    server.failure = item_status("RESOURCE_EXHAUSTED", "full", delay)
    for is_async in (False, True):
        server.failures_left, server.requests = 1, []
        began = time.monotonic()
        if is_async:
            async with AsyncClient(server.target) as running:
                answer = await running.generate("x")
        else:
            with Client(server.target) as client:
                answer = client.generate("x")
        assert time.monotonic() - began >= 0.3
        assert answer.text == "echo: x"
        assert len(server.requests) == 2


def test_later_attempts_have_what_is_left_of_the_timeout(server: FakeServer) -> None:
    delay = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1))
    server.failure, server.failures_left = item_status("UNAVAILABLE", "loading", delay), 1
    with Client(server.target, timeout=30) as client:
        client.generate("x")
    first, second = server.time_left
    assert first is not None
    assert second is not None
    # gRPC rounds what it sends.
    assert second < first - 0.5
