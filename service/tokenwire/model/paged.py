"""The paged runner: one packed pass of the transformers model over all rows, with keys and values in our blocks."""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tokenwire.model.attention import PagedContext, paged
from tokenwire.model.batch import ForwardBatch
from tokenwire.model.kv_cache import KVCache
from tokenwire.model.step import Step


def to_numpy(logits: torch.Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """Logits ``[rows, V]`` on the CPU as the sampler takes them: bfloat16 as bits in uint16, all else as float32."""
    logits = logits.detach()
    if logits.dtype == torch.bfloat16:
        return logits.cpu().contiguous().view(torch.uint16).numpy()
    return logits.float().cpu().contiguous().numpy()


class PagedRunner:
    """Runs a model whose attention goes through the hook. Implements ``batch.Runner``."""

    forward_path = "paged"
    supports_chunked_prefill = True
    supports_drafts = True
    shares_blocks = True

    def __init__(
        self, model: PreTrainedModel, cache: KVCache, *, vocab_size: int, context_length: int, reason: str = ""
    ) -> None:
        """``model`` has the hook's implementation set already (`gate.open_paged_path` does it)."""
        self._model = model
        self._cache = cache
        self._device = model.device
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.num_blocks = cache.num_blocks
        self.block_size = cache.block_size
        self.forward_path_reason = reason

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> NDArray[np.float32] | NDArray[np.uint16]:
        """See ``batch.Runner.forward``."""
        step = Step(batch, self.block_size)
        if step.fresh_blocks:
            self._cache.clear_blocks(step.fresh_blocks)
        ends = np.cumsum([len(tokens) for tokens in batch.token_ids])
        counts = np.array(batch.num_logits)
        # The last tokens of each row: places in the result, moved to where the row's tokens end.
        wanted = np.arange(counts.sum()) + np.repeat(ends - np.cumsum(counts), counts)
        # Quantized output heads refuse a matrix without rows: where nothing is wanted one row is computed and dropped.
        kept = wanted if len(wanted) else ends[:1] - 1
        token_ids = np.fromiter((token for row in batch.token_ids for token in row), np.int64, step.num_tokens)
        with paged(PagedContext(step, self._cache)):
            output = self._model(
                input_ids=torch.from_numpy(token_ids).to(self._device)[None],
                position_ids=torch.from_numpy(step.positions).to(self._device)[None],
                use_cache=False,
                logits_to_keep=torch.from_numpy(kept).to(self._device),
            )
        logits = output.logits
        if logits.shape[:2] != (1, len(kept)):
            raise RuntimeError(
                f"asked for the logits of {len(kept)} tokens, the model gave shape {tuple(logits.shape)}"
            )
        return to_numpy(logits[0])[: len(wanted)]

    @torch.inference_mode()
    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """See ``batch.Runner.copy_blocks``."""
        self._cache.copy_blocks(sources, targets)

    def copy_sequences(self, sources: list[int], targets: list[int]) -> None:
        """Refused: all state is in the blocks."""
        raise NotImplementedError("sequences share blocks")

    def release(self, sequence_ids: list[int]) -> None:
        """Nothing to forget: all state is in the blocks."""
