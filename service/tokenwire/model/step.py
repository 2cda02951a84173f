"""The indices and masks of one forward pass, built once and shared by all layers.

A packed batch has N leading single-token rows (decode) and then chunks of a prompt. The hook asks for the index of the
attention window of its layer; a model with full and sliding layers builds two of them, every other model one.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwire.model.batch import ForwardBatch

_NO_WINDOW = 1 << 62


@dataclass(frozen=True, slots=True)
class KeyIndex:
    """Which cached keys some rows attend to, and which of those are masked."""

    slots: slice | None
    """Slots of a single row whose blocks lie side by side: its keys are a view, nothing is copied."""
    blocks: torch.Tensor | None
    """Otherwise the blocks to gather, int64 ``[rows * blocks per row]``."""
    num_keys: int
    """Keys per row after the gather, from the first one on; the last block's unused tail is cut off."""
    mask: torch.Tensor | None
    """Added to the scores, 0 or -inf, ``[rows, 1, queries, num_keys]`` (a decode row has one query); None: all seen."""
    is_causal: bool = False
    """The keys are the chunk's own, without context, and only the future is masked: nothing is read from the cache."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one prompt in the packed batch: ``[start, stop)`` of its token axis."""

    start: int
    stop: int
    num_computed: int
    table: NDArray[np.int64]


