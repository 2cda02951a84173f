"""Laws of the scheduler under random arrivals, aborts, lengths and cache sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.protocol import Submit
from tokenwire.engine.row import Row
from tokenwire.engine.scheduler import Schedule, Scheduler
from tokenwire.engine.settings import GenerationSettings


def make_request(number: int, num_prompt: int, max_new_tokens: int = 8) -> Row[None]:
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    submit = Submit(number, [number % 7] * num_prompt, settings)
    return Row(number, submit, submit.prompt_ids, None, 0.0)


def advance(scheduler: Scheduler[None], schedule: Schedule[None]) -> list[Row[None]]:
    """What the engine does after a forward pass, with a model that never stops early; returns who finished."""
    finished = []
    for row in schedule.rows[: schedule.num_sampled]:
        row.num_computed = len(row.tokens)
        row.is_prefilling = False
        row.tokens.append(1)
        row.step_tokens = [1]
        if row.num_generated == row.max_new_tokens:
            scheduler.remove(row)
            finished.append(row)
    for row in schedule.rows[schedule.num_sampled :]:
        row.num_computed += len(row.step_tokens)
    return finished


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(1, 24),
        block_size=st.integers(1, 5),
        max_running=st.integers(1, 6),
        max_step_tokens=st.integers(1, 20),
        chunked=st.booleans(),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_running: int,
        max_step_tokens: int,
        chunked: bool,
    ) -> None:
        self.blocks = BlockManager(num_blocks, block_size)
        self.budget = max_step_tokens
        self.max_running = max_running
        self.chunked = chunked
        self.scheduler: Scheduler[None] = Scheduler(
            self.blocks,
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            supports_chunked_prefill=chunked,
        )
        self.accepted = 0
        self.alive: list[Row[None]] = []
        self.first_rows: list[int] = []

    @rule(num_prompt=st.integers(1, 40), max_new_tokens=st.integers(1, 20))
    def arrive(self, num_prompt: int, max_new_tokens: int) -> None:
        request = make_request(self.accepted, num_prompt, max_new_tokens)
        if self.scheduler.can_ever_fit(request):
            self.accepted += 1
            self.scheduler.add(request)
            self.alive.append(request)
        else:
            with pytest.raises(ValueError, match="can never fit"):
                self.scheduler.add(request)

    @rule(pick=st.integers(0, 1000))
    def abort(self, pick: int) -> None:
        if self.alive:
            request = self.alive.pop(pick % len(self.alive))
            self.scheduler.remove(request)
            assert not request.block_table

    @rule()
    def step(self) -> None:
        schedule = self.scheduler.schedule()
        rows = schedule.rows
        decode, prefill = rows[: schedule.num_decode], rows[schedule.num_decode :]

        assert all(not row.is_prefilling and len(row.step_tokens) == 1 for row in decode)
        assert all(row.is_prefilling and row.step_tokens for row in prefill)
        assert len(rows) <= self.max_running
        tokens = sum(len(row.step_tokens) for row in rows)
        if self.chunked:
            assert tokens <= self.budget
        else:
            assert tokens <= self.budget or len(prefill) == 1
            assert schedule.num_sampled == len(rows)
        for row in rows:
            assert row.step_tokens == row.tokens[row.num_computed : row.num_computed + len(row.step_tokens)]
            assert len(row.block_table) * self.blocks.block_size >= row.num_computed + len(row.step_tokens)
        assert schedule.num_sampled >= len(rows) - 1
        # Someone always gets on: no schedule is empty while anyone is there.
        assert bool(rows) == bool(self.alive)
        # First come, first served.
        self.first_rows.extend(row.id for row in prefill if row.num_computed == 0 and row.id not in self.first_rows)
        assert self.first_rows == sorted(self.first_rows)

        for request in advance(self.scheduler, schedule):
            self.alive.remove(request)

    @invariant()
    def everyone_is_in_one_place_in_order_of_arrival(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        order = [*self.scheduler.running, *self.scheduler.waiting]
        assert order == self.alive

    @invariant()
    def every_block_is_held_once(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        held = [block for row in self.scheduler.running for block in row.block_table]
        assert len(held) == len(set(held))
        assert len(held) + self.blocks.num_free == self.blocks.num_blocks
        assert not any(row.block_table for row in self.scheduler.waiting)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(100_000):
            if not self.alive:
                break
            self.step()
        assert not self.alive
        assert self.blocks.num_free == self.blocks.num_blocks


TestScheduler = SchedulerMachine.TestCase


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=2, max_size=12))
def test_an_oversubscribed_cache_serves_all_with_bounded_recomputation(shapes: list[tuple[int, int]]) -> None:
    scheduler: Scheduler[None] = Scheduler(BlockManager(13, 4), max_running=8, max_step_tokens=64)
    for number, (num_prompt, max_new_tokens) in enumerate(shapes):
        scheduler.add(make_request(number, num_prompt, max_new_tokens))
    finished, computed = 0, 0
    while finished < len(shapes):
        schedule = scheduler.schedule()
        computed += sum(len(row.step_tokens) for row in schedule.rows)
        finished += len(advance(scheduler, schedule))
    needed = sum(num_prompt + max_new_tokens - 1 for num_prompt, max_new_tokens in shapes)
    assert computed <= 3 * needed


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    scheduler: Scheduler[None] = Scheduler(BlockManager(4, 2), max_running=4, max_step_tokens=64)
    old, young, late = make_request(0, 2, 5), make_request(1, 2, 5), make_request(2, 1, 1)
    scheduler.add(old)
    scheduler.add(young)
    while not scheduler.num_preemptions:
        advance(scheduler, scheduler.schedule())
    scheduler.add(late)
    assert scheduler.running == [old]
    assert list(scheduler.waiting) == [young, late]
    assert scheduler.released == [young.id]
    assert young.num_computed == 0
    assert young.num_generated > 0
