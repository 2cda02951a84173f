"""Stores the weights of plain linear layers the way the CPU's matrix kernels read them fastest."""

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def transpose_linears_inplace(model: PreTrainedModel) -> None:
    """Lay out float32 CPU weights of linears that do not narrow their input as ``[in, out]``; shape and values stay.

    A product with one row then adds up scaled rows of the weight instead of taking dot products. Measured on one Zen
    core with AVX2 and MKL: 9.4 ms become 5.5 for 49,152 x 576, 0.58 become 0.35 for 3,072 x 576; with 16 to 512 rows
    there is no difference. Where the output is narrower than the input it is slower, so those stay. An embedding
    that shares the weight reads a column per token: 20 us instead of 10.
    """
    for module in model.modules():
        # Subclasses (quantized layers) have layouts of their own.
        if type(module) is not torch.nn.Linear or module.out_features < module.in_features:
            continue
        weight = module.weight
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous():
            weight.data = weight.data.t().contiguous().t()
