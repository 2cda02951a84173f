"""Continuous batching: which rows the next forward pass computes, and who holds which blocks.

The scheduler counts, it does not compute. Order: rows that decode first, one token each, then prefill chunks up to
the token budget, first come first served; beside rows that decode it is as small as `pace` says, so that they do not
wait long for a pass. When the KV cache is full the youngest row gives its blocks back and is
computed again later (preemption by recompute); it waits before all that came after it. A beam search is never
preempted: it got all blocks that it can need when it was admitted (see `beams.py`).

When a pass runs out of memory (``shrink``), passes get smaller, and grow again after a while without that.

``running`` and ``waiting`` are both in order of arrival, and everything running arrived before everything waiting,
but for beam searches that an older row had to make room for. A chunk is cut short only where the budget ends, or ends
the budget where it is cut for its own sake, so at most one row is partly prefilled: the last one running.

A row's mates appear in no list: they go where their row goes.
"""

from collections import deque
from typing import Generic, NamedTuple

from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.pace import PrefillPace
from tokenwire.engine.row import GenerationT, Row

_CALM_PASSES = 256
"""Passes after which those that were made smaller for want of memory get twice as large again."""


class Schedule(NamedTuple, Generic[GenerationT]):
    """The rows of one forward pass, each with its ``step_tokens``."""

    rows: list[Row[GenerationT]]
    """Decode rows, their mates, decoding beam searches, then prefill rows, each with its mates behind it."""
    num_decode: int
    """Decode rows, mates included."""
    num_sampled: int
    """Rows at the front that need logits: less than all where the last row's prefill is cut short."""
    is_plain: bool
    """Whether every row is a sequence of its own: no mates, no forks, no beams."""


