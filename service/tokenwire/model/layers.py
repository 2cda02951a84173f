"""Puts the fastest linear layers that this machine has under a loaded model."""

from collections.abc import Callable

from tokenwire.config import EngineConfig
from tokenwire.model.layout import arrange_weights_inplace
from tokenwire.model.linear4bit import MakeKernel, use_kernels_inplace
from tokenwire.model.loader import LoadedModel


def prepare_layers_inplace(
    loaded: LoadedModel, engine: EngineConfig, progress: Callable[[str], None], make_kernel: MakeKernel | None
) -> str:
    """Replace 4-bit layers by kernels and pack float32 ones, on the CPU; says what became of the 4-bit ones.

    ``make_kernel``: None, or ``forward_kernels`` off, leaves 4-bit layers to bitsandbytes. The text is empty where
    there are none.
    """
    kernels = ""
    if make_kernel is not None and engine.forward_kernels != "off" and loaded.quantization in ("nf4", "fp4"):
        progress("repacking 4-bit weights")
        kernels = str(use_kernels_inplace(loaded.model, make_kernel))
        if kernels:
            progress(kernels)
    arrange_weights_inplace(loaded.model, progress)
    return kernels
