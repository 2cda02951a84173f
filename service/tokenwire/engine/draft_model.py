"""Proposes tokens with a second, smaller model: greedily, for all rows of a batch at once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.drafts import Ask
from tokenwire.model.batch import ForwardBatch, Runner


@dataclass(slots=True)
class _Cached:
    """What the draft model has computed of one sequence."""

    num_computed: int = 0
    """Tokens in its KV cache: the sequence's as they were at the last proposal, and the drafts behind them."""
    num_asked: int = 0
    """The sequence's tokens at the last proposal."""
    drafts: list[int] = field(default_factory=list)
    """What was proposed behind them."""
    block_table: list[int] = field(default_factory=list)

    def num_right(self, tokens: list[int]) -> int:
        """How many of the computed tokens are those of the sequence, which has come to ``tokens``.

        Its drafts may have been refused, and plain steps have gone on behind them: its length alone does not tell.
        """
        following = tokens[self.num_asked : self.num_asked + len(self.drafts)]
        pairs = zip(following, self.drafts, strict=False)
        num_accepted = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return min(self.num_computed, self.num_asked + num_accepted)


@dataclass(slots=True)
class _Proposal:
    """One sequence in a round of passes."""

    ask: Ask
    cached: _Cached
    step_tokens: list[int]
    """For the next pass: first all that the draft model has not seen, then its own last token."""
    count: int
    """Most tokens to propose; 0 where the sequence is longer than one pass, and only caught up with."""
    tokens: list[int] = field(default_factory=list)
    """What it proposes."""


class DraftModel:
    """Runs the draft model's ``runner`` and owns its KV cache; one thread uses it, the engine's.

    ``vocab_size``: columns of the served model's logits; nothing above is proposed. ``max_step_tokens``: tokens of one
    pass, so that a long prompt is caught up with over several calls.
    """

    def __init__(self, runner: Runner, *, vocab_size: int, max_step_tokens: int) -> None:
        self._runner = runner
        self._blocks = BlockManager(runner.num_blocks, runner.block_size)
        self._vocab_size = vocab_size
        self._max_step_tokens = max_step_tokens
        self._cached: dict[int, _Cached] = {}

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """At most ``num_tokens`` tokens for each ask, in their order; fewer behind the end of a sequence or a context.

        No token for a sequence that is not caught up with yet, that the cache has no room for, or that holds a token
        unknown to the draft model. What a call computed of refused drafts is computed over in the next one.
        """
        proposals = self._begin(asks)
        rows = proposals
        while rows:
            self._forward(rows)
            rows = [row for row in rows if _goes_on(row)]
        for row in proposals:
            row.cached.num_asked, row.cached.drafts = len(row.ask.tokens), row.tokens
        tokens = {row.ask.sequence: row.tokens for row in proposals}
        return [tokens.get(ask.sequence, []) for ask in asks]

    def release(self, sequences: Sequence[int]) -> None:
        """Forget sequences that ended or were preempted; unknown ones are ignored."""
        for sequence in sequences:
            cached = self._cached.pop(sequence, None)
            if cached is not None:
                self._blocks.free(cached.block_table)

    def reset(self) -> None:
        """Forget all sequences, after a pass raised: nobody knows what is in the cache."""
        self.release(list(self._cached))

    def _begin(self, asks: Sequence[Ask]) -> list[_Proposal]:
        """The sequences that can be worked on now, with what the draft model has not seen of them."""
        budget = self._max_step_tokens
        proposals = []
        for ask in asks:
            length = len(ask.tokens)
            # The last draft is never computed, and those that can be accepted end with the context.
            count = min(ask.num_tokens, self._runner.context_length - length + 1)
            cached = self._cached.get(ask.sequence) or _Cached()
            # The last token is computed in any case: its logits are needed.
            cached.num_computed = min(cached.num_right(ask.tokens), length - 1)
            stop = min(length, cached.num_computed + budget)
            unseen = ask.tokens[cached.num_computed : stop]
            if count < 1 or not unseen or max(unseen) >= self._runner.vocab_size:
                continue
            if stop < length:
                count = 0
            if not self._make_room(cached, stop + max(count - 1, 0)):
                continue
            self._cached[ask.sequence] = cached
            budget -= len(unseen)
            proposals.append(_Proposal(ask, cached, unseen, count))
        return proposals

    def _make_room(self, cached: _Cached, num_tokens: int) -> bool:
        missing = self._blocks.blocks_for(num_tokens) - len(cached.block_table)
        if missing > 0:
            if not self._blocks.can_allocate(missing):
                return False
            cached.block_table.extend(self._blocks.allocate(missing))
        return True

    def _forward(self, rows: list[_Proposal]) -> None:
        """One pass; a token for each row that wants one."""
        rows = sorted(rows, key=lambda row: len(row.step_tokens) > 1)
        logits = self._runner.forward(
            ForwardBatch(
                sequence_ids=[row.ask.sequence for row in rows],
                token_ids=[row.step_tokens for row in rows],
                num_computed_tokens=[row.cached.num_computed for row in rows],
                block_tables=[row.cached.block_table for row in rows],
                num_logits=[int(row.count > 0) for row in rows],
            )
        )
        chosen = iter(_largest(logits[:, : self._vocab_size]))
        for row in rows:
            row.cached.num_computed += len(row.step_tokens)
            row.step_tokens = []
            if row.count:
                token = next(chosen)
                row.tokens.append(token)
                row.step_tokens.append(token)


def _goes_on(row: _Proposal) -> bool:
    return 0 < len(row.tokens) < row.count and row.tokens[-1] not in row.ask.end_token_ids


def _largest(logits: NDArray[Any]) -> list[int]:
    """The first largest logit of each row of float32, or of bfloat16 bits in uint16."""
    if logits.dtype == np.uint16:
        logits = (logits.astype(np.uint32) << 16).view(np.float32)
    tokens: list[int] = logits.argmax(axis=1).tolist()
    return tokens
