"""Quantized: the runner's greedy tokens are those of transformers' own bitsandbytes model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.runner_loop import Sequence, drive, generate, load_runner, prompts

LENGTHS = [1, 5, 9, 30]
NEW_TOKENS = 10


def reference(folder: Path, settings: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=BitsAndBytesConfig(**settings)
    ).eval()


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({"quantize": "nf4"}, {"bnb_4bit_quant_type": "nf4"}),
        (
            {"quantize": "nf4", "double_quant": True},
            {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        ),
        ({"quantize": "fp4"}, {"bnb_4bit_quant_type": "fp4"}),
    ],
    ids=["nf4", "nf4-double", "fp4"],
)
@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_4bit_equals_transformers(
    family: str, kernels: str, model: dict[str, Any], settings: dict[str, Any], checkpoint: Callable[[str], Path]
) -> None:
    import torch

    folder = checkpoint(family)
    loaded, runner = load_runner(folder, engine={"forward_kernels": kernels}, **model)
    assert loaded.quantization == model["quantize"]
    assert runner.forward_path == ("padded" if family == "bloom" else "paged")
    assert ("4-bit linear layers on" in runner.forward_path_reason) == (kernels == "auto")
    assert "bitsandbytes" not in runner.forward_path_reason
    peer = reference(folder, {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32} | settings)
    texts = prompts(LENGTHS)
    expected = [generate(peer, prompt, NEW_TOKENS) for prompt in texts]
    sequences = [Sequence(number, prompt, NEW_TOKENS) for number, prompt in enumerate(texts)]
    drive(runner, sequences, chunk=7)
    assert [sequence.tokens for sequence in sequences] == expected


def test_int8_alone_equals_transformers(checkpoint: Callable[[str], Path]) -> None:
    """Alone and unchunked only: LLM.int8 chooses outlier columns over all rows of a pass, so batch mates show."""
    folder = checkpoint("llama")
    loaded, runner = load_runner(folder, quantize="int8")
    assert loaded.quantization == "int8"
    assert runner.forward_path == "paged"
    peer = reference(folder, {"load_in_8bit": True})
    for number, prompt in enumerate(prompts(LENGTHS)):
        sequence = Sequence(number, prompt, NEW_TOKENS)
        drive(runner, [sequence])
        assert sequence.tokens == generate(peer, prompt, NEW_TOKENS)


@pytest.mark.parametrize("quantize", ["none", "nf4", "int8"])
def test_parameters_are_counted_unpacked(quantize: str, checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    loaded, _ = load_runner(checkpoint("llama"), quantize=quantize)
    assert loaded.parameter_count == sum(parameter.numel() for parameter in plain.parameters())


def test_skip_modules_stay_unquantized(checkpoint: Callable[[str], Path]) -> None:
    from bitsandbytes.nn import Linear4bit

    unreplaced = {"forward_kernels": "off"}
    loaded, _ = load_runner(checkpoint("llama"), quantize="nf4", skip_modules=("q_proj", "lm_head"), engine=unreplaced)
    quantized = {name.split(".")[-1] for name, module in loaded.model.named_modules() if isinstance(module, Linear4bit)}
    assert quantized == {"k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
