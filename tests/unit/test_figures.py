"""Figures of the engine over its processes, and what they and the metrics are counted with."""

import random
import re
from bisect import bisect_left
from pathlib import Path

import pytest

import tokenwire
from tokenwire.engine.figures import PHASES, EngineFigures
from tokenwire.engine.protocol import Stats
from tokenwire.engine.step_times import StepTimes
from tokenwire.telemetry.histogram import Histogram
from tokenwire.telemetry.metrics import METRIC_OF_NAME, METRICS


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stats(steps: int, **changes: float) -> Stats:
    return Stats(1, 2, 30, 10, steps, 3, 1000, **changes)


def test_counters_go_on_where_a_process_ends_and_what_it_held_does_not() -> None:
    figures = EngineFigures()
    assert figures.totals() == Stats(0, 0, 0, 0, 0, 0, 0)
    for _ in range(3):
        figures.hear(stats(5), 0.0)
        figures.hear(stats(7, forward_s=0.5), 1.5)
        assert figures.stalled_s == 1.5
        figures.end_process()
        assert figures.stats is None
        assert figures.stalled_s == 0
    figures.hear(stats(1, forward_s=0.25), 0.0)
    totals = figures.totals()
    assert (totals.steps, totals.preemptions, totals.forward_s) == (22, 12, 1.75)
    assert (totals.running, totals.blocks_free, totals.resident_bytes) == (1, 10, 1000)
    figures.end_process()
    figures.end_process()
    assert (figures.totals().steps, figures.totals().running) == (22, 0)


def test_phases_of_start_up_are_a_closed_set_and_notes_belong_to_the_phase_that_runs() -> None:
    clock = Clock()
    figures = EngineFigures(clock)
    assert figures.phase_seconds() == {}
    figures.begin_process()
    clock.now += 1
    figures.enter_phase("loading and quantizing to nf4 m on cpu")
    clock.now += 2
    figures.enter_phase("KV cache: 100 tokens in 7 blocks, 1 MiB")
    clock.now += 3
    assert (figures.phase, figures.phase_seconds()) == ("loading", {"starting": 1, "loading": 5})
    figures.enter_phase("checking the paged forward")
    figures.enter_phase("loading a draft model")
    clock.now += 4
    figures.enter_phase(None)
    clock.now += 100
    assert (figures.phase, figures.phase_seconds()) == (None, {"starting": 1, "loading": 9, "checking": 0})
    figures.begin_process()
    assert figures.phase_seconds() == {"starting": 0}


def test_start_up_says_every_phase_and_no_other() -> None:
    """A message that begins with what one does begins a phase; the others are notes within one."""
    files = Path(tokenwire.__file__).parent.rglob("*.py")
    told = re.compile(r'\b(?:progress|Loading)\(\s*f?"(\w*)')
    words = {word for file in files for word in told.findall(file.read_text(encoding="utf-8"))}
    assert {word for word in words if word.endswith("ing")} | {"starting"} == set(PHASES)


def test_a_phase_ends_with_the_process_that_was_in_it() -> None:
    clock = Clock()
    figures = EngineFigures(clock)
    figures.begin_process()
    clock.now += 1
    figures.enter_phase("loading m on cpu")
    clock.now += 2
    figures.end_process()
    clock.now += 100
    assert (figures.phase, figures.phase_seconds()) == (None, {"starting": 1, "loading": 2})


def test_the_time_of_a_step_is_divided_without_rest() -> None:
    times = StepTimes()
    for began in (100, 200):
        times.add(began, 2, began + 3, began + 7, began + 15, began + 31)
    assert (times.draft_s, times.forward_s, times.sample_s, times.rest_s) == (4, 8, 16, 34)


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    bounds = (0.1, 0.2, 0.5)
    histogram = Histogram(bounds)
    generator = random.Random(0)
    values = [generator.choice((0.0, 0.1, 0.15, 0.2, 0.5, 0.51, 7.0)) for _ in range(1000)]
    for value in values:
        histogram.observe(value)
    histogram.observe(0.15, 3)
    values += [0.15] * 3
    expected = [sum(value <= bound for value in values) for bound in (*bounds, float("inf"))]
    assert histogram.cumulated() == expected
    assert histogram.total == pytest.approx(sum(values))


def test_names_and_bounds_follow_the_rules_of_the_format() -> None:
    assert len(METRIC_OF_NAME) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("tokenwire_")
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert metric.help.endswith(".")
        assert bool(metric.bounds) is (metric.kind == "histogram")
        assert list(metric.bounds) == sorted(set(metric.bounds))
        if metric.bounds:
            assert metric.name.endswith("_seconds")
            assert bisect_left(metric.bounds, 0.0) == 0
