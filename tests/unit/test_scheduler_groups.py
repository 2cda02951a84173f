"""Laws of the scheduler under random arrivals of plain rows, forks, guided pairs and beam searches."""

import random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tokenwire.engine.beams import BeamGroup
from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.protocol import Submit
from tokenwire.engine.row import Row
from tokenwire.engine.scheduler import Scheduler
from tokenwire.engine.settings import GenerationSettings

_NO_SEARCH: Any = None


class GroupMachine(RuleBasedStateMachine):
    """The model of the cache: a block's content is the set of (row, position) that went into it, by copies too."""

    @initialize(
        num_blocks=st.integers(4, 30),
        block_size=st.integers(1, 4),
        max_running=st.integers(1, 7),
        max_step_tokens=st.integers(1, 20),
        shares_blocks=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def start(
        self,
        num_blocks: int,
        block_size: int,
        max_running: int,
        max_step_tokens: int,
        shares_blocks: bool,
        seed: int,
    ) -> None:
        self.blocks = BlockManager(num_blocks, block_size)
        self.budget = max_step_tokens
        self.max_running = max_running
        self.shares_blocks = shares_blocks
        self.random = random.Random(seed)
        self.scheduler: Scheduler[None] = Scheduler(
            self.blocks, max_running=max_running, max_step_tokens=max_step_tokens, shares_blocks=shares_blocks
        )
        self.num_rows = 0
        self.alive: set[Row[None]] = set()
        self.left: dict[int, int] = {}
        """Steps of a beam search still to come, by its first row."""

    def row(self, num_prompt: int, max_new_tokens: int) -> Row[None]:
        submit = Submit(0, [1] * num_prompt, GenerationSettings(max_new_tokens=max_new_tokens))
        self.num_rows += 1
        return Row(self.num_rows, submit, submit.prompt_ids, None, 0.0)

    @rule(
        num_prompt=st.integers(1, 20),
        max_new_tokens=st.integers(1, 12),
        num_forks=st.integers(0, 4),
        num_negative=st.integers(0, 12),
    )
    def arrive(self, num_prompt: int, max_new_tokens: int, num_forks: int, num_negative: int) -> None:
        rows = [self.row(num_prompt, max_new_tokens) for _ in range(num_forks + 1)]
        for row in rows:
            if num_negative:
                row.mates = [self.row(num_negative, max_new_tokens)]
                row.width = 2
        rows[0].forks = rows[1:]
        rows[0].width *= len(rows)
        if self.scheduler.can_ever_fit(rows[0]):
            self.scheduler.add(rows[0])
            self.alive.add(rows[0])

    @rule(num_prompt=st.integers(1, 20), max_new_tokens=st.integers(1, 10), num_beams=st.integers(2, 5))
    def search(self, num_prompt: int, max_new_tokens: int, num_beams: int) -> None:
        rows = [self.row(num_prompt, max_new_tokens), *(self.row(0, 1) for _ in range(num_beams - 1))]
        BeamGroup(
            rows,
            _NO_SEARCH,
            num_answers=1,
            block_size=self.blocks.block_size,
            shares_blocks=self.shares_blocks,
        )
        if self.scheduler.can_ever_fit(rows[0]):
            self.scheduler.add(rows[0])
            self.alive.add(rows[0])
            self.left[rows[0].id] = max_new_tokens

    @rule(pick=st.integers(0, 1000))
    def abort(self, pick: int) -> None:
        if self.alive:
            self.end(sorted(self.alive, key=lambda row: row.id)[pick % len(self.alive)])

    def end(self, row: Row[None]) -> None:
        self.alive.remove(row)
        self.scheduler.remove(row)
        assert not any(member.block_table for member in (row, *row.mates))

    @rule()
    def step(self) -> None:
        scheduler = self.scheduler
        schedule = scheduler.schedule()
        assert not set(scheduler.copies) & set(scheduler.copies.values())
        scheduler.copies.clear()
        rows = schedule.rows
        assert bool(rows) == bool(self.alive)
        assert len(rows) == len(set(rows)) <= self.max_running
        assert sum(len(row.step_tokens) for row in rows) <= self.budget
        assert all(len(row.step_tokens) == 1 and not row.is_prefilling for row in rows[: schedule.num_decode])
        # Whoever is written to is the only holder.
        tables = [member.block_table for row in scheduler.running for member in (row, *row.mates)]
        holders = [block for table in tables for block in table]
        for row in rows:
            last = row.num_computed + len(row.step_tokens) - 1
            for place in range(row.num_computed // self.blocks.block_size, last // self.blocks.block_size + 1):
                assert holders.count(row.block_table[place]) == 1
        # A row and its mates give logits together.
        sampled = rows[: schedule.num_sampled]
        for row in scheduler.running:
            members = (row, *row.mates)
            assert len({member in sampled for member in members}) == 1
        for row in [row for row in sampled if row in self.alive]:
            self.take(row)
        for row in rows[schedule.num_sampled :]:
            row.num_computed += len(row.step_tokens)

    def take(self, row: Row[None]) -> None:
        """What the engine does with a token."""
        if row.beams is not None:
            self.left[row.id] -= 1
            if not self.left[row.id]:
                self.end(row)
                return
            width = row.width
            parents = [self.random.randrange(width) if row.mates else 0 for _ in range(width)]
            moves = row.beams.advance(parents, [1] * width)
            assert not set(moves.blocks) & set(moves.blocks.values())
            return
        forks = row.forks
        started = self.scheduler.fork(row) if forks else []
        self.alive.update(forks)
        for member in (row, *started):
            for each in (member, *member.mates):
                each.follow(1)
            if member.num_generated == member.max_new_tokens:
                self.end(member)

    @invariant()
    def every_block_is_free_or_held(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        held: set[int] = set()
        for row in self.scheduler.running:
            if row.beams is None:
                held.update(block for member in (row, *row.mates) for block in member.block_table)
        num_beam_blocks = sum(row.beams.num_blocks for row in self.scheduler.running if row.beams is not None)
        assert len(held) + num_beam_blocks + self.blocks.num_free == self.blocks.num_blocks
        assert not any(row.block_table for row in self.scheduler.waiting)
        assert {*self.scheduler.running, *self.scheduler.waiting} == self.alive
        assert sum(row.width for row in self.scheduler.running) <= self.max_running

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(100_000):
            if not self.alive:
                break
            self.step()
        assert not self.alive
        assert self.blocks.num_free == self.blocks.num_blocks
        assert not self.blocks.has_shared


TestGroups = GroupMachine.TestCase
