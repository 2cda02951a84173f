"""The paged KV cache: its size, and its storage.

A slot holds one token's keys and values of one layer; a block is ``block_size`` neighbouring slots. Blocks are handed
out by the engine's block manager; here they are only storage.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from tokenwire.config import EngineConfig
from tokenwire.errors import ModelLoadError
from tokenwire.model.memory import format_size, free_memory


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer caches per token: keys ``[num_kv_heads, key_dim]``, values ``[num_kv_heads, value_dim]``."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values."""
        return self.num_kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class KVCache:
    """Storage for the keys and values of all layers, zeroed."""

    def __init__(self, shapes: list[LayerShape], num_blocks: int, block_size: int) -> None:
        """``shapes``: one per layer. The size is for the caller to choose (`choose_num_blocks`)."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        num_slots = num_blocks * block_size
        self._storages: list[torch.Tensor] = []
        """``[layers of one shape, blocks, values of one block]``"""
        self._workspaces: dict[tuple[int, torch.device, torch.dtype], torch.Tensor] = {}
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = [_EMPTY] * len(shapes)
        """Keys ``[num_slots, num_kv_heads, key_dim]`` and values ``[num_slots, num_kv_heads, value_dim]`` by layer."""
        for shape in dict.fromkeys(shapes):
            members = [number for number, other in enumerate(shapes) if other == shape]
            heads = shape.num_kv_heads
            for place, dim in enumerate((shape.key_dim, shape.value_dim)):
                storage = _zeros((len(members), num_slots, heads, dim), shape)
                self._storages.append(storage.view(len(members), num_blocks, -1))
                for member, layer_storage in zip(members, storage, strict=True):
                    keys, values = self.layers[member]
                    self.layers[member] = (layer_storage, values) if place == 0 else (keys, layer_storage)

    def workspace(self, place: int, num_rows: int, like: torch.Tensor) -> torch.Tensor:
        """Uninitialized ``[num_rows, columns of like]``, of the type and device of ``like``, reused by every call.

        A fresh tensor of some megabytes per layer is fresh pages to fault in: measured twice the time of the copy.
        ``place``: 0 and 1 may be in use together.
        """
        key = (place, like.device, like.dtype)
        size = num_rows * like.shape[1]
        buffer = self._workspaces.get(key)
        if buffer is None or buffer.numel() < size:
            # A quarter more than asked, because sequences grow.
            buffer = self._workspaces[key] = torch.empty(size + size // 4, dtype=like.dtype, device=like.device)
        return buffer[:size].view(num_rows, -1)

    def clear_blocks(self, blocks: list[int]) -> None:
        """Zero these blocks in all layers.

        Attention reads whole blocks and masks what lies behind a sequence's end. A masked score times a NaN that a
        failed sequence left there would still be NaN: so a block is cleared when a sequence begins it.
        """
        index = torch.tensor(blocks)
        for storage in self._storages:
            storage.index_fill_(1, index.to(storage.device), 0)

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """Fill each target block with the content of the source at its place, in all layers; reads before it writes."""
        source, target = torch.tensor(sources), torch.tensor(targets)
        for storage in self._storages:
            content = storage.index_select(1, source.to(storage.device))
            storage.index_copy_(1, target.to(storage.device), content)


_EMPTY = (torch.empty(0), torch.empty(0))


def _zeros(size: tuple[int, ...], shape: LayerShape) -> torch.Tensor:
    """Zeros that on the CPU take memory only as blocks are first used: numpy asks the system for zeroed pages.

    torch.zeros writes them: a 6 GiB cache would be resident before the first request.
    """
    if shape.device.type != "cpu":
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
    pages = np.zeros(math.prod(size) * shape.dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(pages).view(shape.dtype).view(size)


def choose_num_blocks(shapes: list[LayerShape], engine: EngineConfig, context_length: int) -> int:
    """Blocks of the KV cache: what `kv_cache_memory`, or `kv_cache_fraction` of the free memory, has room for.

    Never more than ``max_running`` sequences of ``context_length`` tokens can use. A prompt that does not fit the
    cache is refused by the engine, so less than one whole context is allowed; less than one block is not, nor more
    memory than is free: ModelLoadError, in numbers.
    """
    needed = engine.max_running * math.ceil(context_length / engine.block_size)
    block_bytes: dict[torch.device, int] = {}
    for shape in shapes:
        block_bytes[shape.device] = block_bytes.get(shape.device, 0) + shape.bytes_per_token * engine.block_size
    if not block_bytes:  # a recurrent model: its state does not grow with the sequence
        return needed
    total_block_bytes = sum(block_bytes.values())
    budgets = {device: free_memory(device) for device in block_bytes}
    asked = engine.kv_cache_bytes
    if asked is not None:
        num_blocks = min(needed, asked // total_block_bytes)
        if num_blocks < 1:
            raise ModelLoadError(
                f"kv_cache_memory is {format_size(asked)}, but one block of {engine.block_size} tokens takes "
                f"{format_size(total_block_bytes)}; raise kv_cache_memory"
            )
        for device, size in block_bytes.items():
            if num_blocks * size > budgets[device]:
                raise ModelLoadError(
                    f"the KV cache would take {format_size(num_blocks * size)} on {device}, where "
                    f"{format_size(budgets[device])} are free; lower kv_cache_memory"
                )
        return num_blocks
    fits = min(int(budgets[device] * engine.kv_cache_fraction) // size for device, size in block_bytes.items())
    if fits < 1:
        free = ", ".join(f"{format_size(size)} on {device}" for device, size in budgets.items())
        raise ModelLoadError(
            f"one block of {engine.block_size} tokens of KV cache takes {format_size(total_block_bytes)}, but "
            f"kv_cache_fraction {engine.kv_cache_fraction:g} of the free memory ({free}) is less"
        )
    return min(needed, fits)
