"""Log probabilities of a prompt's own tokens, collected as its chunks are computed."""

from collections.abc import Sequence
from typing import Any

from tokenwire.engine.protocol import TokenLogprobs
from tokenwire.engine.request import Request
from tokenwire.engine.sampler import SamplerLike

MAX_LOGITS_BYTES = 64 * 1024 * 1024
"""Logits of one chunk of such a prompt: 130 tokens at a vocabulary of 128,256."""


class PromptLogprobs:
    """What one request asks for, and has got so far. It lives through preemptions: nothing is scored twice.

    The token at index i gets its probability from the logits of the token before, so the first one has none.
    """

    __slots__ = ("_count", "_num_wanted", "entries", "error", "max_chunk")

    def __init__(self, num_prompt: int, count: int, vocab_size: int) -> None:
        """``count``: most likely tokens at each place."""
        self._count = count
        self._num_wanted = num_prompt - 1
        self.entries: list[TokenLogprobs] = []
        self.error: str | None = None
        """Why there are none: the request fails."""
        self.max_chunk = max(1, MAX_LOGITS_BYTES // (4 * vocab_size))
        """Most tokens of the prompt in one pass."""

    def num_logits(self, row: Request[Any]) -> int:
        """How many of the last tokens of the row's chunk need logits for this."""
        if len(self.entries) == self._num_wanted:
            return 0
        return max(0, row.num_computed + len(row.step_tokens) - max(row.num_computed, len(self.entries)))

    def add(self, sampler: SamplerLike[Any], row: Request[Any], logits: Any) -> None:
        """Score what the last ``len(logits)`` tokens of the row's chunk predict, as far as that is prompt."""
        first = len(self.entries)
        token_ids = row.tokens[first + 1 : min(first + 1 + len(logits), self._num_wanted + 1)]
        if not token_ids or self.error is not None:
            return
        try:
            scored = sampler.logprobs_of(logits[: len(token_ids)], token_ids, self._count)
        except ValueError as error:
            self.error = str(error)
            return
        self.entries += [TokenLogprobs(logprob, rank, top) for logprob, rank, top in scored]


def score(
    sampler: SamplerLike[Any],
    rows: Sequence[Request[Any]],
    num_logits: Sequence[int],
    num_sampled: Sequence[int],
    logits: Any,
) -> Any:
    """Score the prompts that ask for it, and return the logits that the sampler needs.

    ``logits`` ``[sum of num_logits, V]``; of each row the last ``num_sampled`` are returned, one or none, or more where
    it has drafts.
    """
    kept: list[int] = []
    end = 0
    for row, count, sampled in zip(rows, num_logits, num_sampled, strict=True):
        start, end = end, end + count
        if count > sampled and row.prompt_logprobs is not None:
            row.prompt_logprobs.add(sampler, row, logits[start:end])
        kept += range(end - sampled, end)
    return logits[kept]
