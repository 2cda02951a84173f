"""Showing a streamed answer as it arrives, and what it took."""

import time
from dataclasses import dataclass

from tokenwire.cli.output import Output
from tokenwire.client import GenerationWarning, Model, Stream


@dataclass(slots=True)
class Stopwatch:
    """Times of one answer as its reader sees them, in seconds on a monotonic clock."""

    began: float
    first: float | None = None
    last: float | None = None
    tokens: int = 0
    """Tokens that arrived."""
    tokens_at_first: int = 0
    """Tokens of the first piece: their time is the prefill's."""

    def note(self, count: int) -> None:
        """Note the arrival of this many tokens."""
        self.last = time.perf_counter()
        self.tokens += count
        if self.first is None:
            self.first, self.tokens_at_first = self.last, count

    @property
    def tokens_per_second(self) -> float | None:
        """Rate after the first piece, or None where there was no second."""
        if self.first is None or self.last is None or self.last == self.first:
            return None
        return (self.tokens - self.tokens_at_first) / (self.last - self.first)


def show(stream: Stream, out: Output, err: Output) -> Stopwatch:
    """Enter the stream and write its text piece by piece. Raises what the stream raises, in mid-line then."""
    watch = Stopwatch(time.perf_counter())
    with stream:
        _warn(stream.start.warnings, err)
        for delta in stream:
            if delta.token_ids:
                watch.note(len(delta.token_ids))
            out.write(delta.text)
    out.end_line()
    _warn(stream.finish.warnings, err)
    return watch


def _warn(warnings: tuple[GenerationWarning, ...], err: Output) -> None:
    for warning in warnings:
        err.line(f"warning: {warning.message}")


def show_stats(stream: Stream, watch: Stopwatch, model: Model, err: Output) -> None:
    """One line about a finished answer: times, finish reason, quantization, device."""
    usage, rate = stream.finish.usage, watch.tokens_per_second
    first = "none" if watch.first is None else f"{(watch.first - watch.began) * 1000:.0f} ms"
    err.line(
        f"time to first token {first} | "
        + (f"{rate:.1f} tokens/s | " if rate is not None else "")
        + f"{usage.prompt_token_count} prompt + {usage.completion_token_count} new tokens | "
        f"finish reason {stream.finish.reason} | quantization {model.quantization} | device {model.device}"
    )
