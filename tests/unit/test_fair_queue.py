"""Who starts next: classes by weight, callers in turn, arrivals in order; and tokens per minute."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.admission.bucket import TokenBucket
from tokenwire.admission.callers import CallerUses
from tokenwire.admission.fair_queue import WEIGHTS, FairQueue, Place
from tokenwire.security.callers import Caller, Limits, Priority

PRIORITIES = list(WEIGHTS)
ALL = sum(WEIGHTS.values())


def anybody(_: object) -> bool:
    return True


def start_next(queue: FairQueue[int]) -> tuple[Place, int]:
    found = queue.next(anybody)
    assert found is not None
    queue.start(found[0])
    return found


def test_shares_are_the_weights_while_all_classes_wait() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(20 * ALL):
        for priority in PRIORITIES:
            queue.add(number, Place(priority, "a"))
    started = [start_next(queue)[0].priority for _ in range(10 * ALL)]
    assert Counter(started) == {priority: 10 * weight for priority, weight in WEIGHTS.items()}
    # And in every stretch, not only in the end.
    for first in range(9 * ALL):
        assert Counter(started[first : first + ALL + 1])["low"] >= 1


@given(
    st.lists(
        st.tuples(st.sampled_from(PRIORITIES), st.sampled_from("abc")) | st.just(None),
        min_size=1,
        max_size=200,
    )
)
def test_every_request_starts_once_in_its_callers_order_and_none_waits_for_ever(
    steps: list[tuple[Priority, str] | None],
) -> None:
    """Arrivals, and None for a start. Whoever waits sees a bounded number of starts of other classes."""
    queue: FairQueue[int] = FairQueue()
    waiting: dict[int, Place] = {}
    started: list[int] = []
    since: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)

    def start() -> None:
        place, item = start_next(queue)
        assert waiting.pop(item) == place
        started.append(item)
        for priority in PRIORITIES:
            waits = any(each.priority == priority for each in waiting.values())
            since[priority] = since[priority] + 1 if waits and priority != place.priority else 0
            others = sum(weight + 1 for other, weight in WEIGHTS.items() if other != priority)
            assert since[priority] <= others / WEIGHTS[priority] + len(WEIGHTS)

    for number, step in enumerate(steps):
        if step is not None:
            waiting[number] = Place(*step)
            queue.add(number, Place(*step))
        elif waiting:
            start()
    assert sorted(queue) == sorted(waiting)
    while waiting:
        start()
    assert queue.next(anybody) is None
    places = [step for step in steps if step is not None]
    assert len(started) == len(set(started)) == len(places)
    for place in set(places):
        own = [item for item in started if steps[item] == place]
        assert all(first < second for first, second in pairwise(own))


def test_callers_of_a_class_take_turns() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(100):
        queue.add(number, Place("normal", "greedy"))
    queue.add(100, Place("normal", "modest"))
    queue.add(101, Place("normal", "modest"))
    assert [start_next(queue)[1] for _ in range(5)] == [0, 100, 1, 101, 2]


def test_a_class_saves_nothing_up_while_nobody_waits_in_it() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(500):
        queue.add(number, Place("normal", "a"))
    for _ in range(400):
        start_next(queue)
    for number in range(50):
        queue.add(1000 + number, Place("low", "a"))
    started = [start_next(queue)[0].priority for _ in range(50)]
    assert started.count("low") == 10


def test_who_may_not_start_is_passed_and_keeps_the_place() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.add(1, Place("high", "a"))
    queue.add(2, Place("high", "b"))
    queue.add(3, Place("low", "c"))
    assert queue.next(lambda item: item != 1) == (Place("high", "b"), 2)
    assert queue.next(lambda item: item == 3) == (Place("low", "c"), 3)
    assert queue.next(lambda _: False) is None
    assert queue.next(anybody) == (Place("high", "a"), 1)


@given(st.lists(st.tuples(st.sampled_from(PRIORITIES), st.sampled_from("ab")), max_size=30), st.data())
def test_who_gives_up_is_gone(places: list[tuple[Priority, str]], data: st.DataObject) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, place in enumerate(places):
        queue.add(number, Place(*place))
    gone = data.draw(st.sets(st.sampled_from(range(len(places))))) if places else set()
    for number in gone:
        queue.remove(number, Place(*places[number]))
    left = []
    while queue.next(anybody) is not None:
        left.append(start_next(queue)[1])
    assert sorted(left) == [number for number in range(len(places)) if number not in gone]


@given(
    per_minute=st.integers(1, 1000),
    arrivals=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 3000), st.floats(0, 1)), max_size=60),
)
def test_no_more_than_the_rate_is_taken_and_nobody_is_refused_for_good(
    per_minute: int, arrivals: list[tuple[float, int, float]]
) -> None:
    """Each arrival waits as long as it is told, takes, and gives a part back."""
    bucket = TokenBucket(per_minute, 0.0)
    now, used, largest = 0.0, 0.0, 0
    for pause_s, count, unused in arrivals:
        now += pause_s
        wait_s = bucket.wait_for(count, now)
        assert 0 <= wait_s <= 60 * (1 + max(largest, count) / per_minute) * len(arrivals)
        now += wait_s + 1e-6
        assert bucket.wait_for(count, now) < 1e-3
        bucket.take(count, now)
        back = int(count * unused)
        bucket.give_back(back)
        used += count - back
        largest = max(largest, count)
        assert used <= per_minute * (1 + now / 60) + largest + 1


@pytest.mark.parametrize(("count", "wait_s"), [(1, 0.0), (60, 0.0), (61, 0.0), (1000, 0.0)])
def test_a_full_bucket_serves_anyone(count: int, wait_s: float) -> None:
    assert TokenBucket(60, 0.0).wait_for(count, 0.0) == wait_s


def test_how_long_a_bucket_takes_to_fill() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(60, 0.0)
    assert bucket.wait_for(10, 0.0) == 10
    assert bucket.wait_for(10, 4.0) == 6
    assert bucket.wait_for(1000, 4.0) == 56
    bucket.resize(120, 4.0)
    assert bucket.wait_for(10, 4.0) == 3
    # A clock that goes back gives nothing and takes nothing.
    assert bucket.wait_for(10, 1.0) == 3
    bucket.give_back(10_000)
    assert bucket.is_full(4.0)


def test_callers_are_forgotten_when_nothing_is_left_of_them() -> None:
    uses = CallerUses()
    limits = Limits(tokens_per_minute=60)
    busy = uses.of(Caller(name="busy", roles=frozenset(), limits=limits), 0.0)
    busy.num_running = 1
    for number in range(5000):
        use = uses.of(Caller(name=f"jwt:{number}", roles=frozenset(), limits=limits), float(number))
        assert use.bucket is not None
        use.bucket.take(10, float(number))
    assert len(uses) < 2100
    assert uses.of(Caller(name="busy", roles=frozenset(), limits=limits), 5000.0) is busy
