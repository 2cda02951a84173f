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


CAUSAL_PART = 128
"""Queries that attend together where a long chunk is split."""

_SPLIT_FROM = 256
"""Tokens of a chunk above which splitting it is faster."""


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

    num_heads, num_kv_heads = query.shape[1], key.shape[1]
    group = num_heads // num_kv_heads
    num_decode = step.num_decode
    parts: list[torch.Tensor] = []
    if num_decode:
        index = step.decode_index(sliding_window, device, query.dtype)
        rows = query[0, :, :num_decode].transpose(0, 1).reshape(num_decode, num_kv_heads, group, -1)
        cached_keys, cached_values = _gather(context.cache, layer, index, num_decode)
        # The heads of a group share their keys: as further queries of one head, no key is repeated.
        sinks = None if s_aux is None else s_aux.view(1, num_kv_heads, group, 1).expand(num_decode, -1, -1, -1)
        out = _attend(rows, cached_keys, cached_values, index, scaling, softcap=softcap, sinks=sinks)
        parts.append(out.reshape(1, num_decode, num_heads, -1))
    for number, chunk in enumerate(step.chunks):
        index = step.chunk_index(number, sliding_window, device, query.dtype)
        tokens = slice(chunk.start, chunk.stop)
        if index.is_causal:
            chunk_keys, chunk_values = key[:, :, tokens], value[:, :, tokens]
        else:
            chunk_keys, chunk_values = _gather(context.cache, layer, index, 1)
        sinks = None if s_aux is None else s_aux.view(1, num_heads, 1, 1)
        if index.is_causal and sinks is None and softcap is None and chunk.stop - chunk.start > _SPLIT_FROM:
            out = _attend_causally_in_parts(query[:, :, tokens], chunk_keys, chunk_values, step, scaling)
        else:
            out = _attend(query[:, :, tokens], chunk_keys, chunk_values, index, scaling, softcap=softcap, sinks=sinks)
        parts.append(out.transpose(1, 2))
    return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()), None


def _gather(cache: KVCache, layer: int, index: KeyIndex, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows' cached keys and values, ``[rows, Hkv, num_keys, D]``, as strided views; valid until the next gather."""
    keys, values = cache.layers[layer]
    if index.slots is not None:
        return keys[index.slots].transpose(0, 1)[None], values[index.slots].transpose(0, 1)[None]
    assert index.blocks is not None  # noqa: S101 - one of the two is always there
    gathered = []
    for place, storage in enumerate((keys, values)):
        _, num_kv_heads, dim = storage.shape
        blocks = storage.view(cache.num_blocks, -1)
        out = cache.workspace(place, index.blocks.numel(), blocks)
        torch.index_select(blocks, 0, index.blocks, out=out)
        gathered.append(out.view(num_rows, -1, num_kv_heads, dim)[:, : index.num_keys].transpose(1, 2))
    return gathered[0], gathered[1]


def _attend_causally_in_parts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, step: Step, scaling: float
) -> torch.Tensor:
    """``[1, heads, T, Dv]`` of T tokens that see themselves and those before them, some queries at a time.

    torch's fused function computes the keys behind a query as well and masks them; a part of the queries is given only
    the keys up to its end. 512 tokens, 9 heads of 64, two cores: 3.7 ms instead of 4.7.
    """
    mask = step.causal_mask(CAUSAL_PART, query.device, query.dtype)
    parts = []
    for start in range(0, query.shape[2], CAUSAL_PART):
        stop = min(start + CAUSAL_PART, query.shape[2])
        # The mask's triangle is at its right end: moved so that it lies over this part's own keys.
        first_column = mask.shape[1] - CAUSAL_PART - start
        part_mask = mask[: stop - start, first_column : first_column + stop]
        part_index = KeyIndex(None, None, stop, part_mask)
        parts.append(_attend(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], part_index, scaling))
    return torch.cat(parts, dim=2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    index: KeyIndex,
    scaling: float,
    *,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """``[rows, heads, queries, Dv]`` of ``query`` ``[rows, heads, queries, D]`` over the keys of ``index``.

    ``sinks``: one logit per head, broadcastable to ``[rows, heads, queries, 1]``.
    """
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=index.mask,
            is_causal=index.is_causal,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    # torch's fused function knows neither: the formula, written out.
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
