"""Blocks of the KV cache: which are free, who shares which, and how many a sequence needs.

Counts only; the runner owns the memory.
"""

from collections.abc import Iterable


class BlockManager:
    """Hands out blocks of ``block_size`` tokens, and knows how many sequences hold each.

    A block has one holder when it is handed out, and more after ``share``; it is free again when all of them gave it
    back. A block with several holders must not be written.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """Blocks 0 to ``num_blocks`` - 1."""
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks and block_size must be at least 1, got {num_blocks} and {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: blocks just freed are handed out first, while their memory is still in a cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._further_holders: dict[int, int] = {}
        """Holders beyond the first, of shared blocks only."""

    @classmethod
    def of(cls, blocks: list[int], block_size: int) -> "BlockManager":
        """Hands out ``blocks`` alone, which a manager of more has handed out as a whole."""
        manager = cls(len(blocks), block_size)
        manager._free = blocks[::-1]
        return manager

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def has_shared(self) -> bool:
        """Whether any block has several holders."""
        return bool(self._further_holders)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, count: int) -> bool:
        """Whether ``count`` blocks are free."""
        return count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks; the caller asked ``can_allocate`` before. Raises ValueError where it would not fit."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks were asked for and {len(self._free)} are free")
        start = len(self._free) - count
        taken = self._free[start:]
        del self._free[start:]
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Give each of ``blocks``, which are held, one holder more."""
        for block in blocks:
            self._further_holders[block] = self._further_holders.get(block, 0) + 1

    def is_shared(self, block: int) -> bool:
        """Whether ``block`` has several holders."""
        return block in self._further_holders

    def free(self, blocks: list[int]) -> None:
        """Give blocks back: each was allocated or shared, and is given back once for it."""
        if self._further_holders:
            blocks = [block for block in blocks if self._was_last_holder(block)]
        self._free.extend(blocks)

    def _was_last_holder(self, block: int) -> bool:
        further = self._further_holders.get(block, 0)
        if further > 1:
            self._further_holders[block] = further - 1
        elif further == 1:
            del self._further_holders[block]
        return further == 0
