"""The start-up checks of the padded path: whether sequences may decode in one batch, and how long they may become.

Some architectures keep plain keys and values and still cannot decode in a left-padded batch: the decoders of bart,
whisper or trocr count positions by the length of the cache, and roformer takes none at all. A shorter row of a batch
would get wrong logits without an error.

transformers' caches of sliding layers forget what is behind the window, which is right where the mask has hidden it
anyway. The class of moshi has a window in its configuration and none in its mask: behind it ``generate`` answers as the
cache happens to be, one way within the prompt and another way after it. There is nothing to be equal to.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from tokenwire.errors import ModelLoadError
from tokenwire.model.batch import ForwardBatch
from tokenwire.model.checkpoint import first_line
from tokenwire.model.kv_cache import LayerShape
from tokenwire.model.memory import is_out_of_memory
from tokenwire.model.padded import CacheProbe, PaddedRunner
from tokenwire.model.self_test import as_float32, relative_error, tolerance

_LENGTHS = (13, 7)
_PROMPTS = (10, 4)
_BEHIND = 8
"""Tokens that a check of a window lies behind it."""
_FAR = 30.0
"""Standard deviation of keys and values that nobody can overlook who sees them."""


def decodes_in_batches(model: PreTrainedModel, vocab_size: int, *, quantization: str) -> bool:
    """Whether two sequences of unequal length, prefilled in chunks and decoded together, get their own logits."""
    try:
        return _error(model, vocab_size, together=True) <= tolerance(model.dtype, quantization)  # NaN: no
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Whatever an architecture does with such a batch, the sequences can still run one at a time.
        return False


def check_alone(model: PreTrainedModel, vocab_size: int) -> None:
    """ModelLoadError where not even single sequences go on from the state that a pass leaves behind."""
    try:
        _error(model, vocab_size, together=False)
    except ModelLoadError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"{type(model).__name__} cannot continue a sequence: {type(error).__name__}: {first_line(error)}"
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
        for (row, count), got in zip(step, as_float32(logits), strict=True):
            computed[row] += count
            wanted = expected[row][computed[row] - 1]
            error = relative_error(got, wanted)
            if math.isnan(error):
                return error
            worst = max(worst, error)
    return worst


class WindowBound(NamedTuple):
    """A sliding window at which the context has to end."""

    window: int
    """Tokens."""
    reason: str
    """What is wrong behind it."""


def overlooked_window(
    model: PreTrainedModel, probe: CacheProbe, vocab_size: int, context_length: int, *, quantization: str
) -> WindowBound | None:
    """The smallest sliding window below ``context_length`` behind which the attention of ``model`` still looks.

    Or behind which it cannot be computed. None where its masks end where its caches do. For models whose sequences
    decode in batches. A window of any size is checked with one token behind random keys and values, so it costs the
    memory of a sequence of that length.
    """
    shapes, windows = probe.shapes, probe.windows
    limit = tolerance(model.dtype, quantization)
    for window in sorted({window for window in windows if window is not None and window < context_length}):
        try:
            num_behind = min(_BEHIND, context_length - 1 - window)
            change = _change_behind(model, shapes, windows, vocab_size, window=window, num_behind=num_behind)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # What cannot be computed there is no answer either.
            what = f"{type(error).__name__}: {first_line(error)}"
            return WindowBound(window, f"its attention behind a window of {window} tokens raised {what}")
        if not change <= limit:  # NaN: it looked
            reason = f"its attention looks behind the {window} tokens that its cache keeps in transformers"
            return WindowBound(window, reason)
    return None


@torch.inference_mode()
def _change_behind(
    model: PreTrainedModel,
    shapes: list[LayerShape],
    windows: list[int | None],
    vocab_size: int,
    *,
    window: int,
    num_behind: int,
) -> float:
    """Relative L2 change of a token's logits when what is behind ``window`` becomes something else.

    The token stands ``num_behind`` places further than the first one that does not see all before it; only the layers
    that slide with this window change.
    """
    length = window + num_behind
    generator = torch.Generator().manual_seed(0)
    pairs = [
        tuple(
            torch.randn(1, shape.num_kv_heads, length, dim, generator=generator).to(shape.device, shape.dtype)
            for dim in (shape.key_dim, shape.value_dim)
        )
        for shape in shapes
    ]
    logits = []
    for is_changed in (False, True):
        if is_changed:
            for pair, own in zip(pairs, windows, strict=True):
                for tensor in pair if own == window else ():
                    tensor[:, :, : num_behind + 1] *= _FAR
        runner = PaddedRunner(
            model,
            vocab_size=vocab_size,
            context_length=length + 1,
            num_blocks=1,
            block_size=length + 1,
            keeps_plain_cache=True,
            reason="",
        )
        runner.adopt(0, DynamicCache(pairs))
        row = runner.forward(ForwardBatch([0], [[0]], [length], [[0]], [1]))
        # A copy: the runner's memory is its own.
        logits.append(as_float32(row).clone())
    before, after = logits
    return relative_error(after, before)
