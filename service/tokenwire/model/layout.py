"""Stores float32 weights the way oneDNN's matrix kernels (part of torch) read them fastest. Values stay as they are.

torch keeps a linear layer's weight row by row and calls MKL, which packs it anew at every call. oneDNN takes a weight
that was packed once. Measured on two Zen cores with AVX2, milliseconds for 30 layers (the head: one), packed against
as it comes:

=================  ===========  ===========  ===========  =============
out x in           1 row        4 rows       16 rows      64 rows
=================  ===========  ===========  ===========  =============
1,536 x 576        4.8 / 8.0    5.7 / 14.0   9.3 / 13.7   25.1 / 27.9
576 x 1,536        4.9 / 6.0    6.1 / 11.9   10.4 / 12.3  25.7 / 25.9
192 x 576          1.1 / 0.9    1.1 / 1.2    1.5 / 1.4    3.2 / 3.3
49,152 x 576 head  4.0 / 8.2    5.0 / 19.4   9.1 / 20.4   25.6 / 38.2
=================  ===========  ===========  ===========  =============
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
from transformers import PreTrainedModel

from tokenwire.model.memory import is_out_of_memory

_ROWS_HINT = 16
"""Rows that the packing is chosen for. Packed for one row 16 are a third slower, while one row gains nothing."""


class PackedLinear(torch.nn.Module):
    """A float32 linear layer on the CPU over a weight that oneDNN packed; made from one and equal to it."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS_HINT)
        # Opaque storage that still says its shape, type and device, as code around linear layers asks of a weight.
        self.weight = torch.nn.Parameter(packed, requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` is ``[..., in_features]``; the result ``[..., out_features]``."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self.bias, "none", [], "")
        return result

    def unpacked(self) -> torch.nn.Linear:
        """The plain layer that this one was made from."""
        linear = torch.nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = torch.nn.Parameter(self.weight.detach().to_dense(), requires_grad=False)
        linear.bias = self.bias
        return linear


@torch.inference_mode()
def arrange_weights_inplace(model: PreTrainedModel, progress: Callable[[str], None]) -> None:
    """Pack the linear layers of ``model`` that are float32 on the CPU, where torch is built with oneDNN.

    A head that is tied to the embedding becomes a copy: a token cannot be looked up in a packed matrix. Memory grows
    by that copy, and while packing by one layer. A model whose code works with the weights themselves cannot run so:
    it gets its layers back, with a line through ``progress``.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    _replace(model, lambda module: PackedLinear(module) if is_plain(module) else None)
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    try:
        model(input_ids=token, use_cache=False)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        _replace(model, lambda module: module.unpacked() if isinstance(module, PackedLinear) else None)
        progress(f"linear layers stay unpacked: {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")


def _replace(model: PreTrainedModel, replacement: Callable[[torch.nn.Module], torch.nn.Module | None]) -> None:
    for name, module in list(model.named_modules()):
        new = replacement(module)
        if new is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)


def is_plain(module: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    """Whether a module is a float32 linear layer on the CPU that may be replaced."""
    # Subclasses (quantized layers) have layouts of their own, and hooks (accelerate's, of a split model) expect theirs.
    if type(module) is not torch.nn.Linear or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
        return False
    weight: torch.Tensor = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
