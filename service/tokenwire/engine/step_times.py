"""What the time of the engine's steps goes into."""


class StepTimes:
    """Seconds of all steps so far, by what they went into. The engine's loop writes, the heartbeat reads.

    On a GPU the wait for the device counts where its result is first looked at.
    """

    __slots__ = ("draft_s", "forward_s", "rest_s", "sample_s")

    def __init__(self) -> None:
        self.draft_s = 0.0
        """A draft model's passes, and the look for drafts in the text."""
        self.forward_s = 0.0
        """The model's forward pass."""
        self.sample_s = 0.0
        """Processors, choice, text, stop checks."""
        self.rest_s = 0.0
        """Scheduling and bookkeeping."""

    def add(
        self, began: float, drafted_s: float, forward_began: float, forward_ended: float, sampled: float, ended: float
    ) -> None:
        """Note a step by its marks: one call per step, since it runs for every token (0.3 us)."""
        self.draft_s += drafted_s
        self.forward_s += forward_ended - forward_began
        self.sample_s += sampled - forward_ended
        self.rest_s += (forward_began - began - drafted_s) + (ended - sampled)
