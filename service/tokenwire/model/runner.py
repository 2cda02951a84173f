"""Chooses and builds the runner of a loaded model."""

from collections.abc import Callable, Sequence

import torch

from tokenwire.config import EngineConfig
from tokenwire.errors import ModelLoadError
from tokenwire.model.gate import GateError, open_paged_path
from tokenwire.model.kernels import Kernels
from tokenwire.model.kv_cache import KVCache, LayerShape, choose_num_blocks
from tokenwire.model.layers import prepare_layers_inplace
from tokenwire.model.loader import LoadedModel
from tokenwire.model.memory import format_size, is_out_of_memory, usable_cores
from tokenwire.model.padded import PaddedRunner, probe_cache
from tokenwire.model.padded_check import check_alone, decodes_in_batches, overlooked_window
from tokenwire.model.paged import PagedRunner


def make_runner(
    loaded: LoadedModel,
    engine: EngineConfig,
    progress: Callable[[str], None],
    *,
    kernels: Kernels | None = None,
    beside: Sequence[LayerShape] = (),
) -> PagedRunner | PaddedRunner:
    """The runner for ``loaded``: paged if the gate opens, else padded, with the reason. Sets torch's thread count.

    ``forward_path`` and ``forward_path_reason`` of the result say which and why. ModelLoadError when the KV cache does
    not fit. A cache that holds less than one context lowers ``context_length`` to what it holds, with a line through
    ``progress``: so whatever respects the context can always run alone. So does a sliding window of which only the
    model's cache in transformers knows. ``kernels`` serve 4-bit linear layers on the CPU, and the output head beside
    them; None, or ``forward_kernels`` off, leaves them to bitsandbytes and torch.
    ``beside``: what another model, the draft model, caches per token; the memory of the KV cache holds as many tokens
    for both.
    """
    torch.set_num_threads(engine.threads or usable_cores())
    try:
        return _make_runner(loaded, engine, progress, kernels, beside)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"{loaded.path}: out of memory while the KV cache was set up; lower kv_cache_memory"
        ) from error


def _make_runner(
    loaded: LoadedModel,
    engine: EngineConfig,
    progress: Callable[[str], None],
    kernels: Kernels | None,
    beside: Sequence[LayerShape],
) -> PagedRunner | PaddedRunner:
    model, vocab_size = loaded.model, loaded.vocab_size
    on_kernels = prepare_layers_inplace(loaded, engine, progress, kernels)
    if on_kernels:
        on_kernels = f"; {on_kernels}"
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
    longest = loaded.context_length
    if reason:
        probe = probe_cache(model)
        keeps_plain_cache, shapes = probe.is_plain, probe.shapes
        if keeps_plain_cache and not decodes_in_batches(model, vocab_size, quantization=loaded.quantization):
            keeps_plain_cache = False
            reason += "; in a left-padded batch its logits are others, so sequences run one at a time"
        if not keeps_plain_cache:
            check_alone(model, vocab_size)
        elif bound := overlooked_window(model, probe, vocab_size, longest, quantization=loaded.quantization):
            reason += f"; {bound.reason}"
            progress(f"context lowered from {longest} to {bound.window} tokens: {bound.reason}")
            longest = bound.window
    num_blocks = choose_num_blocks([*shapes, *beside], engine, longest)
    capacity = num_blocks * engine.block_size
    kv_bytes = capacity * sum(shape.bytes_per_token for shape in (*shapes, *beside))
    progress(f"KV cache: {capacity} tokens in {num_blocks} blocks, {format_size(kv_bytes)}")
    context_length = min(longest, capacity)
    if context_length < longest:
        progress(f"context lowered from {longest} to {context_length} tokens: the KV cache holds no more")
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
