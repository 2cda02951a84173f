"""Blocks of the KV cache: which are free, and how many a sequence needs. Counts only; the runner owns the memory."""


class BlockManager:
    """Hands out ``num_blocks`` blocks of ``block_size`` tokens, numbered from 0."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks and block_size must be at least 1, got {num_blocks} and {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: blocks just freed are handed out first, while their memory is still in a cache.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

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

    def free(self, blocks: list[int]) -> None:
        """Give blocks back; each was allocated and is given back once."""
        self._free.extend(blocks)
