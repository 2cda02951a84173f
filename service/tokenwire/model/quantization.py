"""bitsandbytes quantization of the linear layers while a checkpoint is loaded."""

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from tokenwire.config import ModelConfig
from tokenwire.errors import ModelLoadError
from tokenwire.model.kernels import KernelLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES_PER_VALUE = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0}
"""Memory of a quantized value without its constants: a lower bound."""


def bitsandbytes_config(config: ModelConfig, dtype: torch.dtype) -> Any | None:
    """The BitsAndBytesConfig that ``config`` asks for, None for none. ``dtype``: of the unquantized weights.

    Which settings go together is `ServiceConfig.problems`' to say.
    """
    if config.quantize == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(f"quantize {config.quantize} needs the package bitsandbytes, which is not installed")
    from transformers import BitsAndBytesConfig

    # None lets transformers choose: the output head stays as it is.
    skipped = list(config.skip_modules) or None
    if config.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)  # type: ignore[no-untyped-call]
    compute_dtype = dtype if config.compute_dtype == "auto" else getattr(torch, config.compute_dtype)
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantize,
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skipped,
    )


def describe(model: "PreTrainedModel") -> str:
    """How the loaded weights are quantized: none, nf4, fp4, int8, or another method by transformers' name for it."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return "none"
    if getattr(config, "load_in_4bit", False):
        return str(config.bnb_4bit_quant_type)
    if getattr(config, "load_in_8bit", False):
        return "int8"
    return str(getattr(config.quant_method, "value", config.quant_method))


def parameter_count(model: "PreTrainedModel") -> int:
    """Weights of the model, each once: a packed 4-bit tensor counts the weights in it, tied tensors count once."""
    count = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count += parameter.numel() if state is None else state.shape.numel()
    return count + sum(layer.parameter_count for layer in model.modules() if isinstance(layer, KernelLinear))
