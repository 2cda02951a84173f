"""Continuous batching: which sequences the next forward pass computes, and who holds which blocks.

The scheduler counts, it does not compute. Order: sequences that decode first, one token each, then prefill chunks up
to the token budget, first come first served. When the KV cache is full the youngest sequence gives its blocks back
and is computed again later (preemption by recompute); it waits before all that came after it.

``running`` and ``waiting`` are both in order of arrival, and everything running arrived before everything waiting.
A chunk is cut short only where the budget ends, or ends the budget where it is cut for its own sake, so at most one
sequence is partly prefilled: the last one running.
"""

from collections import deque
from typing import Generic, NamedTuple

from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.request import GenerationT, Request


class Schedule(NamedTuple, Generic[GenerationT]):
    """The rows of one forward pass, each with its ``step_tokens``."""

    rows: list[Request[GenerationT]]
    """Decode rows, then prefill rows."""
    num_decode: int
    """Decode rows."""
    num_sampled: int
    """Rows at the front that give a token; one less than all where the last row's prefill is cut short."""


class Scheduler(Generic[GenerationT]):
    """Waiting and running sequences over one block manager.

    ``max_running`` rows and ``max_step_tokens`` tokens at most in one pass. A runner that cannot continue a prefill
    (``supports_chunked_prefill`` False) gets every prompt whole, if need be beyond the token budget, then as the
    only prefill of the pass. ``max_prefill_rows``: most prefill rows in one pass, None for no limit.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_running: int,
        max_step_tokens: int,
        supports_chunked_prefill: bool = True,
        max_prefill_rows: int | None = None,
    ) -> None:
        self._blocks = blocks
        # Every running row decodes in every step, so more rows than tokens would break the budget.
        self._max_running = min(max_running, max_step_tokens)
        self._max_step_tokens = max_step_tokens
        self._chunked = supports_chunked_prefill
        self._max_prefill_rows = max_running if max_prefill_rows is None else max_prefill_rows
        self.running: list[Request[GenerationT]] = []
        self.waiting: deque[Request[GenerationT]] = deque()
        self.num_preemptions = 0
        self.released: list[int] = []
        """Ids of sequences that lost their blocks; whoever tells the runner clears it."""

    def can_ever_fit(self, request: Request[GenerationT]) -> bool:
        """Whether the sequence could run to its last token if it had the KV cache for itself."""
        return self._blocks.blocks_for(request.max_cached_tokens) <= self._blocks.num_blocks

    def add(self, request: Request[GenerationT]) -> None:
        """Let a sequence wait for its turn. Raises ValueError where ``can_ever_fit`` is false."""
        if not self.can_ever_fit(request):
            raise ValueError(f"sequence {request.id} can never fit into the KV cache")
        self.waiting.append(request)

    def remove(self, request: Request[GenerationT]) -> None:
        """Forget a running or waiting sequence and free its blocks."""
        if request.block_table:
            self.running.remove(request)
            self._release(request)
        else:
            self.waiting.remove(request)

    def schedule(self) -> Schedule[GenerationT]:
        """Choose the rows of the next forward pass and allocate the blocks that they need."""
        preempted_before = self.num_preemptions
        self._grow()
        running = self.running
        rows = running.copy()
        num_decode = len(rows) - (1 if rows and rows[-1].is_prefilling else 0)
        budget = self._max_step_tokens - num_decode
        num_prefill = 0
        if num_decode < len(rows):
            budget -= self._take_chunk(rows[-1], budget)
            num_prefill = 1
        # Sequences preempted just now would take back the blocks that they gave.
        if self.num_preemptions == preempted_before:
            while (
                self.waiting
                and budget > 0
                and len(running) < self._max_running
                and num_prefill < self._max_prefill_rows
                and self._can_admit(self.waiting[0], budget, num_prefill)
            ):
                request = self.waiting.popleft()
                request.block_table = self._blocks.allocate(self._blocks.blocks_for(len(request.tokens)))
                request.num_slots = len(request.block_table) * self._blocks.block_size
                running.append(request)
                rows.append(request)
                budget -= self._take_chunk(request, budget)
                num_prefill += 1
        is_cut = bool(rows) and rows[-1].num_computed + len(rows[-1].step_tokens) < len(rows[-1].tokens)
        return Schedule(rows, num_decode, len(rows) - is_cut)

    def _grow(self) -> None:
        """Give every decode row room for its token; take blocks from the youngest where none are free."""
        for request in [row for row in self.running if row.num_computed == row.num_slots]:
            while request.block_table and not self._blocks.can_allocate(1):
                self._preempt_youngest()
            if request.block_table:
                request.block_table.extend(self._blocks.allocate(1))
                request.num_slots += self._blocks.block_size

    def _can_admit(self, request: Request[GenerationT], budget: int, num_prefill: int) -> bool:
        if not self._chunked and len(request.tokens) > budget and num_prefill:
            return False
        # One block more for each running row that may still grow: otherwise the first that does would throw the
        # newcomer out again.
        num_growing = sum(row.num_slots < row.max_cached_tokens for row in self.running)
        return self._blocks.can_allocate(self._blocks.blocks_for(len(request.tokens)) + num_growing)

    def _take_chunk(self, request: Request[GenerationT], budget: int) -> int:
        """Set the tokens of a prefill row; returns how much of the budget they take."""
        start = request.num_computed
        end = min(start + budget, len(request.tokens)) if self._chunked else len(request.tokens)
        if self._chunked and request.prompt_logprobs is not None:
            longest = start + request.prompt_logprobs.max_chunk
            if longest < end:
                request.step_tokens = request.tokens[start:longest]
                return budget
        request.step_tokens = request.tokens[start:end]
        return end - start

    def _preempt_youngest(self) -> None:
        request = self.running.pop()
        self._release(request)
        request.num_computed = 0
        request.is_prefilling = True
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    def _release(self, request: Request[GenerationT]) -> None:
        self._blocks.free(request.block_table)
        request.block_table = []
        request.num_slots = 0
        self.released.append(request.id)
