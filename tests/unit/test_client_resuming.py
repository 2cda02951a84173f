"""How long a resumable stream tries to reach the server again."""

from typing import Any

import pytest

from tokenwire.client import ConnectionFailed, NotFound, TokenwireError, streams
from tokenwire.client.calls import generate
from tokenwire.v1 import generation_pb2, generation_service_pb2

START = generation_service_pb2.GenerateStreamResponse(start=generation_pb2.GenerationStart(request_id="mine"))
DELTA = generation_service_pb2.GenerateStreamResponse(delta=generation_pb2.GenerationDelta(text="a"))
LOST = ConnectionFailed("gone")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(streams, "time", clock)
    return clock


def stream(*, resumable: bool = True) -> Any:
    begun: Any = streams.StreamBase(None, generate("a", {"resumable": resumable}))  # type: ignore[arg-type]
    begun._take(START)
    return begun


def seconds_until_given_up(lost: Any, clock: Clock, *, starts: bool = False) -> float:
    """How long it goes on where no call begins any more, or each ends right behind its start."""
    began = clock.now
    for _ in range(100):
        try:
            clock.now += lost._pause_before_resuming(LOST)
        except ConnectionFailed:
            return clock.now - began
        if starts:
            lost._take(START)
    raise AssertionError("it never gives up")


def test_the_pauses_grow_to_1_s_for_30_s(clock: Clock) -> None:
    lost = stream()
    assert [lost._pause_before_resuming(LOST) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert 30 < seconds_until_given_up(lost, clock) <= 31


def test_a_stream_that_was_resumed_and_waits_is_resumed_again(clock: Clock) -> None:
    """It has given nothing but its start yet. The pauses do not begin anew."""
    lost = stream()
    for _ in range(10):
        clock.now += lost._pause_before_resuming(LOST)
        lost._take(START)
        clock.now += 20
    assert lost._pause_before_resuming(LOST) == 1.0
    assert 30 < seconds_until_given_up(lost, clock) <= 31


def test_a_server_that_ends_each_call_at_its_start_is_given_up(clock: Clock) -> None:
    assert 30 < seconds_until_given_up(stream(), clock, starts=True) <= 31


def test_what_arrives_begins_anew(clock: Clock) -> None:
    lost = stream()
    for _ in range(5):
        clock.now += lost._pause_before_resuming(LOST)
    lost._take(DELTA)
    clock.now += 100
    assert lost._pause_before_resuming(LOST) == 0.1


@pytest.mark.parametrize(
    ("resumable", "error"), [(False, ConnectionFailed("gone")), (True, NotFound("no such stream"))]
)
def test_what_cannot_be_resumed_ends_at_once(clock: Clock, resumable: bool, error: TokenwireError) -> None:
    with pytest.raises(type(error)):
        stream(resumable=resumable)._pause_before_resuming(error)
