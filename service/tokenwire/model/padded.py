"""The padded runner: for models that the paged hook does not reach, with transformers' own attention and caches.

Two modes, chosen by what one pass of the model leaves behind:

- plain keys and values (bloom, falcon, gpt_neo, mpt ...): prefill rows run one at a time with their own past; decode
  rows run as one left-padded batch whose cache is kept while the same rows decode, and rebuilt when they change.
- any other state (mamba, linear attention, hybrids), and plain ones that fail `padded_check` (bart, whisper, roformer):
  each sequence runs alone with its own cache object, and a prompt in one pass, because such a state cannot be padded,
  and some architectures cannot continue a prompt.

The left padding here is of cached tensors; the new tokens of a decode batch are one per row. So `_native.pad`, which
pads ids, has nothing to do, and the model layer stays without knowledge of the extension.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tokenwire.errors import ModelLoadError
from tokenwire.model.batch import ForwardBatch
from tokenwire.model.kv_cache import LayerShape
from tokenwire.model.paged import to_numpy

_STATE_NAMES = ("past_key_values", "cache_params", "state")
"""Names under which architectures take and return what they keep of a sequence."""


@dataclass(slots=True)
class _DecodeBatch:
    """Sequences that decode together: row r of ``cache`` ends with the ``lengths[r]`` tokens of ``sequence_ids[r]``."""

    sequence_ids: list[int | None]
    """None: the row's sequence was released, and the row goes when the batch is next rebuilt."""
    lengths: list[int]
    cache: DynamicCache


