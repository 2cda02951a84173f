"""Stores float32 weights the way the CPU's matrix kernels read them fastest. Values stay as they are.

Measured on two Zen cores with AVX2, milliseconds, one row / 16 rows:

====================  ==================  =================================
49,152 x 576 head     as it comes         8.6 / 28
                      blocked             5.6 / 20
                      own kernel          3.3 / 8
30 of 1,536 x 576     as they come        10.5 / 20
                      transposed          6.0 / 20-24
====================  ==================  =================================
"""

from typing import TypeGuard

import torch
from transformers import PreTrainedModel

from tokenwire.model.kernels import KernelLinear, MakeLinear, check, random_rows

_BLOCK = 3072
"""Columns per block of the output head: a block of it fits a cache, and the product of 16 rows stays efficient."""


class BlockedHead(torch.nn.Module):
    """A wide linear layer whose weight is kept as transposed blocks of neighbouring output columns."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        blocks = (rows.detach().t().contiguous() for rows in linear.weight.split(_BLOCK))  # type: ignore[no-untyped-call]
        self.blocks = torch.nn.ParameterList(torch.nn.Parameter(block, requires_grad=False) for block in blocks)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` is ``[..., in_features]``; logits ``[..., out_features]``."""
        rows = hidden.reshape(-1, self.in_features)
        logits = rows.new_empty(len(rows), self.out_features)
        start = 0
        for block in self.blocks:
            stop = start + block.shape[1]
            torch.mm(rows, block, out=logits[:, start:stop])
            start = stop
        if self.bias is not None:
            logits += self.bias
        return logits.view(*hidden.shape[:-1], self.out_features)


@torch.no_grad()
def arrange_weights_inplace(model: PreTrainedModel, make_linear: MakeLinear | None = None) -> str:
    """Transpose the linears that widen their input, and give a wide output head a kernel, where float32 on the CPU.

    Without ``make_linear``, or where its kernel cannot serve the head, the head is blocked. Returns why it cannot.

    A head that is tied to the embedding becomes a copy: looking a token up in a matrix in this order would touch as
    many cache lines as the token has values. Linears that narrow their input are slower transposed, so they stay.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for module in model.modules():
        if module is not head and _is_plain(module) and module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()
    if head is None or not _is_plain(head) or head.out_features < 2 * _BLOCK:
        return ""
    arranged, problem = None, ""
    if make_linear is not None:
        try:
            arranged = _kernel_head(model, head, make_linear)
        except ValueError as error:
            problem = str(error)
    model.set_output_embeddings(arranged or BlockedHead(head))  # type: ignore[no-untyped-call]
    return problem


def _kernel_head(model: PreTrainedModel, head: torch.nn.Linear, make_linear: MakeLinear) -> KernelLinear:
    """The head on a kernel; ValueError where that cannot be or computes something else."""
    bias = None if head.bias is None else head.bias.detach().numpy()
    kernel = make_linear(head.weight.detach().numpy(), bias=bias)
    embedding = model.get_input_embeddings()
    is_tied = getattr(embedding, "weight", None) is head.weight
    own = [] if is_tied else [head.weight]
    own += [] if head.bias is None else [head.bias]
    layer = KernelLinear(kernel, parameter_count=sum(parameter.numel() for parameter in own))
    rows = random_rows(head.in_features)
    check(layer, rows, head(rows))
    return layer


def _is_plain(module: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    # Subclasses (quantized layers) have layouts of their own.
    if type(module) is not torch.nn.Linear:
        return False
    weight: torch.Tensor = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
