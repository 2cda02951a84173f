"""The order in which waiting requests start."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from tokenwire.security.callers import Priority

WEIGHTS: dict[Priority, int] = {"high": 16, "normal": 4, "low": 1}
"""Starts that each class gets while all of them wait: of 21, 16 are high, 4 normal and one is low."""

ItemT = TypeVar("ItemT")


class Place(NamedTuple):
    """Where a request waits."""

    priority: Priority
    caller: str


class _Class(Generic[ItemT]):
    """Requests of one priority: callers in turn, and those of one caller in order of arrival."""

    def __init__(self) -> None:
        self.callers: dict[str, deque[ItemT]] = {}
        """In the order of their turns; none without a request."""
        self.time = 0.0
        """Starts so far over the weight: the class that is behind goes next."""


class FairQueue(Generic[ItemT]):
    """Weighted between classes, round robin between the callers of a class, first come first served for each caller.

    A class that nobody waits in saves nothing up: it comes back where the others are (start-time fair queueing).
    """

    def __init__(self) -> None:
        self._classes: dict[Priority, _Class[ItemT]] = {priority: _Class() for priority in WEIGHTS}
        self._time = 0.0

    def __iter__(self) -> Iterator[ItemT]:
        for each in self._classes.values():
            for items in each.callers.values():
                yield from items

    def add(self, item: ItemT, place: Place) -> None:
        """Let ``item`` wait behind those of its place."""
        self._classes[place.priority].callers.setdefault(place.caller, deque()).append(item)

    def next(self, may_start: Callable[[ItemT], bool]) -> tuple[Place, ItemT] | None:
        """Whoever goes next, leaving out callers whose first may not start now; it stays in the queue."""
        best: tuple[float, Place, ItemT] | None = None
        for priority, each in self._classes.items():
            time = max(each.time, self._time)
            if best is not None and best[0] <= time:
                continue
            for caller, items in each.callers.items():
                if may_start(items[0]):
                    best = time, Place(priority, caller), items[0]
                    break
        return None if best is None else best[1:]

    def start(self, place: Place) -> None:
        """Take out whom ``next`` gave."""
        each = self._classes[place.priority]
        items = each.callers.pop(place.caller)
        items.popleft()
        if items:
            each.callers[place.caller] = items
        self._time = max(each.time, self._time)
        each.time = self._time + 1 / WEIGHTS[place.priority]

    def remove(self, item: ItemT, place: Place) -> None:
        """Take out one that gave up."""
        callers = self._classes[place.priority].callers
        callers[place.caller].remove(item)
        if not callers[place.caller]:
            del callers[place.caller]
