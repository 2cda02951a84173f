"""Linear layers that bitsandbytes quantized to 4 bits, on kernels of our own where they compute in float32 on the CPU.

bitsandbytes decodes the whole matrix at every call there (its fused kernel asks for AVX512-BF16 and computes in
bfloat16). The kernels come from outside as a function, so this layer stays without knowledge of the extension.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

_TOLERANCE = 1e-5
"""Largest relative L2 error against bitsandbytes: the order of a float32 sum explains about 1e-6."""
_TEST_ROWS = 5
"""Rows of the check: enough to reach each way in which a kernel serves a number of rows."""


class Kernel(Protocol):
    """A linear layer on packed weights; `_native.Linear4Bit` is one."""

    @property
    def level(self) -> str:
        """The vector instructions it uses."""

    def forward(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write the product of ``x`` ``[rows, in_features]`` to ``out`` ``[rows, out_features]``, C-contiguous both."""


class MakeKernel(Protocol):
    """Makes a kernel of bitsandbytes' arrays, each flat; ValueError says why it cannot."""

    def __call__(
        self,
        packed: NDArray[np.uint8],
        absmax: NDArray[np.float32],
        code: NDArray[np.float32],
        *,
        block_size: int,
        in_features: int,
        out_features: int,
        bias: NDArray[np.float32] | None,
    ) -> Kernel:
        """``packed`` holds two codes a byte, ``absmax`` a scale per ``block_size`` codes, ``code`` their 16 numbers."""


class KernelLinear(torch.nn.Module):
    """A linear layer whose weights only its kernel has. float32 inside; takes and gives the type of its input."""

    def __init__(self, kernel: Kernel, *, in_features: int, out_features: int, has_bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.parameter_count = in_features * out_features + has_bias * out_features
        """Weights and biases in the kernel."""
        self.weight = torch.empty(0, dtype=torch.uint8)
        """Empty: some architectures ask a linear layer's weight for its type or device."""
        self._kernel = kernel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` is ``[..., in_features]``; the result ``[..., out_features]``."""
        # Shapes are handled in numpy: a step calls this hundreds of times, and torch takes some 8 us for the same.
        x = (hidden if hidden.dtype == torch.float32 else hidden.to(torch.float32)).detach().numpy()
        result = np.empty((*x.shape[:-1], self.out_features), np.float32)
        rows = np.ascontiguousarray(x.reshape(-1, self.in_features))
        self._kernel.forward(rows, result.reshape(-1, self.out_features))
        output = torch.from_numpy(result)
        return output if hidden.dtype == torch.float32 else output.to(hidden.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, level={self._kernel.level}"


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
def use_kernels_inplace(model: PreTrainedModel, make_kernel: MakeKernel) -> Replacement:
    """Put a `KernelLinear` in the place of each 4-bit layer that one can stand for, and let the old weights go.

    Each is compared with bitsandbytes on random input first; a layer that differs, or has what the kernels cannot do,
    stays as it is. At no time are more than one layer's weights there twice.
    """
    outcome = Replacement()
    if not getattr(model.config.quantization_config, "load_in_4bit", False):
        return outcome
    from bitsandbytes.nn.modules import Linear4bit

    generator = torch.Generator().manual_seed(0)
    made: dict[torch.nn.Module, KernelLinear] = {}
    for path, parent in list(model.named_modules()):
        # Not named_children, which leaves out a layer's second name.
        for name, linear in list(parent._modules.items()):
            if not isinstance(linear, Linear4bit):
                continue
            if linear not in made:
                try:
                    layer, level = _replacement(linear, make_kernel, generator)
                except ValueError as error:
                    outcome.kept.append(f"{path}.{name}: {error}".removeprefix("."))
                    continue
                made[linear] = layer
                outcome.levels.append(level)
            setattr(parent, name, made[linear])
    return outcome


def _replacement(linear: Any, make_kernel: MakeKernel, generator: torch.Generator) -> tuple[KernelLinear, str]:
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
    layer = KernelLinear(
        kernel, in_features=linear.in_features, out_features=linear.out_features, has_bias=bias is not None
    )
    rows = torch.randn(_TEST_ROWS, linear.in_features, generator=generator)
    expected = matmul_4bit(rows, weight, quant_state=state, bias=None if bias is None else bias.to(torch.float32))
    error = float(torch.linalg.vector_norm(layer(rows) - expected))
    size = float(torch.linalg.vector_norm(expected))
    # Weights that are all zero leave nothing to divide by.
    error = error / size if size else error
    if not error <= _TOLERANCE:  # NaN is a failure too
        raise ValueError(f"self-test: its kernel differs from bitsandbytes by {error:.2g} (at most {_TOLERANCE:g})")
    # The weight refers back to its layer: without this both would wait for the garbage collector.
    weight.module = None
    return layer, kernel.level
