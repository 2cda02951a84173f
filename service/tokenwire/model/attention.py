"""The paged attention hook: transformers calls it once per layer in place of its own attention function.

It runs under ``model.set_attn_implementation("tokenwire_paged")`` on a packed batch ``[1, T]``. What the packing means
comes from the ``PagedContext`` that the runner makes current for the pass, not from keyword arguments: some
architectures drop those they do not know.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from tokenwire.model.kv_cache import KVCache
from tokenwire.model.step import KeyIndex, Step

IMPLEMENTATION = "tokenwire_paged"
"""Name under which the hook is registered with transformers."""


@dataclass(slots=True)
class PagedContext:
    """What the hook needs to know about the pass that it runs in."""

    step: Step
    cache: KVCache


_current: ContextVar[PagedContext] = ContextVar("tokenwire_paged_context")


@contextmanager
def paged(context: PagedContext) -> Iterator[None]:
    """Make ``context`` the one that the hook reads, for the time of one forward pass."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def register() -> None:
    """Register the hook with transformers. No mask function goes with it, so transformers builds no mask."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, paged_attention)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from T packed tokens to their sequences' cached keys, after adding their own to the cache.

    ``query`` is ``[1, Hq, T, D]``, ``key`` ``[1, Hkv, T, D]`` and ``value`` ``[1, Hkv, T, Dv]`` after RoPE; the result
    is ``[1, T, Hq, Dv]``, contiguous. ``sliding_window``: positions that a token sees, itself included. ``softcap``:
    scores become ``softcap * tanh(scores / softcap)`` (Gemma 2). ``s_aux``: one sink logit per head that takes part in
    the softmax and carries no value (gpt-oss). ``attention_mask`` and ``dropout`` are unused: serving has neither.
    """
    context = _current.get()
    step = context.step
    layer: int = module.layer_idx  # type: ignore[assignment]
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    device = query.device
    keys, values = context.cache.layers[layer]
    new_keys, new_values = key[0].transpose(0, 1), value[0].transpose(0, 1)
    slots = step.slots_on(device)
    keys.index_copy_(0, slots, new_keys)
    values.index_copy_(0, slots, new_values)

    attend = _attend if softcap is None and s_aux is None else _attend_explicitly
    num_heads, num_kv_heads = query.shape[1], key.shape[1]
    group = num_heads // num_kv_heads
    num_decode = step.num_decode
    parts: list[torch.Tensor] = []
    if num_decode:
        index = step.decode_index(sliding_window, device, query.dtype)
        rows = query[0, :, :num_decode].transpose(0, 1).reshape(num_decode, num_kv_heads, group, -1)
        cached_keys, cached_values = _gather(keys, values, index, num_decode, step.block_size)
        # The heads of a group share their keys: as further queries of one head, no key is repeated.
        sinks = None if s_aux is None else s_aux.view(1, num_kv_heads, group, 1).expand(num_decode, -1, -1, -1)
        out = attend(rows, cached_keys, cached_values, index, scaling, softcap, sinks)
        parts.append(out.reshape(1, num_decode, num_heads, -1))
    for number, chunk in enumerate(step.chunks):
        index = step.chunk_index(number, sliding_window, device, query.dtype)
        tokens = slice(chunk.start, chunk.stop)
        if index.is_causal:
            chunk_keys, chunk_values = key[:, :, tokens], value[:, :, tokens]
        else:
            chunk_keys, chunk_values = _gather(keys, values, index, 1, step.block_size)
        sinks = None if s_aux is None else s_aux.view(1, num_heads, 1, 1)
        out = attend(query[:, :, tokens], chunk_keys, chunk_values, index, scaling, softcap, sinks)
        parts.append(out.transpose(1, 2))
    return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()), None


def _gather(
    keys: torch.Tensor, values: torch.Tensor, index: KeyIndex, num_rows: int, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows' cached keys and values, ``[rows, Hkv, num_keys, D]``, as strided views of block-major storage."""
    if index.slots is not None:
        return keys[index.slots].transpose(0, 1)[None], values[index.slots].transpose(0, 1)[None]
    assert index.blocks is not None  # noqa: S101 - one of the two is always there
    gathered = []
    for storage in (keys, values):
        blocks = storage.view(-1, block_size * storage.shape[1] * storage.shape[2]).index_select(0, index.blocks)
        rows = blocks.view(num_rows, -1, storage.shape[1], storage.shape[2])
        gathered.append(rows[:, : index.num_keys].transpose(1, 2))
    return gathered[0], gathered[1]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    index: KeyIndex,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=index.mask,
        is_causal=index.is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_explicitly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    index: KeyIndex,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with a soft cap or sinks, which torch's fused function does not know."""
    batch, num_heads, num_queries, _ = query.shape
    num_kv_heads = key.shape[1]
    grouped = query.reshape(batch, num_kv_heads, -1, query.shape[-1])
    scores = (grouped @ key.transpose(2, 3)).view(batch, num_heads, num_queries, -1) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if index.mask is not None:
        scores = scores + index.mask
    elif index.is_causal:
        future = torch.ones(num_queries, num_queries, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    if sinks is not None:
        sink_column = sinks.to(scores.dtype).expand(batch, num_heads, num_queries, 1)
        scores = torch.cat([scores, sink_column], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    out = weights.reshape(batch, num_kv_heads, -1, weights.shape[-1]) @ value
    return out.view(batch, num_heads, num_queries, -1)
