"""Counts what calls do, as they do it. On the event loop: every token of every stream passes here."""

from bisect import bisect_left
from collections import Counter
from typing import get_args

from tokenwire.call import Call
from tokenwire.convert import FINISH_REASONS
from tokenwire.engine.protocol import Finish
from tokenwire.security.callers import Priority
from tokenwire.statuses import ADMISSION_REASONS, SLOW_READER
from tokenwire.telemetry import metrics
from tokenwire.telemetry.histogram import Histogram


class Recorder:
    """Implements `call.Observer` for the metrics. Other threads may read."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, ...]] = Counter()
        """By method, without the leading slash, and code."""
        self.errors: Counter[tuple[str, ...]] = Counter()
        """By code and reason."""
        # From the start, where the values are known: a rate begins with the first one.
        self.refusals: Counter[tuple[str, ...]] = Counter(
            {(reason, priority): 0 for reason in sorted(ADMISSION_REASONS) for priority in get_args(Priority)}
        )
        """By reason and priority."""
        self.sequences: Counter[str] = Counter(dict.fromkeys(FINISH_REASONS, 0))
        """By finish reason."""
        self.slow_readers = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._first_tokens = 0
        self.draft_tokens = 0
        self.accepted_tokens = 0
        self.first_token = Histogram(metrics.TIME_TO_FIRST_TOKEN.bounds)
        self.gaps = Histogram(metrics.INTER_TOKEN.bounds)
        self.request = Histogram(metrics.REQUEST_SECONDS.bounds)
        self.queue = Histogram(metrics.QUEUE_SECONDS.bounds)
        self.prefill = Histogram(metrics.PREFILL_SECONDS.bounds)
        self.decode = Histogram(metrics.DECODE_SECONDS.bounds)

    @property
    def generation_tokens(self) -> int:
        """Tokens generated: those that a sequence began with, and those that came after others."""
        return self._first_tokens + sum(self.gaps.counts)

    def begun(self, seconds: float, tokens: int) -> None:
        """The first tokens of a sequence came ``seconds`` after its call."""
        self.first_token.observe(seconds)
        self._first_tokens += tokens

    def went_on(self, seconds: float, tokens: int) -> None:
        """``tokens`` came ``seconds`` after the ones before them of the same sequence."""
        # As Histogram.observe, without the call: this runs for every token served.
        gaps = self.gaps
        gaps.counts[bisect_left(gaps.bounds, seconds / tokens)] += tokens
        gaps.total += seconds

    def sequence_ended(self, finish: Finish) -> None:
        """A sequence came to its end."""
        self.sequences[finish.reason] += 1
        self.cached_tokens += finish.cached_token_count
        self.draft_tokens += finish.draft_token_count
        self.accepted_tokens += finish.accepted_draft_token_count
        self.queue.observe(finish.queue_ms / 1000)
        self.prefill.observe(finish.prefill_ms / 1000)
        self.decode.observe(finish.decode_ms / 1000)

    def failed(self, code: str, reason: str, priority: Priority, *, is_unserved: bool) -> None:
        """A call, or an item of a batch, ended with an error. ``is_unserved``: it was to generate, no token came."""
        if code == "CANCELLED":  # as its client wanted
            return
        self.errors[code, reason] += 1
        if is_unserved and reason in ADMISSION_REASONS:
            self.refusals[reason, priority] += 1
        elif reason == SLOW_READER:
            self.slow_readers += 1

    def call_ended(self, call: Call, code: str, seconds: float) -> None:
        """A call is over; ``seconds``: since it came."""
        self.requests[call.method.removeprefix("/"), code] += 1
        self.prompt_tokens += call.prompt_tokens or 0
        if code == "OK" and call.completion_tokens is not None:
            self.request.observe(seconds)
