"""Answers that end because time is over: max_time, and the caller's own deadline."""

from typing import Generic, Literal

from tokenwire.engine.row import GenerationT, Row

_MARGIN_SECONDS = 0.05
"""For the way of the last message to the caller."""

_MARGIN_STEPS = 1.5
"""In recent steps: one more may be computed before the next look at the clock, and steps vary."""

_SHARE_OF_NEWEST = 0.3
"""In the running mean of step times."""


class TimeKeeper(Generic[GenerationT]):
    """Rows whose time is limited, and how long steps take while there are any."""

    def __init__(self) -> None:
        self.limited: dict[tuple[int, int], Row[GenerationT]] = {}
        """By request and sequence index."""
        self._step_seconds = 0.0
        self._began_at: float | None = None

    def watch(self, row: Row[GenerationT]) -> None:
        """Keep an eye on a row that has limits."""
        self.limited[row.request, row.index] = row

    def forget(self, row: Row[GenerationT]) -> None:
        """The row ended."""
        self.limited.pop((row.request, row.index), None)

    def begin_step(self, now: float) -> None:
        """A step begins."""
        self._began_at = now

    def end_step(self, now: float) -> None:
        """A step that began gave its tokens."""
        if self._began_at is None:
            return
        seconds, self._began_at = now - self._began_at, None
        mean = self._step_seconds
        self._step_seconds = mean + _SHARE_OF_NEWEST * (seconds - mean) if mean else seconds

    def reason_to_end(
        self, row: Row[GenerationT], now: float, *, has_token: bool
    ) -> Literal["max_time", "deadline"] | None:
        """Why the row's answer ends as it is, if it does. ``has_token``: whether its answer has begun.

        max_time never ends an answer before its first token, as transformers' MaxTimeCriteria, which looks at the
        clock behind each token.
        """
        if row.limits is None:
            return None
        if has_token and now > row.limits.max_time_at:
            return "max_time"
        if now >= row.limits.deadline - _MARGIN_SECONDS - _MARGIN_STEPS * self._step_seconds:
            return "deadline"
        return None
