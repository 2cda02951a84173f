"""Scale: a long time under a load of every kind, with kills of the engine, leaves nothing behind.

`make soak` runs 30 minutes, or as many as ``SOAK_MINUTES`` says; `make test` 20 s with two kills, in which
each kind of call comes to each of its ends, and the slope of the memory says nothing yet.
"""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import load_jobs
import pytest
from load import MIX, Disturbance, Load, answers_of
from watched_service import Outside, Sample, WatchedService, watched_service

from bench import reliability
from bench.report import percentile
from tests import tiny_models
from tokenwire.config import EngineConfig

MIB = 2**20
SETTLE_S = 60.0
"""Patience for what is idle to have given everything back."""
SEED = 11
SLOPE_MIB_PER_MINUTE = 1.0
THREADS_SLACK = 4
DESCRIPTORS_SLACK = 8
"""So many more than at the start may be left of each process: pools of threads fill up late, and a connection that was
cut off closes when the kernel gives it up. A leak is one of every call or of every kill, thousands in all."""

_MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))


class Plan(NamedTuple):
    seconds: float
    kill_every_s: float
    prime_s: float
    """Load before the start is looked at: pools of threads are full, and what is loaded on demand is there."""
    warm_up_s: float | None
    """From the start of a process to where the slope of its memory begins to count; None: not at all."""
    sample_every_s: float = 1.0
    num_workers: int = 16
    num_connections: int = 6


SHORT = Plan(seconds=20.0, kill_every_s=8.0, prime_s=6.0, warm_up_s=None)
LONG = Plan(seconds=60 * _MINUTES, kill_every_s=300.0, prime_s=30.0, warm_up_s=120.0)


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(SHORT, id="short", marks=pytest.mark.timeout(400)),
        pytest.param(LONG, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(60 * _MINUTES + 600)]),
    ],
)
async def test_30_minutes_with_cancels_bad_requests_slow_readers_and_kills_leave_nothing_behind(
    tmp_path: Path, plan: Plan
) -> None:
    """20 % cancels, 5 % bad requests, slow readers; every greedy answer is that of the idle service."""
    model = tiny_models.save(tmp_path / "model")
    settings: dict[str, Any] = {
        "max_restarts": 1000,
        "restart_reset": 0.0,
        "slow_reader_timeout": 1.0,
        "threads": 1,
        "prefill_share": EngineConfig().prefill_share,
    }
    async with watched_service(model, tmp_path / "log", **settings) as service:
        jobs = load_jobs.jobs(SEED)
        answers = await answers_of(service.address, jobs)
        disturbance = Disturbance()
        load = Load(service.address, jobs, answers, disturbance)
        async with load.running(SEED, plan.num_workers, plan.num_connections):
            await asyncio.sleep(plan.prime_s)
        start = await settled(service)
        samples, kills = [], []
        async with load.running(SEED + 1, plan.num_workers, plan.num_connections), asyncio.TaskGroup() as group:
            killing = group.create_task(kill(service, disturbance, plan, kills))
            end_at = time.monotonic() + plan.seconds
            while time.monotonic() < end_at or not killing.done():
                await asyncio.sleep(plan.sample_every_s)
                samples.append((await service.sample(), load.num_calls))
        end = await settled(service, start)
    report(plan, load, samples, kills, start, end)
    if plan is SHORT:
        assert len(kills) == 2
    assert not load.errors, load.errors[:10]
    for kind in MIX:
        assert load.count(kind)
    assert load.count("slow_reader", "cut off")
    assert sum(number for (_, how), number in load.ends.items() if how == "killed")
    assert_shares(load)
    assert held(end) == held(start) == (0, 0, 0, 0)
    assert is_given_back(start, end), (given(start), given(end))
    if plan.warm_up_s is not None:
        assert front_slope(samples, plan.warm_up_s) < SLOPE_MIB_PER_MINUTE
        assert engine_slope(samples, plan.warm_up_s) < SLOPE_MIB_PER_MINUTE


async def kill(service: WatchedService, disturbance: Disturbance, plan: Plan, kills: list[float]) -> None:
    """Kill the engine from time to time, but for a last stretch in which all calm down."""
    for number in itertools.count(1):
        if (number + 0.5) * plan.kill_every_s > plan.seconds:
            return
        await asyncio.sleep(plan.kill_every_s)
        pid = (await service.look()).engine_pid
        assert pid is not None
        disturbance.begin()
        kills.append(time.monotonic() - service.began_at)
        os.kill(pid, signal.SIGKILL)
        await service.until_restarted(pid)
        disturbance.end()


def held(sample: Sample) -> tuple[int | None, ...]:
    """What requests hold."""
    inside = sample.inside
    return inside.num_open, inside.num_waiting, inside.num_rows, inside.num_blocks_used


def given(sample: Sample) -> dict[str, int]:
    """What else must come back to where it was, but for the slack of threads and descriptors."""
    assert sample.engine is not None
    return {
        "tasks": sample.inside.num_tasks,
        "descriptors of the front": sample.front.num_descriptors,
        "threads of the front": sample.front.num_threads,
        "descriptors of the engine": sample.engine.num_descriptors,
        "threads of the engine": sample.engine.num_threads,
    }


def is_given_back(start: Sample, end: Sample) -> bool:
    before, after = given(start), given(end)
    return after["tasks"] == before["tasks"] and all(
        count <= before[name] + (THREADS_SLACK if "threads" in name else DESCRIPTORS_SLACK)
        for name, count in after.items()
        if name != "tasks"
    )


