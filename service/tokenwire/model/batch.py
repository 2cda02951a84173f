"""What a runner is given and what it gives: the border between the engine and the model."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One forward pass over B sequences, packed without padding: decode rows first, then prefill chunks.

    Among the decode rows those of one token come first.

    All lists have B entries, in the same order.
    """

    sequence_ids: list[int]
    """Stable id of each sequence, for runners that keep state by sequence."""
    token_ids: list[list[int]]
    """The tokens to compute now: one for a decode row, or one and drafted ones behind it; a chunk for a prefill row."""
    num_computed_tokens: list[int]
    """Tokens of the sequence already in the KV cache; the first new token has this position.

    It may be less than what was computed before: drafted tokens that were refused are computed over.
    """
    block_tables: list[list[int]]
    """Blocks of the KV cache that hold the sequence, in order; they cover the new tokens as well. A block may be in
    several tables, where the runner ``shares_blocks``; the blocks of the new tokens are in one."""
    num_logits: list[int]
    """How many of the row's last tokens need logits, from 0 to all: none in a prefill chunk that is not the last, one
    where a token is to be chosen, one more than the drafts where these are to be verified, and as many as are asked
    for where the prompt's own log probabilities are."""


class Runner(Protocol):
    """Runs the model. Used from one thread."""

    vocab_size: int
    """Columns of the logits."""
    context_length: int
    """Most positions of one sequence."""
    num_blocks: int
    """Blocks of the KV cache."""
    block_size: int
    """Tokens per block."""
    supports_chunked_prefill: bool
    """False where a prompt must be computed in one pass."""
    supports_drafts: bool
    """Whether a decode row may bring several tokens, and go back behind some of them afterwards."""
    shares_blocks: bool
    """Whether several sequences may hold the same blocks; otherwise a sequence is forked by ``copy_sequences``."""

    def forward(self, batch: ForwardBatch) -> NDArray[np.float32] | NDArray[np.uint16]:
        """Logits of the wanted tokens, row by row, in order: float32, or bfloat16 bits as uint16.

        ``[sum of num_logits, V]``, C-contiguous on the CPU; valid until the next call.
        """

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """Fill each target block with the content of the source at its place, all read before any is written.

        Called where the runner ``shares_blocks``.
        """

    def copy_sequences(self, sources: list[int], targets: list[int]) -> None:
        """Let each target sequence hold what the source at its place holds, all read before any is written.

        A target may be new. Called where the runner does not ``shares_blocks``.
        """

    def release(self, sequence_ids: list[int]) -> None:
        """Forget sequences that ended or were preempted. Their blocks may be reused at the next forward."""