class PaddedRunner:
    """Runs any causal language model of transformers. Implements ``batch.Runner``.

    Blocks are only counted here: transformers' caches are allocated as sequences grow, and a batch takes as much per
    row as its longest row. So the KV cache size is an estimate on this path.
    """

    forward_path = "padded"
    # A recurrent state cannot go back behind a token, and rows of a padded batch not each to a place of its own.
    supports_drafts = False
    shares_blocks = False

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        vocab_size: int,
        context_length: int,
        num_blocks: int,
        block_size: int,
        keeps_plain_cache: bool,
        reason: str,
    ) -> None:
        """``keeps_plain_cache``: from `probe_cache` and `padded_check`."""
        self._model = model
        self._device = model.device
        parameters = inspect.signature(model.forward).parameters
        self._accepts_positions = "position_ids" in parameters
        self._accepts_logits_to_keep = "logits_to_keep" in parameters
        self._state_name = _state_name(model)
        self._plain = keeps_plain_cache
        self.supports_chunked_prefill = keeps_plain_cache
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.forward_path_reason = reason
        self._alone: dict[int, Any] = {}
        """Cache of each sequence that is not in the decode batch."""
        self._batch: _DecodeBatch | None = None

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> NDArray[np.float32] | NDArray[np.uint16]:
        """See ``batch.Runner.forward``."""
        num_decode = 0
        if self._plain:
            rows = zip(batch.token_ids, batch.num_computed_tokens, strict=True)
            while num_decode < len(batch.token_ids) and _is_decode(*next(rows)):
                num_decode += 1
        parts = []
        if num_decode:
            tokens = [row[0] for row in batch.token_ids[:num_decode]]
            logits = self._decode(batch.sequence_ids[:num_decode], tokens, batch.num_computed_tokens[:num_decode])
            parts.append(logits[torch.tensor(batch.num_logits[:num_decode], dtype=torch.bool)])
        for row in range(num_decode, len(batch.token_ids)):
            tokens, num_logits = batch.token_ids[row], batch.num_logits[row]
            logits = self._run_alone(batch.sequence_ids[row], tokens, batch.num_computed_tokens[row], num_logits)
            parts.append(logits[len(logits) - num_logits :])
        if not parts:
            return np.empty((0, self.vocab_size), dtype=np.float32)
        return to_numpy(torch.cat(parts))

    def adopt(self, sequence: int, cache: DynamicCache) -> None:
        """Let a sequence that is not known yet go on from plain keys and values made elsewhere; taken over."""
        self._alone[sequence] = cache

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """Refused: nothing is in blocks."""
        raise NotImplementedError("blocks are only counted")

    @torch.inference_mode()
    def copy_sequences(self, sources: list[int], targets: list[int]) -> None:
        """See ``batch.Runner.copy_sequences``."""
        batch = self._batch
        if batch is not None and {*sources, *targets} <= set(batch.sequence_ids):
            self._reorder(batch, dict(zip(targets, sources, strict=True)))
            return
        copies = {target: self._copy_of(source) for source, target in zip(sources, targets, strict=True)}
        self.release(targets)
        self._alone.update(copies)

    def _reorder(self, batch: _DecodeBatch, source_by_target: dict[int, int]) -> None:
        """Move rows within the decode batch."""
        place = {sequence: row for row, sequence in enumerate(batch.sequence_ids)}
        rows = [
            row if sequence is None else place[source_by_target.get(sequence, sequence)]
            for row, sequence in enumerate(batch.sequence_ids)
        ]
        batch.lengths = [batch.lengths[row] for row in rows]
        batch.cache.reorder_cache(torch.tensor(rows, device=self._device))  # type: ignore[arg-type]

    def _copy_of(self, sequence: int) -> Any:
        """The state of one sequence, to be changed apart from it."""
        if self._plain:
            return DynamicCache([(keys.clone(), values.clone()) for keys, values in self._rows(sequence)])
        if sequence not in self._alone:
            raise RuntimeError(f"sequence {sequence} has no cache")
        return copy.deepcopy(self._alone[sequence])

    def release(self, sequence_ids: list[int]) -> None:
        """Forget these sequences. Allocates nothing: a row of the decode batch goes when that is next rebuilt.

        Rebuilding here could run out of memory where no request is at hand to fail for it, and the next pass would
        often rebuild once more for the rows that join.
        """
        gone = set(sequence_ids)
        for sequence in gone:
            self._alone.pop(sequence, None)
        batch = self._batch
        if batch is not None:
            batch.sequence_ids = [None if sequence in gone else sequence for sequence in batch.sequence_ids]
            if all(sequence is None for sequence in batch.sequence_ids):
                self._batch = None

    def _run_alone(self, sequence: int, tokens: list[int], num_computed: int, num_logits: int) -> torch.Tensor:
        """One row by itself; logits of its last tokens, at least ``num_logits`` of them, ``[tokens, V]``."""
        if self._batch is not None and sequence in self._batch.sequence_ids:
            self._dissolve()
        state = self._alone.pop(sequence, None) if num_computed else None
        if num_computed and state is None:
            raise RuntimeError(f"sequence {sequence} has no cache for its {num_computed} computed tokens")
        if state is None and self._plain:
            state = DynamicCache()
        total = num_computed + len(tokens)
        output = self._call(
            torch.tensor([tokens]),
            torch.ones(1, total, dtype=torch.int64) if self._plain else None,
            torch.arange(num_computed, total)[None],
            state,
            max(num_logits, 1),
        )
        self._alone[sequence] = getattr(output, self._state_name)
        return output.logits[0]  # type: ignore[no-any-return]

    def _decode(self, sequences: list[int], tokens: list[int], num_computed: list[int]) -> torch.Tensor:
        """One token for each row, in one batch; logits ``[rows, V]`` in the order of ``sequences``."""
        batch = self._batch
        if batch is None or set(batch.sequence_ids) != set(sequences):
            batch = self._regroup(sequences)
        order: dict[int | None, int] = {sequence: place for place, sequence in enumerate(sequences)}
        places = [order[sequence] for sequence in batch.sequence_ids]
        if [num_computed[place] for place in places] != batch.lengths:
            raise RuntimeError(f"rows have {batch.lengths} cached tokens, the batch says {num_computed}")
        longest = max(batch.lengths)
        lengths = torch.tensor(batch.lengths)
        mask = torch.arange(longest + 1)[None] >= (longest - lengths)[:, None]
        output = self._call(
            torch.tensor([[tokens[place]] for place in places]), mask.to(torch.int64), lengths[:, None], batch.cache, 1
        )
        batch.lengths = [length + 1 for length in batch.lengths]
        logits: torch.Tensor = output.logits[:, -1]
        if places == list(range(len(places))):
            return logits
        in_order = torch.empty_like(logits)
        in_order[places] = logits
        return in_order

    def _call(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, state: Any, num_logits: int
    ) -> Any:
        arguments: dict[str, Any] = {"input_ids": tokens.to(self._device), "use_cache": True, self._state_name: state}
        if mask is not None:
            arguments["attention_mask"] = mask.to(self._device)
        if self._accepts_positions:
            arguments["position_ids"] = positions.to(self._device)
        if self._accepts_logits_to_keep:
            arguments["logits_to_keep"] = num_logits
        return self._model(**arguments)

    def _regroup(self, sequences: list[int]) -> _DecodeBatch:
        """Make ``sequences`` the decode batch; rows that leave it keep their caches on their own."""
        leaving = set() if self._batch is None else set(self._batch.sequence_ids) - {None, *sequences}
        if leaving:
            self._dissolve()
        self._batch = batch = self._gather(sequences)
        for sequence in sequences:
            self._alone.pop(sequence, None)
        return batch

    def _dissolve(self) -> None:
        """Give each row of the decode batch a cache of its own."""
        batch = self._batch
        if batch is None:
            return
        for sequence in batch.sequence_ids:
            if sequence is not None:
                self._alone[sequence] = self._copy_of(sequence)
        self._batch = None

    def _gather(self, sequences: list[int]) -> _DecodeBatch:
        """A left-padded batch of ``sequences``, taken from the current one and from their own caches."""
        rows = [self._rows(sequence) for sequence in sequences]
        lengths = [row[0][0].shape[-2] for row in rows]
        longest = max(lengths)
        layers = []
        for number in range(len(rows[0])):
            pair = []
            for place in (0, 1):
                pieces = [
                    F.pad(row[number][place], (0, 0, longest - length, 0))
                    for row, length in zip(rows, lengths, strict=True)
                ]
                pair.append(torch.cat(pieces))
            layers.append((pair[0], pair[1]))
        return _DecodeBatch(list(sequences), lengths, DynamicCache(layers))

    def _rows(self, sequence: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of one sequence by layer, ``[1, heads, length, dim]``, without padding."""
        batch = self._batch
        if batch is not None and sequence in batch.sequence_ids:
            row = batch.sequence_ids.index(sequence)
            last = batch.lengths[row]
            return [
                (keys[row : row + 1, :, -last:], values[row : row + 1, :, -last:])
                for keys, values, _ in batch.cache
                if keys is not None and values is not None
            ]
        if sequence not in self._alone:
            raise RuntimeError(f"sequence {sequence} has no cache")
        return [(keys, values) for keys, values, _ in self._alone[sequence]]


def _is_decode(tokens: list[int], num_computed: int) -> bool:
    return len(tokens) == 1 and num_computed > 0


def _state_name(model: PreTrainedModel) -> str:
    parameters = inspect.signature(model.forward).parameters
    for name in _STATE_NAMES:
        if name in parameters:
            return name
    raise ModelLoadError(
        f"{type(model).__name__} takes none of {', '.join(_STATE_NAMES)}: it cannot continue a sequence"
    )


class CacheProbe(NamedTuple):
    """What a model keeps of a sequence."""

    is_plain: bool
    """Keys and values only."""
    shapes: list[LayerShape]
    """What each layer with attention caches per token."""
    windows: list[int | None]
    """For each of them the sliding window that its cache in transformers keeps; None: it forgets nothing."""


@torch.inference_mode()
def probe_cache(model: PreTrainedModel) -> CacheProbe:
    """Run two tokens and look at what they leave behind."""
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    state = getattr(model(input_ids=tokens, use_cache=True), _state_name(model), None)
    if state is None:
        raise ModelLoadError(f"{type(model).__name__} returns no cache: it cannot continue a sequence")
    layers = getattr(state, "layers", [])
    attention = [layer for layer in layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
    plain = len(layers) > 0 and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized for layer in layers
    )
    shapes, windows = [], []
    for layer in attention:
        keys, values = layer.keys, layer.values
        if keys is not None and values is not None:
            shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype, keys.device))
            windows.append(getattr(layer, "sliding_window", None))
    return CacheProbe(plain, shapes, windows)
