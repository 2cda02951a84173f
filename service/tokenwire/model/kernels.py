"""Kernels for linear layers on the CPU, as this layer sees them: functions that come from outside.

So the model layer stays without knowledge of the extension, and a test can hand it a kernel that computes nonsense.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

_TOLERANCE = 1e-5
"""Largest relative L2 error against the layer replaced: the order of a float32 sum explains about 1e-6."""
_TEST_ROWS = 5
"""Rows of the check: enough to reach each way in which a kernel serves a number of rows."""


class Kernel(Protocol):
    """A linear layer; `_native.Linear4Bit` and `_native.Linear` are such."""

    @property
    def in_features(self) -> int:
        """Values of an input row."""

    @property
    def out_features(self) -> int:
        """Values of an output row."""

    @property
    def level(self) -> str:
        """The vector instructions it uses."""

    def forward(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write the product of ``x`` ``[rows, in_features]`` to ``out`` ``[rows, out_features]``, C-contiguous both."""


class MakeLinear4Bit(Protocol):
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


class MakeLinear(Protocol):
    """Makes a kernel of a float32 matrix; ValueError says why it cannot."""

    def __call__(self, weight: NDArray[np.float32], *, bias: NDArray[np.float32] | None) -> Kernel:
        """``weight`` is ``[out_features, in_features]``, C-contiguous."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What makes the kernels of a model."""

    linear4bit: MakeLinear4Bit
    linear: MakeLinear


class KernelLinear(torch.nn.Module):
    """A linear layer whose weights only its kernel has. float32 inside; takes and gives the type of its input."""

    def __init__(self, kernel: Kernel, *, parameter_count: int) -> None:
        super().__init__()
        self.in_features = kernel.in_features
        self.out_features = kernel.out_features
        self.parameter_count = parameter_count
        """Weights and biases that the kernel has and no other module."""
        self.weight = torch.empty(0, dtype=torch.uint8)
        """Empty: some architectures ask a linear layer's weight for its type or device."""
        self._kernel = kernel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` is ``[..., in_features]``; the result ``[..., out_features]``."""
        # Shapes are handled in numpy: a step calls this hundreds of times, and torch takes some 8 us more for the same.
        x = (hidden if hidden.dtype == torch.float32 else hidden.to(torch.float32)).detach().numpy()
        result = np.empty((*x.shape[:-1], self.out_features), np.float32)
        rows = np.ascontiguousarray(x.reshape(-1, self.in_features))
        self._kernel.forward(rows, result.reshape(-1, self.out_features))
        output = torch.from_numpy(result)
        return output if hidden.dtype == torch.float32 else output.to(hidden.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, level={self._kernel.level}"


def random_rows(in_features: int) -> torch.Tensor:
    """Random rows ``[rows, in_features]`` for `check`, the same each time."""
    return torch.randn(_TEST_ROWS, in_features, generator=torch.Generator().manual_seed(0))


def check(layer: KernelLinear, rows: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise ValueError unless ``layer`` gives what the layer that it is to replace gave for ``rows``."""
    error = float(torch.linalg.vector_norm(layer(rows) - expected))
    size = float(torch.linalg.vector_norm(expected))
    # Weights that are all zero leave nothing to divide by.
    error = error / size if size else error
    if not error <= _TOLERANCE:  # NaN is a failure too
        raise ValueError(f"self-test: its kernel is off by {error:.2g} (at most {_TOLERANCE:g})")
