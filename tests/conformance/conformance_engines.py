"""Engines of the profiles that need no model: what they answer, and how they fail."""

from collections import deque
from collections.abc import Callable
from typing import Any

from fakes import FakeEngine, FakeStream

from tokenwire.errors import EngineUnavailableError, QueueFullError, StepFailedError

LARGE = "0123456789" * 600_000
"""More than the 4 MiB that gRPC's clients take unless they are told otherwise."""


def answer(stream: FakeStream) -> None:
    """A prompt "large" gets 6 MB at once, "many" 5,000 deltas, "hold" nothing; the rest is answered with itself."""
    # Without the control tokens of a chat.
    text = bytes(token for token in stream.prompt_ids if token < 256).decode(errors="replace")
    match text:
        case "large":
            stream.push(LARGE, [97])
            stream.push("", [], "eos")
        case "many":
            for _ in range(5000):
                stream.push("word ", [97])
            stream.push("", [], "eos")
        case "hold":
            pass
        case _:
            stream.answer(text)


FAILURES: dict[str, Callable[[], Exception]] = {
    "unavailable": lambda: EngineUnavailableError("the engine is being restarted", 0.2),
    "exhausted": lambda: QueueFullError(1, 0.2),
    "later": lambda: EngineUnavailableError("the engine is being restarted", 20.0),
    "internal": lambda: StepFailedError("at /secret/path"),
}


class FlakyEngine(FakeEngine):
    """Refuses as many requests as it is told to, and counts them all."""

    def __init__(self) -> None:
        super().__init__(script=answer)
        self.num_calls = 0
        self._failures: deque[str] = deque()

    def fail(self, kind: str, count: int) -> None:
        """Refuse the next ``count`` requests with one of FAILURES, and count anew."""
        self._failures = deque([kind] * count)
        self.num_calls = 0

    def submit(self, *arguments: Any, **options: Any) -> FakeStream:
        self.num_calls += 1
        if self._failures:
            raise FAILURES[self._failures.popleft()]()
        return super().submit(*arguments, **options)
