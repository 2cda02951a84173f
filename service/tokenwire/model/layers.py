"""Puts the fastest linear layers that this machine has under a loaded model."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from tokenwire.config import EngineConfig
from tokenwire.model.kernels import KernelLinear, Kernels, MakeLinear, check, random_rows
from tokenwire.model.layout import arrange_weights_inplace, is_plain
from tokenwire.model.linear4bit import use_kernels_inplace
from tokenwire.model.loader import LoadedModel


def prepare_layers_inplace(
    loaded: LoadedModel, engine: EngineConfig, progress: Callable[[str], None], kernels: Kernels | None
) -> str:
    """Replace 4-bit layers, and the output head beside them, by kernels and pack float32 ones, on the CPU.

    Says what became of the 4-bit ones; the text is empty where there are none. ``kernels``: None, or
    ``forward_kernels`` off, leaves them to bitsandbytes and the head to torch.
    """
    outcome = ""
    if kernels is not None and engine.forward_kernels != "off" and loaded.quantization in ("nf4", "fp4"):
        progress("repacking 4-bit weights")
        outcome = str(use_kernels_inplace(loaded.model, kernels.linear4bit))
        if outcome:
            progress(outcome)
            use_kernel_for_head(loaded.model, kernels.linear, progress)
    arrange_weights_inplace(loaded.model, progress)
    return outcome


@torch.no_grad()
def use_kernel_for_head(model: PreTrainedModel, make_linear: MakeLinear, progress: Callable[[str], None]) -> None:
    """Give a float32 output head a kernel as well, so that no other threads than the kernels' have much to do.

    49,152 x 576, two Zen cores: 3.3 ms at one row and 8 at sixteen; packed for oneDNN 4.0 and 9.1. A head that is tied
    to the embedding becomes a copy. One that no kernel can serve stays as it is, with a line through ``progress``.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or not is_plain(head):
        return
    bias = None if head.bias is None else head.bias.detach().numpy()
    embedding = model.get_input_embeddings()
    is_tied = getattr(embedding, "weight", None) is head.weight
    own = [] if is_tied else [head.weight]
    own += [] if head.bias is None else [head.bias]
    try:
        kernel = make_linear(head.weight.detach().numpy(), bias=bias)
        layer = KernelLinear(kernel, parameter_count=sum(parameter.numel() for parameter in own))
        rows = random_rows(head.in_features)
        check(layer, rows, head(rows))
    except ValueError as error:
        progress(f"the output head stays with torch: {error}")
        return
    model.set_output_embeddings(layer)  # type: ignore[no-untyped-call]
