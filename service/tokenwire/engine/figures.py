"""What is known of the engine from outside of it, over all of its processes: for metrics and terminal views."""

import time
from collections.abc import Callable

from tokenwire.engine.protocol import Stats

PHASES = (
    "starting",
    "looking",
    "downloading",
    "converting",
    "importing",
    "loading",
    "repacking",
    "checking",
    "warming",
)
"""First words by which a message of start-up begins a phase; any other one is a note within the phase."""


class EngineFigures:
    """Counters of the engine that go on where it is restarted. Owned by the front; at most one heartbeat old.

    What an engine did between its last heartbeat and its end is lost.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: list[Stats] = []
        self.stats: Stats | None = None
        """Of the process that runs; None before it serves."""
        self.stalled_s = 0.0
        """Seconds since its loop last got on."""
        self.num_restarts = 0
        """Processes that were started in the place of one that ended."""
        self._phase_s: dict[str, float] = {}
        self._phase: str | None = None
        self._phase_began = 0.0

    def hear(self, stats: Stats | None, stalled_s: float) -> None:
        """Take over what a heartbeat says."""
        self.stalled_s = stalled_s
        if stats is not None:
            self.stats = stats

    def enter_phase(self, message: str | None) -> None:
        """Start-up says what it does now; None: it is over."""
        phase = None if message is None else message.partition(" ")[0]
        if phase is not None and phase not in PHASES:
            return
        now = self._clock()
        if self._phase is not None:
            self._phase_s[self._phase] = self._phase_s.get(self._phase, 0.0) + now - self._phase_began
        self._phase, self._phase_began = phase, now

    def begin_process(self) -> None:
        """A process is spawned."""
        self._phase_s = {}
        self._phase = None
        self.enter_phase("starting")

    def end_process(self) -> None:
        """The process is gone: what it counted stays, what it held does not."""
        self.enter_phase(None)
        stats, self.stats = self.stats, None
        self.stalled_s = 0.0
        if stats is not None:
            self._ended.append(stats)
            self._ended = [_sum(self._ended)]

    def totals(self) -> Stats:
        """The counters of all processes together. What is no counter is that of the one that runs, or 0."""
        now = self.stats or _NOTHING
        if not self._ended:
            return now
        return _sum([*self._ended, now])

    @property
    def phase(self) -> str | None:
        """The phase of start-up that it is in; None once it serves."""
        return self._phase

    def phase_seconds(self) -> dict[str, float]:
        """Seconds that each phase of the last start-up took, or has taken so far, in order."""
        if self._phase is None:
            return dict(self._phase_s)
        running_s = self._phase_s.get(self._phase, 0.0) + self._clock() - self._phase_began
        return {**self._phase_s, self._phase: running_s}


_NOTHING = Stats(0, 0, 0, 0, 0, 0, 0)


def _sum(all_stats: list[Stats]) -> Stats:
    """Counters added up; the rest is the last one's."""
    last = all_stats[-1]
    return Stats(
        running=last.running,
        waiting=last.waiting,
        blocks_total=last.blocks_total,
        blocks_free=last.blocks_free,
        steps=sum(stats.steps for stats in all_stats),
        preemptions=sum(stats.preemptions for stats in all_stats),
        resident_bytes=last.resident_bytes,
        draft_s=sum(stats.draft_s for stats in all_stats),
        forward_s=sum(stats.forward_s for stats in all_stats),
        sample_s=sum(stats.sample_s for stats in all_stats),
        rest_s=sum(stats.rest_s for stats in all_stats),
    )