class Scheduler(Generic[GenerationT]):
    """Waiting and running rows over one block manager.

    ``max_running`` rows and ``max_step_tokens`` tokens at most in one pass. A runner that cannot continue a prefill
    (``supports_chunked_prefill`` False) gets every prompt whole, if need be beyond the token budget, then as the
    only prefill of the pass. ``shares_blocks``: whether rows may hold the same blocks, whoever writes one being given
    its own copy before. ``prefill_share``: of the time of a pass in which other rows decode, above 0; at 1 prefill
    fills every pass. It takes ``observe``, and no effect where prompts come whole.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_running: int,
        max_step_tokens: int,
        supports_chunked_prefill: bool = True,
        shares_blocks: bool = True,
        prefill_share: float = 1.0,
    ) -> None:
        self._blocks = blocks
        # Every running row decodes in every step, so more rows than tokens would break the budget.
        self.max_running = min(max_running, max_step_tokens)
        """Most rows of one pass."""
        self._max_step_tokens = max_step_tokens
        self._step_tokens = max_step_tokens
        """Most tokens of a pass now: less than ``max_step_tokens`` for a while after ``shrink``."""
        self._num_calm = 0
        """Passes since it was last changed, where it is less."""
        self._chunked = supports_chunked_prefill
        self._shares_blocks = shares_blocks
        self._pace = PrefillPace(prefill_share) if supports_chunked_prefill and prefill_share < 1 else None
        self._num_decode = self._num_prefill = 0
        """Decode rows and prefill tokens of the newest schedule."""
        self.running: list[Row[GenerationT]] = []
        self.waiting: deque[Row[GenerationT]] = deque()
        self.num_preemptions = 0
        self._num_rows = 0
        """Rows set aside for what runs: the sum of ``width``."""
        self._num_scored = 0
        """Tokens in the pass that is being made of prompts whose log probabilities are asked for."""
        self.released: list[int] = []
        """Ids of rows that lost their blocks; whoever tells the runner clears it."""
        self.copies: dict[int, int] = {}
        """Blocks to fill with the content of others before the next pass, all at once: source by target. Whoever
        tells the runner clears it."""

    @property
    def _row_limit(self) -> int:
        """Rows that may run now."""
        return min(self.max_running, self._step_tokens)

    def can_ever_fit(self, row: Row[GenerationT]) -> bool:
        """Whether the row, with its mates, could run to its last token if it had the engine for itself.

        Forks need not run at the same time, so they do not count.
        """
        if row.beams is not None:
            return row.beams.num_blocks <= self._blocks.num_blocks and row.width <= self.max_running
        rows = [row, *row.mates]
        num_blocks = sum(self._blocks.blocks_for(member.max_cached_tokens) for member in rows)
        return num_blocks <= self._blocks.num_blocks and len(rows) <= self.max_running

    def add(self, row: Row[GenerationT]) -> None:
        """Let a row wait for its turn. Raises ValueError where ``can_ever_fit`` is false."""
        if not self.can_ever_fit(row):
            raise ValueError(f"row {row.id} can never fit into the KV cache")
        row.width = min(row.width, self.max_running)
        self.waiting.append(row)

    def remove(self, row: Row[GenerationT]) -> None:
        """Forget a running or waiting row and free its blocks."""
        if row.block_table:
            self.running.remove(row)
            self._release(row)
        else:
            self.waiting.remove(row)

    def schedule(self) -> Schedule[GenerationT]:
        """Choose the rows of the next forward pass and allocate the blocks that they need."""
        preempted_before = self.num_preemptions
        self._num_scored = 0
        if self._step_tokens < self._max_step_tokens:
            self._recover()
        self._grow()
        running = self.running
        rows = running.copy()
        prefill = [rows.pop()] if rows and rows[-1].is_prefilling else []
        # A group that has one row for all its sequences is no wider than a plain one.
        is_plain = self._num_rows == len(running) and not (prefill and prefill[0].forks)
        if not is_plain:
            rows = _with_mates(rows)
        num_decode = len(rows)
        # At least a token of each row that prefills already: beams, which are never preempted, may leave less.
        least = sum(1 + len(row.mates) for row in prefill)
        budget = max(self._step_tokens - num_decode, least)
        may_prefill = budget > 0
        if self._pace is not None and num_decode and may_prefill and (prefill or self.waiting):
            paced = self._pace.budget(num_decode, budget)
            may_prefill = paced > 0
            if not may_prefill:
                prefill.clear()
            budget = max(paced, least)
        for row in prefill:
            budget -= self._take_chunk(row, budget)
        # Rows preempted just now would take back the blocks that they gave.
        if may_prefill and self.num_preemptions == preempted_before:
            while self.waiting and budget > 0 and self._can_admit(self.waiting[0], budget, prefill):
                row = self._admit()
                is_plain = is_plain and row.width == 1 and not row.forks
                budget -= self._take_chunk(row, budget)
                prefill.append(row)
        if self._pace is not None:
            self._num_decode = num_decode
            self._num_prefill = sum(len(member.step_tokens) for row in prefill for member in (row, *row.mates))
        if is_plain:
            rows.extend(prefill)
            return Schedule(rows, num_decode, len(rows) - _is_cut(prefill), True)
        for row in prefill:
            rows.extend(member for member in (row, *row.mates) if member.step_tokens)
        last = [member for member in (prefill[-1], *prefill[-1].mates) if member.step_tokens] if prefill else []
        return Schedule(rows, num_decode, len(rows) - len(last) * _is_cut(prefill), False)

    def observe(self, seconds: float) -> None:
        """The pass of the newest schedule took so long, with all that belongs to its step."""
        if self._pace is not None:
            self._pace.observe(self._num_decode, self._num_prefill, seconds)

    def shrink(self, schedule: Schedule[GenerationT]) -> list[Row[GenerationT]]:
        """Make passes smaller, because that of ``schedule`` ran out of memory before any of its tokens was committed.

        From now on they have half its tokens; of its rows the youngest are preempted until the others fit. Returns the
        rows that cannot be computed again, whose requests have to fail: those of a pass that cannot be made smaller,
        and beam searches of a runner that keeps state by sequence.
        """
        rows = schedule.rows
        if len({row.request for row in rows}) == 1 and not (self._chunked and self._is_cuttable(rows)):
            return rows
        self._step_tokens = max(1, sum(len(row.step_tokens) for row in rows) // 2)
        self._num_calm = 0
        if not self._shares_blocks:
            # What the runner keeps by sequence may have been changed half way.
            while self._preempt_youngest():
                pass
            return [row for row in rows if row.beams is not None]
        # One at most may be partly prefilled when the next pass is scheduled.
        for row in reversed([row for row in self.running if row.is_prefilling][1:]):
            self._preempt(row)
        while len(self.running) > 1 and self._num_rows > self._step_tokens and self._preempt_youngest():
            pass
        return []

    @staticmethod
    def _is_cuttable(rows: list[Row[GenerationT]]) -> bool:
        """Whether the only request of a pass prefills more tokens than rows."""
        return rows[0].is_prefilling and sum(len(row.step_tokens) for row in rows) > len(rows)

    def _recover(self) -> None:
        self._num_calm += 1
        if self._num_calm >= _CALM_PASSES:
            self._num_calm = 0
            self._step_tokens = min(2 * self._step_tokens, self._max_step_tokens)

    def fork(self, row: Row[GenerationT]) -> list[Row[GenerationT]]:
        """Let the forks of ``row`` start from its prompt, before any of them takes its first token.

        Call it after the pass that ended the row's prefill. Returns those that run from now on, with the prompt's
        blocks as theirs; where rows or blocks are short, the others wait to be computed on their own.
        """
        forks, row.forks = row.forks, []
        width = 1 + len(row.mates)
        self._num_rows -= row.width - width
        row.width = width
        place = self.running.index(row) + 1
        started: list[Row[GenerationT]] = []
        for fork in forks:
            if self._num_rows + width > self._row_limit or not self._can_start_from(row):
                break
            for source, target in zip((row, *row.mates), (fork, *fork.mates), strict=True):
                self._start_from(source, target)
            self._num_rows += width
            started.append(fork)
        self.running[place:place] = started
        self.waiting.extendleft(reversed(forks[len(started) :]))
        return started

    def _grow(self) -> None:
        """Give every decode row a place for its token; take blocks from the youngest where none are free."""
        if self._num_rows == len(self.running) and not self._blocks.has_shared:
            growing = [row for row in self.running if row.num_computed == row.num_slots]
        else:
            growing = [row for row in self.running if row.beams is None and self._blocks_to_grow(row)]
        for row in growing:
            while row.block_table and not self._blocks.can_allocate(self._blocks_to_grow(row)):
                self._preempt_youngest()
            if row.block_table:
                for member in (row, *row.mates):
                    self._extend(member)

    def _blocks_to_grow(self, row: Row[GenerationT]) -> int:
        return sum(
            member.num_computed == member.num_slots or self._blocks.is_shared(self._block_to_write(member))
            for member in (row, *row.mates)
        )

    def _block_to_write(self, row: Row[GenerationT]) -> int:
        return row.block_table[row.num_computed // self._blocks.block_size]

    def _extend(self, row: Row[GenerationT]) -> None:
        """Append a block where the row's are full; where its next token goes into a shared one, give it a copy."""
        if row.num_computed == row.num_slots:
            row.block_table += self._blocks.allocate(1)
            row.num_slots += self._blocks.block_size
        elif self._blocks.is_shared(shared := self._block_to_write(row)):
            (own,) = self._blocks.allocate(1)
            self._blocks.free([shared])
            row.block_table[row.num_computed // self._blocks.block_size] = own
            self.copies[own] = shared

    def _can_admit(self, row: Row[GenerationT], budget: int, prefill: list[Row[GenerationT]]) -> bool:
        members = (row, *row.mates)
        # A request that is wider than the limit for now still runs alone.
        if self.running and self._num_rows + row.width > self._row_limit:
            return False
        if row.prompt_logprobs is not None and self._num_scored:
            # The memory that one prompt's logits may take is that of a pass: others wait for the next.
            least = len(members) if self._chunked else len(row.tokens)
            if self._num_scored + least > row.prompt_logprobs.max_chunk:
                return False
        if not self._chunked and prefill and sum(len(member.tokens) for member in members) > budget:
            return False
        # One block more for each running row that may still grow, and for each fork: otherwise the first that does
        # would throw the newcomer out again.
        num_growing = sum(other.width for other in self.running if other.num_slots < other.max_cached_tokens)
        num_growing += row.width - len(members) if row.beams is None else 0
        needed = self._blocks_to_start(row) + num_growing
        return self._blocks.can_allocate(min(needed, self._blocks.num_blocks))

    def _blocks_to_start(self, row: Row[GenerationT]) -> int:
        if row.beams is not None:
            return row.beams.num_blocks
        return sum(self._blocks.blocks_for(len(member.tokens)) for member in (row, *row.mates))

    def _admit(self) -> Row[GenerationT]:
        row = self.waiting.popleft()
        if row.beams is not None:
            row.beams.begin(self._blocks.allocate(row.beams.num_blocks))
        else:
            for member in (row, *row.mates):
                self._hold(member, self._blocks.allocate(self._blocks.blocks_for(len(member.tokens))))
        self.running.append(row)
        self._num_rows += row.width
        return row

    def _hold(self, row: Row[GenerationT], blocks: list[int]) -> None:
        row.block_table = blocks
        row.num_slots = len(blocks) * self._blocks.block_size

    def _can_start_from(self, row: Row[GenerationT]) -> bool:
        return self._shares_blocks or self._blocks.can_allocate(self._blocks_to_start(row))

    def _start_from(self, source: Row[GenerationT], target: Row[GenerationT]) -> None:
        """Let ``target`` hold what ``source`` has computed: its very blocks, or as many of its own to copy into."""
        if self._shares_blocks:
            self._blocks.share(source.block_table)
            self._hold(target, source.block_table.copy())
        else:
            self._hold(target, self._blocks.allocate(len(source.block_table)))
        target.num_cached_tokens = len(source.tokens)
        target.first_forward_at = source.first_forward_at

    def _take_chunk(self, row: Row[GenerationT], budget: int) -> int:
        """Set the tokens of a prefill row and its mates; returns what it takes of the budget."""
        if row.mates:
            return self._take_chunks([row, *row.mates], budget)
        start = row.num_computed
        end = min(start + budget, len(row.tokens)) if self._chunked else len(row.tokens)
        scored = row.prompt_logprobs
        longest = end if scored is None or not self._chunked else start + scored.max_chunk - self._num_scored
        row.step_tokens = row.tokens[start : min(end, longest)]
        if scored is not None:
            self._num_scored += len(row.step_tokens)
        return budget if longest < end else end - start

    def _take_chunks(self, rows: list[Row[GenerationT]], budget: int) -> int:
        """As ``_take_chunk`` for rows that need their logits in the same pass: all come to their ends, or none does.

        Then nothing is left of the budget for others, so that no second row is partly prefilled.
        """
        left = [len(row.tokens) - row.num_computed for row in rows]
        scored = rows[0].prompt_logprobs
        # One token of each at least: rows that are a token short of their ends must be able to come there together.
        room = budget
        if scored is not None and self._chunked:
            room = min(budget, max(scored.max_chunk - self._num_scored, len(rows)))
        is_whole = not self._chunked or sum(left) <= room
        taken = 0
        for row, count in zip(rows, left, strict=True):
            length = count if is_whole else min(count - 1, room - taken)
            row.step_tokens = row.tokens[row.num_computed : row.num_computed + length]
            taken += length
        if scored is not None:
            self._num_scored += taken
        return taken if is_whole else budget

    def _preempt_youngest(self) -> bool:
        """Preempt the youngest row that can be; False where none can."""
        row = next((row for row in reversed(self.running) if row.beams is None), None)
        if row is None:
            return False
        self._preempt(row)
        return True

    def _preempt(self, row: Row[GenerationT]) -> None:
        self.running.remove(row)
        self._release(row)
        for member in (row, *row.mates):
            member.num_computed = 0
            member.is_prefilling = True
        self.waiting.appendleft(row)
        self.num_preemptions += 1

    def _release(self, row: Row[GenerationT]) -> None:
        self._num_rows -= row.width
        if row.beams is not None:
            self._blocks.free(row.beams.end())
        for member in (row, *row.mates):
            if row.beams is None:
                self._blocks.free(member.block_table)
            member.block_table = []
            member.num_slots = 0
            self.released.append(member.id)


def _with_mates(rows: list[Row[GenerationT]]) -> list[Row[GenerationT]]:
    """Decode rows in the order in which the sampler and then each beam search take their logits, without a copy."""
    ordered = [row for row in rows if row.beams is None]
    ordered += [mate for row in ordered for mate in row.mates]
    for row in rows:
        if row.beams is not None:
            ordered += (row, *row.mates)
    return ordered


def _is_cut(prefill: list[Row[GenerationT]]) -> bool:
    """Whether the last prefill row does not come to its end in this pass."""
    return bool(prefill) and prefill[-1].num_computed + len(prefill[-1].step_tokens) < len(prefill[-1].tokens)
