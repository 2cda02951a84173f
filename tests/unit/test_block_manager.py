"""The block manager: no block is lost, none has an owner too many, and what is shared is known to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tokenwire.engine.block_manager import BlockManager


class BlockManagerMachine(RuleBasedStateMachine):
    """Tables of blocks come, are forked, write, and go, as sequences do; the model is the tables themselves."""

    @initialize(num_blocks=st.integers(1, 20), part=st.booleans())
    def start(self, num_blocks: int, part: bool) -> None:
        self.manager = BlockManager(num_blocks, 4)
        if part:
            # A manager of blocks that another one handed out keeps the same laws.
            whole = BlockManager(num_blocks + 5, 4)
            whole.allocate(3)
            self.manager = BlockManager.of(whole.allocate(num_blocks), 4)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, 6))
    def allocate(self, count: int) -> None:
        free = self.manager.num_free
        assert self.manager.can_allocate(count) == (count <= free)
        if count > free:
            with pytest.raises(ValueError, match=f"{count} blocks were asked for and {free} are free"):
                self.manager.allocate(count)
            return
        table = self.manager.allocate(count)
        assert len(table) == count
        assert not set(table) & {block for other in self.tables for block in other}
        self.tables.append(table)

    @rule(pick=st.integers(0, 100), length=st.integers(0, 6))
    def fork(self, pick: int, length: int) -> None:
        if self.tables:
            table = self.tables[pick % len(self.tables)][:length]
            self.manager.share(table)
            self.tables.append(table)

    @rule(pick=st.integers(0, 100))
    def write_into_the_last_block(self, pick: int) -> None:
        """Copy on write: a shared block is exchanged for one of one's own."""
        table = self.tables[pick % len(self.tables)] if self.tables else []
        if table and self.manager.is_shared(table[-1]) and self.manager.can_allocate(1):
            (own,) = self.manager.allocate(1)
            self.manager.free([table[-1]])
            table[-1] = own
            assert not self.manager.is_shared(own)

    @rule(pick=st.integers(0, 100))
    def free(self, pick: int) -> None:
        if self.tables:
            self.manager.free(self.tables.pop(pick % len(self.tables)))

    @invariant()
    def holders_are_counted(self) -> None:
        if not hasattr(self, "manager"):
            return
        held = [block for table in self.tables for block in table]
        assert self.manager.num_free == self.manager.num_blocks - len(set(held))
        assert all(self.manager.is_shared(block) == (held.count(block) > 1) for block in held)
        assert self.manager.has_shared == (len(held) > len(set(held)))

    def teardown(self) -> None:
        if not hasattr(self, "manager"):
            return
        for table in self.tables:
            self.manager.free(table)
        blocks = self.manager.allocate(self.manager.num_blocks)
        assert len(set(blocks)) == len(blocks)


TestBlockManager = BlockManagerMachine.TestCase


def test_blocks_are_numbered_from_0() -> None:
    assert sorted(BlockManager(5, 4).allocate(5)) == [0, 1, 2, 3, 4]


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_blocks_for_is_the_smallest_number_that_holds_the_tokens(num_tokens: int, block_size: int) -> None:
    count = BlockManager(1, block_size).blocks_for(num_tokens)
    assert count * block_size >= num_tokens
    assert (count - 1) * block_size < num_tokens


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_sizes_are_positive(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockManager(*sizes)
