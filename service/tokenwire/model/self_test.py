"""The start-up self-test of the paged path: packed, chunked, ragged logits against plain ones of the same model."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tokenwire.model.attention import IMPLEMENTATION
from tokenwire.model.batch import ForwardBatch
from tokenwire.model.kv_cache import KVCache, LayerShape
from tokenwire.model.paged import PagedRunner

_BLOCK_SIZE = 4
_LONGEST_TESTED_WINDOW = 64
"""A window above this is not exceeded by the test's prompts: they would cost more than the check is worth."""


def tolerance(dtype: torch.dtype, quantization: str) -> float:
    """Largest relative error that rounding explains. A wrong mask or position gives errors near 1.

    int8 is loose because bitsandbytes picks outlier columns over all rows of a batch, so a row's logits depend on
    which rows it is packed with.
    """
    if quantization == "int8":
        return 0.2
    return 1e-3 if dtype == torch.float32 else 5e-2


@torch.inference_mode()
def packed_error(
    model: PreTrainedModel, shapes: list[LayerShape], vocab_size: int, original: str, *, max_window: int
) -> float:
    """Largest relative L2 error over rows of logits, of the hook against the ``original`` implementation.

    Three random sequences of unequal length (the longest exceeds the sliding window where there is a small one) go
    through chunked prefill, prefill beside decode, and batched decode, over blocks in shuffled order. Leaves the
    hook's implementation set.
    """
    generator = np.random.default_rng(0)
    longest = 21 if max_window > _LONGEST_TESTED_WINDOW else max(21, max_window + 9)
    sequences = [generator.integers(0, vocab_size, length).tolist() for length in (longest, 13, 6)]
    model.set_attn_implementation(original)
    expected = []
    for tokens in sequences:
        plain = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
        expected.append(plain.logits[0].float().cpu())

    blocks_each = -(-longest // _BLOCK_SIZE)
    num_blocks = blocks_each * len(sequences)
    blocks = generator.permutation(num_blocks).tolist()
    tables = [blocks[row :: len(sequences)] for row in range(len(sequences))]
    model.set_attn_implementation(IMPLEMENTATION)
    cache = KVCache(shapes, num_blocks, _BLOCK_SIZE)
    runner = PagedRunner(model, cache, vocab_size=vocab_size, context_length=longest)
    worst = 0.0
    computed = [0, 0, 0]
    # Tokens per row and step: a whole prompt beside chunks, decode beside chunks, then decode of all three.
    for lengths in ((7, 10, 0), (longest - 9, 1, 4), (1, 1, 1), (1, 1, 1)):
        rows = sorted((row for row in range(len(sequences)) if lengths[row]), key=lambda row: lengths[row] > 1)
        batch = ForwardBatch(
            sequence_ids=rows,
            token_ids=[sequences[row][computed[row] : computed[row] + lengths[row]] for row in rows],
            num_computed_tokens=[computed[row] for row in rows],
            block_tables=[tables[row] for row in rows],
            num_logits=[1] * len(rows),
        )
        logits = runner.forward(batch)
        for row, got in zip(rows, as_float32(logits), strict=True):
            computed[row] += lengths[row]
            wanted = expected[row][computed[row] - 1]
            error = relative_error(got, wanted)
            if math.isnan(error):
                return error
            worst = max(worst, error)
    return worst


def as_float32(logits: NDArray[np.float32] | NDArray[np.uint16]) -> torch.Tensor:
    """A runner's logits ``[rows, V]``; bfloat16 ones come as their bits."""
    actual = torch.from_numpy(logits)
    return actual.view(torch.bfloat16).float() if actual.dtype == torch.uint16 else actual


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """L2 norm of the difference over that of ``wanted``; NaN where either holds one."""
    return float(torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted))
