"""The rows of one beam search, and the blocks that they share. Counts only; the search itself is in Rust.

A beam search is never preempted: recomputing it would take as many prefills as beams. Instead it is admitted only when
all blocks that it can ever need are free, and it takes them at once. Its beams share the blocks of what they have in
common, and a beam that writes into a shared block gets a copy first.
"""

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol

from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.row import GenerationT, Row


class BeamAnswerLike(Protocol):
    """What the engine reads of `tokenwire._native.BeamAnswer`, one returned sequence."""

    @property
    def token_ids(self) -> list[int]:
        """Generated tokens, the ending one included."""

    @property
    def text(self) -> str:
        """Their text, up to the stop string that matched."""

    @property
    def finish_reason(self) -> str | None:
        """Why the sequence ended; None: because the search was told that this step is the last."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that matched."""

    @property
    def stop_token_id(self) -> int | None:
        """The token that ended it."""

    @property
    def score(self) -> float:
        """Summed log probability over length ** length_penalty."""


class BeamStepLike(Protocol):
    """What the engine reads of `tokenwire._native.BeamStep`."""

    @property
    def parents(self) -> list[int]:
        """For each next beam the beam that it continues; empty when the search is over."""

    @property
    def token_ids(self) -> list[int]:
        """For each next beam its new token."""

    @property
    def answers(self) -> Sequence[BeamAnswerLike]:
        """The returned sequences, best first, when the search is over."""

    @property
    def error(self) -> str | None:
        """Why the search failed; then it is over without answers."""


class BeamSearchLike(Protocol):
    """What the engine calls of `tokenwire._native.BeamSearch`."""

    def step(self, logits: Any, *, is_last: bool = False) -> BeamStepLike:
        """Take the logits ``[num_beams, V]`` behind all beams, or those ``[1, V]`` behind the prompt."""


class Moves(NamedTuple):
    """What the runner copies before the next pass, all of it at once."""

    blocks: dict[int, int]
    """Source by target."""
    rows: list[tuple[int, int]]
    """Source and target ids, for runners that keep state by row and cannot share blocks."""


class BeamGroup(Generic[GenerationT]):
    """A beam search in the engine: ``rows[0]`` computes the prompt, then all rows take part."""

    def __init__(
        self,
        rows: list[Row[GenerationT]],
        search: BeamSearchLike,
        *,
        num_answers: int,
        block_size: int,
        shares_blocks: bool,
    ) -> None:
        self.rows = rows
        self.search = search
        self.num_answers = num_answers
        """Sequences that the request gets."""
        self._block_size = block_size
        self._shares_blocks = shares_blocks
        self._blocks: BlockManager | None = None
        first = rows[0]
        # Blocks that the prompt fills are never written again, so one copy serves all.
        self._num_common = first.num_prompt // block_size if shares_blocks else 0
        self._num_per_row = -(-first.max_cached_tokens // block_size)
        first.beams = self
        first.width = len(rows)
        for row in rows[1:]:
            row.is_mate = True

    @property
    def num_blocks(self) -> int:
        """Blocks that the search can need at most."""
        return self._num_common + len(self.rows) * (self._num_per_row - self._num_common)

    def begin(self, blocks: list[int]) -> None:
        """Take ``num_blocks`` blocks and give the first row those of the prompt."""
        self._blocks = BlockManager.of(blocks, self._block_size)
        if self._shares_blocks:
            self.rows[0].block_table = self._blocks.allocate(self._blocks.blocks_for(self.rows[0].num_prompt))
        else:
            for row in self.rows:
                row.block_table = self._blocks.allocate(self._num_per_row)
        for row in self.rows:
            row.num_slots = row.max_cached_tokens

    def end(self) -> list[int]:
        """Give all blocks back."""
        blocks, self._blocks = self._blocks, None
        for row in self.rows:
            if blocks is not None:
                blocks.free(row.block_table)
            row.block_table = []
        return [] if blocks is None else blocks.allocate(blocks.num_blocks)

    def advance(self, parents: list[int], token_ids: list[int]) -> Moves:
        """Let row j continue what row ``parents[j]`` holds with ``token_ids[j]``.

        Gives each row blocks up to its new token, none of which any other row holds where it writes.
        """
        first = self.rows[0]
        num_computed = len(first.tokens) if first.is_prefilling else first.num_computed + 1
        moves = Moves({}, [])
        if self._shares_blocks:
            self._inherit(parents)
        else:
            ids = [row.id for row in self.rows]
            moves.rows.extend((ids[parent], ids[place]) for place, parent in enumerate(parents) if parent != place)
        for row, token_id in zip(self.rows, token_ids, strict=True):
            row.num_computed = num_computed
            row.is_prefilling = False
            row.step_tokens = [token_id]
            if self._shares_blocks:
                self._extend(row, moves.blocks)
        first.mates = self.rows[1:]
        return moves

    def _inherit(self, parents: list[int]) -> None:
        assert self._blocks is not None  # noqa: S101 - between begin and end
        tables = [row.block_table for row in self.rows]
        for parent in parents:
            self._blocks.share(tables[parent])
        # Behind the sharing, so that only what no beam continues becomes free.
        for table in tables:
            self._blocks.free(table)
        for row, parent in zip(self.rows, parents, strict=True):
            row.block_table = tables[parent].copy()

    def _extend(self, row: Row[GenerationT], copies: dict[int, int]) -> None:
        blocks = self._blocks
        assert blocks is not None  # noqa: S101 - between begin and end
        place = row.num_computed // self._block_size
        if place == len(row.block_table):
            row.block_table += blocks.allocate(1)
        elif blocks.is_shared(shared := row.block_table[place]):
            (own,) = blocks.allocate(1)
            blocks.free([shared])
            row.block_table[place] = own
            copies[own] = shared
