"""The start-up check of the padded path: whether sequences may decode in one left-padded batch.

Some architectures keep plain keys and values and still cannot: the decoders of bart, whisper or trocr count positions
by the length of the cache, and roformer takes none at all. A shorter row of a batch would get wrong logits without an
error.
"""

import math

import numpy as np
import torch
from transformers import PreTrainedModel

from tokenwire.errors import ModelLoadError
from tokenwire.model.batch import ForwardBatch
from tokenwire.model.padded import PaddedRunner
from tokenwire.model.self_test import tolerance

_LENGTHS = (13, 7)
_PROMPTS = (10, 4)


def decodes_in_batches(model: PreTrainedModel, vocab_size: int, *, quantization: str) -> bool:
    """Whether two sequences of unequal length, prefilled in chunks and decoded together, get their own logits."""
    try:
        return _error(model, vocab_size, together=True) <= tolerance(model.dtype, quantization)  # NaN: no
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # Whatever an architecture does with such a batch, the sequences can still run one at a time.
        return False


def check_alone(model: PreTrainedModel, vocab_size: int) -> None:
    """ModelLoadError where not even single sequences go on from the state that a pass leaves behind."""
    try:
        _error(model, vocab_size, together=False)
    except (torch.OutOfMemoryError, ModelLoadError):
        raise
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        raise ModelLoadError(
            f"{type(model).__name__} cannot continue a sequence: {type(error).__name__}: {first_line}"
        ) from error


@torch.inference_mode()
def _error(model: PreTrainedModel, vocab_size: int, *, together: bool) -> float:
    """Largest relative L2 error over rows of logits against passes over whole sequences."""
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, vocab_size, length).tolist() for length in _LENGTHS]
    expected = [
        model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0].float().cpu()
        for tokens in sequences
    ]
    runner = PaddedRunner(
        model,
        vocab_size=vocab_size,
        context_length=max(_LENGTHS),
        num_blocks=1,
        block_size=max(_LENGTHS),
        keeps_plain_cache=together,
        reason="",
    )
    first = _PROMPTS[0]
    # Sequence, and how many of its tokens: one prompt in two chunks, the other at once, then both together.
    steps = [[(0, 6)], [(0, first - 6)]] if together else [[(0, first)]]
    steps += [[(1, _PROMPTS[1])], *[[(0, 1), (1, 1)]] * 3]
    computed = [0, 0]
    worst = 0.0
    for step in steps:
        rows = [row for row, _ in step]
        logits = runner.forward(
            ForwardBatch(
                sequence_ids=rows,
                token_ids=[sequences[row][computed[row] : computed[row] + count] for row, count in step],
                num_computed_tokens=[computed[row] for row in rows],
                block_tables=[[0] for _ in rows],
                num_logits=[1] * len(rows),
            )
        )
        actual = torch.from_numpy(logits)
        actual = actual.view(torch.bfloat16).float() if actual.dtype == torch.uint16 else actual
        for (row, count), got in zip(step, actual, strict=True):
            computed[row] += count
            wanted = expected[row][computed[row] - 1]
            error = float(torch.linalg.vector_norm(got - wanted) / torch.linalg.vector_norm(wanted))
            if math.isnan(error):
                return error
            worst = max(worst, error)
    return worst
