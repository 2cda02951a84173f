"""Tokens per minute."""


class TokenBucket:
    """Fills with ``per_minute`` tokens in a minute, and holds as many at most. Times in seconds of any clock.

    Who takes more than it ever holds may when it is full, and leaves it in debt: nobody is refused for good. In any
    span of t minutes no more than (t + 1) times ``per_minute`` is taken, and the last request once more.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self._capacity = float(per_minute)
        self._level = self._capacity
        self._filled_at = now

    def resize(self, per_minute: int, now: float) -> None:
        """Another rate from now on."""
        self._fill(now)
        self._capacity = float(per_minute)
        self._level = min(self._level, self._capacity)

    def wait_for(self, count: int, now: float) -> float:
        """Seconds until ``count`` tokens may be taken; 0 for now."""
        self._fill(now)
        return max(0.0, min(count, self._capacity) - self._level) * 60 / self._capacity

    def take(self, count: int, now: float) -> None:
        """Take tokens, whether they are there or not."""
        self._fill(now)
        self._level -= count

    def give_back(self, count: int) -> None:
        """Put tokens back that were taken and not used."""
        self._level = min(self._level + count, self._capacity)

    def is_full(self, now: float) -> bool:
        """Whether it is as good as new."""
        self._fill(now)
        return self._level >= self._capacity

    def _fill(self, now: float) -> None:
        elapsed, self._filled_at = max(0.0, now - self._filled_at), max(now, self._filled_at)
        self._level = min(self._level + elapsed * self._capacity / 60, self._capacity)
