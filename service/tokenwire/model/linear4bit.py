"""Linear layers that bitsandbytes quantized to 4 bits, on kernels of our own where they compute in float32 on the CPU.

bitsandbytes decodes the whole matrix at every call there (its fused kernel asks for AVX512-BF16 and computes in
bfloat16). The kernels come from outside as a function, so this layer stays without knowledge of the extension.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from tokenwire.model.kernels import KernelLinear, MakeLinear4Bit, check, random_rows


@dataclass(slots=True)
class Replacement:
    """What became of a model's 4-bit layers."""

    levels: list[str] = field(default_factory=list)
    """The kernel's level of each layer that got one."""
    kept: list[str] = field(default_factory=list)
    """Why each other layer stays with bitsandbytes."""

    def __str__(self) -> str:
        """One sentence for the operator; empty where there are no 4-bit layers."""
        total = len(self.levels) + len(self.kept)
        if not total:
            return ""
        on = f" on {', '.join(sorted(set(self.levels)))} kernels" if self.levels else " on kernels"
        text = f"{len(self.levels)} of {total} 4-bit linear layers{on}"
        return text if not self.kept else f"{text}, the others with bitsandbytes ({self.kept[0]})"


@torch.inference_mode()
def use_kernels_inplace(model: PreTrainedModel, make_kernel: MakeLinear4Bit) -> Replacement:
    """Put a `KernelLinear` in the place of each 4-bit layer that one can stand for, and let the old weights go.

    Each is compared with bitsandbytes on random input first; a layer that differs, or has what the kernels cannot do,
    stays as it is. At no time are more than one layer's weights there twice.
    """
    outcome = Replacement()
    if not getattr(model.config.quantization_config, "load_in_4bit", False):
        return outcome
    from bitsandbytes.nn.modules import Linear4bit

    made: dict[torch.nn.Module, KernelLinear] = {}
    for path, parent in list(model.named_modules()):
        # Not named_children, which leaves out a layer's second name.
        for name, linear in list(parent._modules.items()):
            if not isinstance(linear, Linear4bit):
                continue
            if linear not in made:
                try:
                    layer, level = _replacement(linear, make_kernel)
                except ValueError as error:
                    outcome.kept.append(f"{path}.{name}: {error}".removeprefix("."))
                    continue
                made[linear] = layer
                outcome.levels.append(level)
            setattr(parent, name, made[linear])
    return outcome


def _replacement(linear: Any, make_kernel: MakeLinear4Bit) -> tuple[KernelLinear, str]:
    """The layer that computes what ``linear`` does, and its level; ValueError says why there is none."""
    from bitsandbytes.autograd._functions import matmul_4bit
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.nn.modules import Linear4bit, LinearFP4, LinearNF4

    weight, bias = linear.weight, linear.bias
    state = weight.quant_state
    if type(linear) not in (Linear4bit, LinearFP4, LinearNF4):
        raise ValueError(f"it is a {type(linear).__name__}")
    if weight.device.type != "cpu":
        raise ValueError(f"it lies on {weight.device}")
    if linear.compute_dtype != torch.float32:
        raise ValueError(f"it computes in {str(linear.compute_dtype).removeprefix('torch.')}")
    if linear._forward_hooks or linear._forward_pre_hooks or hasattr(linear, "_hf_hook"):
        raise ValueError("it has hooks")
    if state is None or getattr(state, "packing_format_for_cpu", False):
        raise ValueError("its weights are not in bitsandbytes' own order")
    shape = (linear.out_features, linear.in_features)
    if tuple(state.shape) != shape:
        raise ValueError(f"its weights have shape {list(state.shape)} instead of {list(shape)}")
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    kernel = make_kernel(
        weight.data.view(torch.uint8).reshape(-1).numpy(),
        absmax.to(torch.float32).reshape(-1).numpy(),
        state.code.to(torch.float32).numpy(),
        block_size=state.blocksize,
        in_features=linear.in_features,
        out_features=linear.out_features,
        bias=None if bias is None else bias.detach().to(torch.float32).numpy(),
    )
    parameter_count = state.shape.numel() + (0 if bias is None else bias.numel())
    layer = KernelLinear(kernel, parameter_count=parameter_count)
    rows = random_rows(linear.in_features)
    check(layer, rows, matmul_4bit(rows, weight, quant_state=state, bias=None if bias is None else bias.float()))
    # The weight refers back to its layer: without this both would wait for the garbage collector.
    weight.module = None
    return layer, kernel.level