async def settled(service: WatchedService, start: Sample | None = None) -> Sample:
    """A look once nothing is held, and all has come back to ``start`` or, if it never does, after `SETTLE_S`.

    Without ``start``: once two looks a second apart give the same.
    """
    give_up_at = time.monotonic() + SETTLE_S
    before = None
    while True:
        sample = await service.sample()
        is_idle = sample.engine is not None and not any(held(sample))
        is_back = is_idle and (
            is_given_back(start, sample) if start is not None else before is not None and given(sample) == given(before)
        )
        if is_back or time.monotonic() > give_up_at:
            return sample
        before = sample if is_idle else None
        await asyncio.sleep(1)


def assert_shares(load: Load) -> None:
    """The load was as it should be, within what chance makes of so many calls."""
    for kind in ("cancel", "bad"):
        share, expected = load.count(kind) / load.num_calls, MIX[kind]
        assert abs(share - expected) < 5 * (expected * (1 - expected) / load.num_calls) ** 0.5


Samples = Sequence[tuple[Sample, int]]
Line = list[tuple[float, float]]


def front_slope(samples: Samples, warm_up_s: float) -> float:
    """MiB per minute, twice ``warm_up_s`` after the start on."""
    began = samples[0][0].at
    return slope([[(each.at / 60, each.front.resident_bytes / MIB)
                   for each, _ in samples if each.at > began + 2 * warm_up_s]])  # fmt: skip


def engine_slope(samples: Samples, warm_up_s: float) -> float:
    """MiB per minute within the lives of the engine processes, from ``warm_up_s`` after the start of each on."""
    lives: dict[int, Line] = {}
    born: dict[int, float] = {}
    for each, _ in samples:
        pid, engine = each.inside.engine_pid, each.engine
        if pid is None or engine is None or each.inside.num_blocks is None:
            continue
        if each.at > born.setdefault(pid, each.at) + warm_up_s:
            lives.setdefault(pid, []).append((each.at / 60, engine.resident_bytes / MIB))
    return slope(list(lives.values()))


def slope(lines: Sequence[Line]) -> float:
    """The slope that lines have in common, each with a height of its own, by least squares; 0 without points."""
    above = below = 0.0
    for line in lines:
        mean_x, mean_y = (sum(point[axis] for point in line) / len(line) for axis in (0, 1))
        above += sum((x - mean_x) * (y - mean_y) for x, y in line)
        below += sum((x - mean_x) ** 2 for x, _ in line)
    return above / below if below else 0.0


def report(plan: Plan, load: Load, samples: Samples, kills: Sequence[float], start: Sample, end: Sample) -> None:
    """Print the soak; put a long one down in bench/results."""
    seconds = load.seconds
    warm_up_s = plan.warm_up_s or 0.0
    summary: list[tuple[str, object]] = [
        ("calls", load.num_calls),
        ("calls per second", load.num_calls / (plan.seconds + plan.prime_s)),
        ("errors", len(load.errors)),
        ("kills of the engine", len(kills)),
        ("greedy answers, each that of the idle service", len(seconds)),
        ("their seconds, p50", percentile(seconds, 0.5)),
        ("their seconds, p99", percentile(seconds, 0.99)),
        ("memory of the front, MiB per minute after warm-up", front_slope(samples, warm_up_s)),
        ("memory of the engine, MiB per minute after warm-up", engine_slope(samples, warm_up_s)),
        ("memory of the front at the start, MiB", start.front.resident_bytes / MIB),
        ("memory of the front at the end, MiB", end.front.resident_bytes / MIB),
    ]
    summary += [(f"{name}, start and end", f"{before} and {given(end)[name]}") for name, before in given(start).items()]
    names = ("open requests", "waiting requests", "rows", "KV blocks")
    summary += [(f"{name}, start and end", f"{before} and {after}")
                for name, before, after in zip(names, held(start), held(end), strict=True)]  # fmt: skip
    print(*(f"{name}: {value}" for name, value in summary), sep="\n")  # noqa: T201
    if plan is SHORT:
        return
    page = reliability.record_soak(
        {
            "minutes": plan.seconds / 60,
            "summary": summary,
            "calls": [(kind, how, number) for (kind, how), number in sorted(load.ends.items())],
            "kills": [at / 60 for at in kills],
            "samples": [_row(before, after) for before, after in itertools.pairwise(samples)],
        }
    )
    print(f"page: {page}")  # noqa: T201


def _row(before: tuple[Sample, int], after: tuple[Sample, int]) -> dict[str, Any]:
    sample, num_calls = after
    inside = sample.inside
    engine = sample.engine or Outside(0, 0, 0)
    return {
        "minute": sample.at / 60,
        "calls_per_s": (num_calls - before[1]) / (sample.at - before[0].at),
        "front_bytes": sample.front.resident_bytes,
        "front_descriptors": sample.front.num_descriptors,
        "front_threads": sample.front.num_threads,
        "engine_bytes": engine.resident_bytes if sample.engine else None,
        "engine_descriptors": engine.num_descriptors if sample.engine else None,
        "engine_threads": engine.num_threads if sample.engine else None,
        "num_tasks": inside.num_tasks,
        "num_open": inside.num_open,
        "num_waiting": inside.num_waiting,
        "num_blocks_used": inside.num_blocks_used,
    }
