"""Decides whether a model may run on the paged hook, by what its class says and by what it does.

Some architectures (bloom, falcon, mpt, gpt_neo, mamba, qwen3_next) accept an attention implementation and never call
it: they would give wrong logits without an error. So a model passes only when its class supports attention backends,
all its layers are full or sliding attention, the hook was called exactly once per layer with the layer's own window,
and packed logits equal plain ones on random tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from tokenwire.model import attention
from tokenwire.model.kv_cache import LayerShape
from tokenwire.model.memory import is_out_of_memory
from tokenwire.model.self_test import packed_error, tolerance

_PROBE = "tokenwire_probe"
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class GateError(Exception):
    """The model may not run on the paged hook; the message says why."""


@dataclass(frozen=True, slots=True)
class _Call:
    layer: int
    window: int | None
    shape: LayerShape


def open_paged_path(model: PreTrainedModel, vocab_size: int, *, quantization: str) -> list[LayerShape]:
    """Set the hook on ``model`` and return what each layer caches; or leave it as it was and raise GateError."""
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        raise GateError(f"{name} does not support attention backends")
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    others = set(layer_types or ()) - _LAYER_TYPES
    if others:
        raise GateError(f"{name} has layers of type {', '.join(sorted(others))}")
    original = config._attn_implementation
    try:
        calls = _probe(model)
        shapes = _check_calls(calls, config, layer_types)
        attention.register()
        limit = tolerance(model.dtype, quantization)
        error = packed_error(model, shapes, vocab_size, original, max_window=max((c.window or 0) for c in calls))
        if not error <= limit:  # NaN is a failure too
            raise GateError(
                f"self-test: packed logits of {name} differ from plain ones by {error:.2g} (at most {limit:g})"
            )
        model.set_attn_implementation(attention.IMPLEMENTATION)
    except GateError:
        model.set_attn_implementation(original)
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Whatever an architecture does with the hook, it is no reason to refuse the model: the padded path is left.
        model.set_attn_implementation(original)
        first_line = str(error).splitlines()[0] if str(error) else ""
        raise GateError(f"self-test of {name} raised {type(error).__name__}: {first_line}") from error
    return shapes


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> list[_Call]:
    """One token through the model with an attention function that only takes notes."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls: list[_Call] = []

    def note(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is not None:
            raise GateError(f"{type(model).__name__} passes a mask of its own to attention")
        shape = LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device)
        calls.append(_Call(module.layer_idx, sliding_window, shape))  # type: ignore[arg-type]
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    ALL_ATTENTION_FUNCTIONS.register(_PROBE, note)
    model.set_attn_implementation(_PROBE)
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model(input_ids=tokens, position_ids=tokens, use_cache=False)
    return calls


def _check_calls(calls: list[_Call], config: Any, layer_types: list[str] | None) -> list[LayerShape]:
    num_layers: int = config.num_hidden_layers
    layers = sorted(call.layer for call in calls)
    if layers != list(range(num_layers)):
        raise GateError(f"the attention function was called for layers {layers} of {num_layers}")
    by_layer = {call.layer: call for call in calls}
    window = getattr(config, "sliding_window", None)
    for number in range(num_layers):
        if layer_types is not None:
            expected = window if layer_types[number] == "sliding_attention" else None
        else:
            expected = window
        if by_layer[number].window != expected:
            raise GateError(
                f"layer {number} attends with window {by_layer[number].window}, its configuration says {expected}"
            )
    return [by_layer[number].shape for number in range(num_layers)]