class Step:
    """One forward pass over a packed batch. Tensors are made on first use, on the device of the layer that asks."""

    def __init__(self, batch: ForwardBatch, block_size: int) -> None:
        self.block_size = block_size
        lengths = [len(tokens) for tokens in batch.token_ids]
        num_decode = 0
        while num_decode < len(lengths) and lengths[num_decode] == 1:
            num_decode += 1
        self.num_decode = num_decode
        """Leading rows of one token."""
        self.num_tokens = sum(lengths)
        self._decode_tables = batch.block_tables[:num_decode]
        self._decode_lengths = np.array(batch.num_computed_tokens[:num_decode], dtype=np.int64) + 1
        self.chunks: list[Chunk] = []
        positions = np.empty(self.num_tokens, dtype=np.int64)
        slots = np.empty(self.num_tokens, dtype=np.int64)
        fresh: list[int] = []
        start = 0
        for table, computed, length in zip(batch.block_tables, batch.num_computed_tokens, lengths, strict=True):
            stop = start + length
            last = computed + length - 1
            if length == 1:
                positions[start] = computed
                slots[start] = table[computed // block_size] * block_size + computed % block_size
            else:
                row = np.arange(computed, computed + length, dtype=np.int64)
                blocks = np.array(table[: last // block_size + 1], dtype=np.int64)
                positions[start:stop] = row
                slots[start:stop] = blocks[row // block_size] * block_size + row % block_size
            if start >= num_decode:
                blocks = np.array(table[: last // block_size + 1], dtype=np.int64)
                self.chunks.append(Chunk(start, stop, computed, blocks))
            if last // block_size * block_size >= computed and (last + 1) % block_size:
                fresh.append(table[last // block_size])
            start = stop
        self.positions = positions
        """Position of each token in its sequence, int64 ``[T]``."""
        self.slots = slots
        """Cache slot of each token, int64 ``[T]``."""
        self.fresh_blocks = fresh
        """Blocks that this step begins and does not fill."""
        self._on_device: dict[torch.device, torch.Tensor] = {}
        self._causal_masks: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._indices: dict[tuple[int, int | None, torch.device, torch.dtype], KeyIndex] = {}

    def slots_on(self, device: torch.device) -> torch.Tensor:
        """The tokens' slots as a tensor on ``device``."""
        slots = self._on_device.get(device)
        if slots is None:
            slots = self._on_device[device] = torch.from_numpy(self.slots).to(device)
        return slots

    def decode_index(self, window: int | None, device: torch.device, dtype: torch.dtype) -> KeyIndex:
        """Keys of the decode rows for layers that see the last ``window`` positions (None: all)."""
        key = (-1, window, device, dtype)
        index = self._indices.get(key)
        if index is None:
            index = self._indices[key] = self._build_decode_index(window or _NO_WINDOW, device, dtype)
        return index

    def chunk_index(self, number: int, window: int | None, device: torch.device, dtype: torch.dtype) -> KeyIndex:
        """Keys of the ``number``-th chunk for layers that see the last ``window`` positions (None: all)."""
        key = (number, window, device, dtype)
        index = self._indices.get(key)
        if index is None:
            index = self._build_chunk_index(self.chunks[number], window or _NO_WINDOW, device, dtype)
            self._indices[key] = index
        return index

    def causal_mask(self, num_queries: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Added to scores, ``[num_queries, keys]``: 0, and -inf above the diagonal of the last ``num_queries`` columns.

        Wide enough for the longest chunk, rounded up to whole parts of ``num_queries``.
        """
        mask = self._causal_masks.get((device, dtype))
        if mask is None:
            longest = max(chunk.stop - chunk.start for chunk in self.chunks)
            num_keys = -(-longest // num_queries) * num_queries
            future = np.triu(np.ones((num_queries, num_keys), dtype=np.bool_), num_keys - num_queries + 1)
            mask = self._causal_masks[device, dtype] = _additive(future, device, dtype)
        return mask

    def _build_decode_index(self, window: int, device: torch.device, dtype: torch.dtype) -> KeyIndex:
        size = self.block_size
        lengths = self._decode_lengths
        first_blocks = np.maximum(lengths - window, 0) // size
        last_blocks = (lengths + size - 1) // size
        num_blocks = int((last_blocks - first_blocks).max())
        # Columns past a row's end repeat its own first block: another row's values, even masked ones, could be NaN.
        gather = np.empty((len(lengths), num_blocks), dtype=np.int64)
        for row, (table, first, last) in enumerate(
            zip(self._decode_tables, first_blocks.tolist(), last_blocks.tolist(), strict=True)
        ):
            gather[row, : last - first] = table[first:last]
            gather[row, last - first :] = table[first]
        num_keys = int((lengths - first_blocks * size).max())
        positions = first_blocks[:, None] * size + np.arange(num_keys)
        hidden = (positions >= lengths[:, None]) | (positions < (lengths - window)[:, None])
        mask = _additive(hidden[:, None, None], device, dtype) if hidden.any() else None
        return _key_index(gather, num_keys, size, mask, device)

    def _build_chunk_index(self, chunk: Chunk, window: int, device: torch.device, dtype: torch.dtype) -> KeyIndex:
        length = chunk.stop - chunk.start
        if chunk.num_computed == 0 and length <= window:
            return KeyIndex(None, None, length, None, is_causal=True)
        size = self.block_size
        first_block = max(chunk.num_computed + 1 - window, 0) // size
        positions = np.arange(first_block * size, chunk.num_computed + length)
        queries = np.arange(chunk.num_computed, chunk.num_computed + length)[:, None]
        hidden = (positions > queries) | (positions <= queries - window)
        mask = _additive(hidden[None, None], device, dtype)
        return _key_index(chunk.table[None, first_block:], len(positions), size, mask, device)


def _key_index(
    gather: NDArray[np.int64], num_keys: int, block_size: int, mask: torch.Tensor | None, device: torch.device
) -> KeyIndex:
    if len(gather) == 1 and bool((np.diff(gather[0]) == 1).all()):
        first_slot = int(gather[0, 0]) * block_size
        return KeyIndex(slice(first_slot, first_slot + num_keys), None, num_keys, mask)
    return KeyIndex(None, torch.from_numpy(gather.reshape(-1)).to(device), num_keys, mask)


def _additive(hidden: NDArray[np.bool_], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(hidden.shape, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(hidden), -torch.inf)
    return mask.to(device)
