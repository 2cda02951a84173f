"""Showing a streamed answer as it arrives, and what it took."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tokenwire.cli.output import Output
from tokenwire.client import Generation, GenerationWarning, Model, Stream


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
    """Enter the stream and write its text piece by piece. Raises what the stream raises, in mid-line then.

    Of several sequences the first is written as it arrives, the others behind it once they are complete.
    """
    watch = Stopwatch(time.perf_counter())
    with stream:
        _warn(stream.start.warnings, err)
        for delta in stream:
            if delta.token_ids:
                watch.note(len(delta.token_ids))
            if delta.sequence_index == 0:
                out.write(delta.text)
        whole = stream.result()
    _show_others(whole, out, err)
    return watch


def show_whole(ask: Callable[[], Generation], out: Output, err: Output) -> tuple[Generation, Stopwatch]:
    """Ask for an answer that comes at once, and write it."""
    watch = Stopwatch(time.perf_counter())
    answer = ask()
    watch.note(sum(len(sequence.token_ids) for sequence in answer.sequences))
    _warn(answer.start.warnings, err)
    out.write(answer.text)
    _show_others(answer, out, err)
    return answer, watch


def _show_others(answer: Generation, out: Output, err: Output) -> None:
    out.end_line()
    for number, text in enumerate(answer.texts[1:], start=2):
        out.line(f"--- {number} of {len(answer.texts)} ---")
        out.write(text)
        out.end_line()
    _warn(answer.warnings[len(answer.start.warnings) :], err)


def _warn(warnings: tuple[GenerationWarning, ...], err: Output) -> None:
    for warning in warnings:
        err.line(f"warning: {warning.message}")


def show_stats(answer: Stream | Generation, watch: Stopwatch, model: Model, err: Output) -> None:
    """One line about a finished answer: times, finish reason, quantization, device."""
    finishes, rate = answer.finishes, watch.tokens_per_second
    first = "none" if watch.first is None else f"{(watch.first - watch.began) * 1000:.0f} ms"
    new_tokens = sum(finish.usage.completion_token_count for finish in finishes)
    reasons = ", ".join(dict.fromkeys(finish.reason for finish in finishes))
    err.line(
        f"time to first token {first} | "
        + (f"{rate:.1f} tokens/s | " if rate is not None else "")
        + f"{finishes[0].usage.prompt_token_count} prompt + {new_tokens} new tokens | "
        f"finish reason {reasons} | quantization {model.quantization} | device {model.device}"
    )
