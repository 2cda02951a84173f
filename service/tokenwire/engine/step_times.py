"""What the time of the engine's steps goes into."""

import time
from collections.abc import Callable


class StepTimes:
    """Seconds of all steps so far, by what they went into. The engine's loop writes, the heartbeat reads.

    A lap costs about 0.2 us, and a step has four of them. On a GPU the wait for the device counts where its result is
    first looked at.
    """

    __slots__ = ("_clock", "_last", "draft_s", "forward_s", "rest_s", "sample_s")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = 0.0
        self.draft_s = 0.0
        """A draft model's passes, and the look for drafts in the text."""
        self.forward_s = 0.0
        """The model's forward pass."""
        self.sample_s = 0.0
        """Processors, choice, text, stop checks."""
        self.rest_s = 0.0
        """Scheduling and bookkeeping."""

    def begin(self) -> None:
        """A step begins; what came before belongs to none."""
        self._last = self._clock()

    def end_draft(self) -> None:
        """What has passed since the last mark went into drafts."""
        self.draft_s += self._lap()

    def end_forward(self) -> None:
        """What has passed since the last mark went into the forward pass."""
        self.forward_s += self._lap()

    def end_sample(self) -> None:
        """What has passed since the last mark went into the sampler."""
        self.sample_s += self._lap()

    def end_rest(self) -> None:
        """What has passed since the last mark went into everything else."""
        self.rest_s += self._lap()

    def _lap(self) -> float:
        last, self._last = self._last, self._clock()
        return self._last - last
