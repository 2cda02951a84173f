"""What each caller takes of the service now."""

from tokenwire.admission.bucket import TokenBucket
from tokenwire.errors import CallerLimitError
from tokenwire.security.callers import Caller, Limits

_MANY = 1024
"""Callers that are remembered without a look at whether that is still needed."""


class CallerUse:
    """Running rows, waiting requests and tokens of one caller."""

    __slots__ = ("bucket", "limits", "name", "num_queued", "num_running")

    def __init__(self, name: str) -> None:
        self.name = name
        self.limits = Limits()
        self.num_running = 0
        """Rows that the engine has."""
        self.num_queued = 0
        """Requests that wait."""
        self.bucket: TokenBucket | None = None

    def take_limits(self, limits: Limits, now: float) -> None:
        """Those that count from now on: the file that they come from may have changed."""
        if limits == self.limits:
            return
        self.limits = limits
        if limits.tokens_per_minute is None:
            self.bucket = None
        elif self.bucket is None:
            self.bucket = TokenBucket(limits.tokens_per_minute, now)
        else:
            self.bucket.resize(limits.tokens_per_minute, now)

    def has_room_for(self, num_rows: int) -> bool:
        """Whether so many more rows may run; a request that is wider than the limit runs alone."""
        limit = self.limits.max_running
        return limit is None or self.num_running == 0 or self.num_running + num_rows <= limit

    def check_queue(self, retry_after_s: float) -> None:
        """Raise CallerLimitError where no further request may wait."""
        limit = self.limits.max_queued
        if limit is not None and self.num_queued >= limit:
            raise CallerLimitError(self.name, "max_queued", limit, retry_after_s)

    def check_tokens(self, count: int, now: float) -> None:
        """Raise CallerLimitError where ``count`` tokens are more than is left."""
        if self.bucket is not None and (wait_s := self.bucket.wait_for(count, now)) > 0:
            raise CallerLimitError(self.name, "tokens_per_minute", self.limits.tokens_per_minute or 0, wait_s)

    def is_forgettable(self, now: float) -> bool:
        """Whether a new one would be the same."""
        return not (self.num_running or self.num_queued) and (self.bucket is None or self.bucket.is_full(now))


class CallerUses:
    """All callers, by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, CallerUse] = {}
        self._look_at = _MANY

    def of(self, caller: Caller, now: float) -> CallerUse:
        """What ``caller`` takes, with its limits of now."""
        use = self._by_name.get(caller.name)
        if use is None:
            self._forget_some(now)
            use = self._by_name[caller.name] = CallerUse(caller.name)
        use.take_limits(caller.limits, now)
        return use

    def __len__(self) -> int:
        return len(self._by_name)

    def _forget_some(self, now: float) -> None:
        # Any subject of a token is a caller: their number has no bound of its own.
        if len(self._by_name) >= self._look_at:
            self._by_name = {name: use for name, use in self._by_name.items() if not use.is_forgettable(now)}
            self._look_at = max(_MANY, 2 * len(self._by_name))
