"""Chooses and builds the runner of a loaded model."""

from collections.abc import Callable

import torch

from tokenwire.config import EngineConfig
from tokenwire.errors import ModelLoadError
from tokenwire.model.gate import GateError, open_paged_path
from tokenwire.model.kernels import Kernels
from tokenwire.model.kv_cache import KVCache, choose_num_blocks
from tokenwire.model.layout import arrange_weights_inplace
from tokenwire.model.linear4bit import use_kernels_inplace
from tokenwire.model.loader import LoadedModel
from tokenwire.model.memory import format_size, usable_cores
from tokenwire.model.padded import PaddedRunner, probe_cache
from tokenwire.model.paged import PagedRunner


def make_runner(
    loaded: LoadedModel,
    engine: EngineConfig,
    progress: Callable[[str], None],
    *,
    kernels: Kernels | None = None,
) -> PagedRunner | PaddedRunner:
    """The runner for ``loaded``: paged if the gate opens, else padded, with the reason. Sets torch's thread count.

    ``forward_path`` and ``forward_path_reason`` of the result say which and why. ModelLoadError when the KV cache does
    not fit. A cache that holds less than one context lowers ``context_length`` to what it holds, with a line through
    ``progress``: so whatever respects the context can always run alone. ``kernels`` serve 4-bit linear layers and a
    float32 output head on the CPU; None, or ``forward_kernels`` off, leaves them to bitsandbytes and torch.
    """
    torch.set_num_threads(engine.threads or usable_cores())
    try:
        return _make_runner(loaded, engine, progress, None if engine.forward_kernels == "off" else kernels)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelLoadError(
            f"{loaded.path}: out of memory while the KV cache was set up; lower kv_cache_memory"
        ) from error


def _make_runner(
    loaded: LoadedModel, engine: EngineConfig, progress: Callable[[str], None], kernels: Kernels | None
) -> PagedRunner | PaddedRunner:
    model, vocab_size = loaded.model, loaded.vocab_size
    on_kernels = ""
    if kernels is not None and loaded.quantization in ("nf4", "fp4"):
        progress("repacking 4-bit weights")
        if outcome := str(use_kernels_inplace(model, kernels.linear4bit)):
            progress(outcome)
            on_kernels = f"; {outcome}"
    if problem := arrange_weights_inplace(model, None if kernels is None else kernels.linear):
        progress(f"the output head stays with torch: {problem}")
    reason = ""
    if engine.forward_path == "padded":
        reason = "forward_path is set to padded"
    else:
        progress("checking the paged forward")
        try:
            shapes = open_paged_path(model, vocab_size, quantization=loaded.quantization)
        except GateError as error:
            reason = str(error)
    keeps_plain_cache = True
    if reason:
        keeps_plain_cache, shapes = probe_cache(model)
    num_blocks = choose_num_blocks(shapes, engine, loaded.context_length)
    capacity = num_blocks * engine.block_size
    kv_bytes = capacity * sum(shape.bytes_per_token for shape in shapes)
    progress(f"KV cache: {capacity} tokens in {num_blocks} blocks, {format_size(kv_bytes)}")
    context_length = min(loaded.context_length, capacity)
    if context_length < loaded.context_length:
        progress(f"context lowered from {loaded.context_length} to {context_length} tokens: the KV cache holds no more")
    if not reason:
        cache = KVCache(shapes, num_blocks, engine.block_size)
        return PagedRunner(
            model, cache, vocab_size=vocab_size, context_length=context_length, reason=f"self-test passed{on_kernels}"
        )
    progress(f"padded forward: {reason}")
    return PaddedRunner(
        model,
        vocab_size=vocab_size,
        context_length=context_length,
        num_blocks=num_blocks,
        block_size=engine.block_size,
        keeps_plain_cache=keeps_plain_cache,
        reason=f"{reason}{on_kernels}",
    )
