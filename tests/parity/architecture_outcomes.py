"""What the service makes of each architecture, and how far its logits are from transformers' own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests import tiny_architectures
from tests.parity.runner_loop import BLOCK_SIZE, Sequence, drive

PROMPT_LENGTHS = (14, 5, 9)
NEW_TOKENS = 6
TOLERANCE = 1e-5
"""Largest relative L2 distance of a row of logits."""


@dataclass(frozen=True)
class Outcome:
    """One line of the table."""

    path: str
    """paged, padded, alone, not served or not built."""
    reason: str
    error: float = 0.0
    """Largest relative distance of logits."""
    same_tokens: bool = True


def outcome(model_type: str) -> Outcome:
    """Build the tiny model of ``model_type``, run it as the service does, and compare."""
    import torch

    from tokenwire.config import EngineConfig
    from tokenwire.errors import ModelLoadError
    from tokenwire.model.runner import make_runner

    torch.manual_seed(0)
    try:
        model = tiny_architectures.build(model_type)
    except Exception as error:
        return Outcome("not built", _line(error))
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, 90, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    try:
        wanted = [reference(model, prompt) for prompt in prompts]
    except Exception as error:
        return Outcome("not built", f"transformers' own generate fails: {_line(error)}")
    settings = EngineConfig(block_size=BLOCK_SIZE, threads=1, kv_cache_memory="2MiB")
    try:
        runner = make_runner(_loaded(model), settings, lambda _: None)
    except ModelLoadError as error:
        return Outcome("not served", _line(error))
    path = runner.forward_path if runner.supports_chunked_prefill else "alone"
    # Rows join one by one, so that a prompt is computed beside rows that decode.
    rows = [Sequence(row, prompt, NEW_TOKENS, starts_at_step=row) for row, prompt in enumerate(prompts)]
    drive(runner, rows, chunk=6 if runner.supports_chunked_prefill else None)
    errors = []
    for row, (_, logits) in zip(rows, wanted, strict=True):
        got = torch.from_numpy(_stack(row.logits))
        errors.append((got - logits).norm(dim=-1) / logits.norm(dim=-1))
    return Outcome(
        path,
        _line(runner.forward_path_reason),
        float(torch.cat(errors).max()),
        [row.tokens for row in rows] == [tokens for tokens, _ in wanted],
    )


def opens(model_type: str) -> bool:
    """Whether the gate opens for the model with limits as wide as the class has them."""
    from tokenwire.model.gate import GateError, open_paged_path

    model = tiny_architectures.build(model_type, wide_limits=True)
    try:
        open_paged_path(model, tiny_architectures.VOCAB_SIZE, quantization="none")
    except GateError:
        return False
    return True


def reference(model: Any, prompt: list[int]) -> tuple[list[int], Any]:
    """transformers' greedy tokens, and the logits ``[tokens, V]`` that gave them."""
    import torch

    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits).float()


def _stack(rows: list[Any]) -> Any:
    import numpy as np

    return np.stack(rows)


def _line(text: object) -> str:
    """One line that is the same on every machine, with care for a table in Markdown."""
    first = " ".join(str(text).split())
    return re.sub(r" by [0-9.e+-]+ \(at most [^)]*\)", "", first).replace("|", "\\|")[:200]


def _loaded(model: Any) -> Any:
    from tokenwire.model.loader import LoadedModel

    return LoadedModel(
        path="tiny",
        model=model,
        config=model.config,
        model_id="tiny",
        revision="",
        architecture=type(model).__name__,
        quantization="none",
        dtype="float32",
        device_map={"": "cpu"},
        parameter_count=0,
        context_length=tiny_architectures.CONTEXT_LENGTH,
        vocab_size=tiny_architectures.VOCAB_SIZE,
        special_tokens={},
        bos_token_id=0,
        eos_token_ids=(),
        pad_token_id=0,
        tokenizer_json="",
        chat_templates={},
        generation_config={},
    )
