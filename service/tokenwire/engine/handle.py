"""What the front sees of the engine. `process.py` implements it over a child process; tests put a fake in its place."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from tokenwire.engine.figures import EngineFigures
from tokenwire.engine.protocol import Delta, ModelInfo, Stats
from tokenwire.engine.settings import GenerationSettings


class EngineState(Enum):
    """Life of the engine as health reports it; only READY serves."""

    LOADING = "loading"
    READY = "ready"
    STALLED = "stalled"
    """Loaded, but its loop does not get on; back to READY once it does."""
    DRAINING = "draining"
    STOPPED = "stopped"


class TokenStream(Protocol):
    """What one submitted request gives.

    The last Delta of each sequence carries ``finish``; after the last of all the iteration ends. The deltas of one
    sequence come in order, those of several interleaved. A reader that lags gets merged deltas, each of one sequence:
    texts joined, ids and log probabilities in sequence.
    Iterating raises RowFailedError, StepFailedError, InvalidRequestError, EngineUnavailableError or
    RequestAbortedError if the request ends without a Finish for each sequence.
    """

    def __aiter__(self) -> "TokenStream": ...

    async def __anext__(self) -> Delta: ...

    def close(self) -> None:
        """Give up: the engine frees the row and its blocks before its next forward pass. No-op once finished."""


class EngineStream(TokenStream, Protocol):
    """What the engine gives for one request, and how far it is, whether or not anyone reads."""

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far, over all sequences."""

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when the engine has no more to do for it: at once where that is so already."""


class EngineHandle(Protocol):
    """The engine, from the front's event loop. Not for other threads."""

    @property
    def state(self) -> EngineState:
        """What health reports now."""

    @property
    def phase(self) -> str:
        """What start-up is doing, for the log and error texts."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model. Raises EngineUnavailableError before the first READY."""

    @property
    def figures(self) -> EngineFigures:
        """What it has done and holds, as last heard of."""

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        """Call ``callback`` at every change of ``state``, on the event loop."""

    async def start(self) -> ModelInfo:
        """Spawn, load, warm up. Raises ModelLoadError with one line for the operator."""

    def submit(
        self,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        *,
        negative_prompt_ids: Sequence[int] | None = None,
        deadline: float | None = None,
    ) -> EngineStream:
        """Queue one validated request. Raises QueueFullError or EngineUnavailableError at once, never waits.

        ``deadline``: the caller's, in monotonic seconds, with deadline_aware.
        """

    async def stats(self) -> Stats:
        """The engine's counters between two steps. Raises EngineUnavailableError."""

    async def drain(self, grace_s: float) -> None:
        """Refuse new sequences and wait for the running ones, at most ``grace_s`` seconds; then abort the rest."""

    async def stop(self) -> None:
        """End the process. Open streams raise EngineUnavailableError. Idempotent; leaves no process behind."""
