"""The block manager hands out every block once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenwire.engine.block_manager import BlockManager


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_no_block_is_held_twice_and_none_is_lost(num_blocks: int, actions: list[tuple[bool, int]]) -> None:
    manager = BlockManager(num_blocks, 4)
    held: list[list[int]] = []
    for take, amount in actions:
        if take and manager.can_allocate(amount):
            held.append(manager.allocate(amount))
            assert len(held[-1]) == amount
        elif held and not take:
            manager.free(held.pop(amount % len(held)))
        blocks = [block for taken in held for block in taken]
        assert len(blocks) == len(set(blocks))
        assert set(blocks) <= set(range(num_blocks))
        assert manager.num_free == num_blocks - len(blocks)
    for taken in held:
        manager.free(taken)
    assert sorted(manager.allocate(num_blocks)) == list(range(num_blocks))


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_blocks_for_is_the_smallest_number_that_holds_the_tokens(num_tokens: int, block_size: int) -> None:
    count = BlockManager(1, block_size).blocks_for(num_tokens)
    assert count * block_size >= num_tokens
    assert (count - 1) * block_size < num_tokens


def test_more_than_is_free_is_refused_and_changes_nothing() -> None:
    manager = BlockManager(3, 4)
    assert not manager.can_allocate(4)
    with pytest.raises(ValueError, match="4 blocks were asked for and 3 are free"):
        manager.allocate(4)
    assert manager.num_free == 3


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_sizes_are_positive(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockManager(*sizes)
