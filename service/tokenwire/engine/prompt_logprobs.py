"""Log probabilities of a prompt's own tokens, collected as its chunks are computed."""

from collections.abc import Sequence
from typing import Any

from tokenwire.engine.protocol import Delta, TokenLogprobs
from tokenwire.engine.row import Row
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

    def num_logits(self, row: Row[Any]) -> int:
        """How many of the last tokens of the row's chunk need logits for this."""
        if len(self.entries) == self._num_wanted:
            return 0
        return max(0, row.num_computed + len(row.step_tokens) - max(row.num_computed, len(self.entries)))

    def add(self, sampler: SamplerLike[Any], row: Row[Any], logits: Any) -> None:
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


class PromptScorer:
    """Those requests that wait for log probabilities of their prompt, and the logits that are taken for it."""

    def __init__(self, sampler: SamplerLike[Any], *, vocab_size: int) -> None:
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._waiting: dict[int, PromptLogprobs] = {}
        """By request."""

    @property
    def is_wanted(self) -> bool:
        """Whether any request waits. False costs a step nothing."""
        return bool(self._waiting)

    def begin(self, row: Row[Any], count: int) -> None:
        """Score the prompt of ``row``, the first of its request; ``count`` most likely tokens at each place."""
        row.prompt_logprobs = PromptLogprobs(row.num_prompt, count, self._vocab_size)
        self._waiting[row.request] = row.prompt_logprobs

    def forget(self, request: int) -> None:
        """The request ended."""
        self._waiting.pop(request, None)

    def num_logits(self, rows: Sequence[Row[Any]], num_sampled: list[int]) -> list[int]:
        """How many of each row's last tokens need logits, where the sampler needs those of ``num_sampled``."""
        return [
            count if row.prompt_logprobs is None else max(count, row.prompt_logprobs.num_logits(row))
            for row, count in zip(rows, num_sampled, strict=True)
        ]

    def score(self, rows: Sequence[Row[Any]], num_logits: list[int], num_sampled: list[int], logits: Any) -> Any:
        """Score the prompts that ask for it, and return the logits that the sampler needs.

        ``logits`` ``[sum of num_logits, V]``; of each row the last ``num_sampled`` are returned, one or none, or more
        where it has drafts.
        """
        if num_logits == num_sampled:
            return logits
        kept: list[int] = []
        end = 0
        for row, count, sampled in zip(rows, num_logits, num_sampled, strict=True):
            start, end = end, end + count
            if count > sampled and row.prompt_logprobs is not None:
                row.prompt_logprobs.add(self._sampler, row, logits[start:end])
            kept += range(end - sampled, end)
        return logits[kept]

    def send(self, rows: Sequence[Row[Any]], deltas: list[Delta]) -> dict[int, str]:
        """Put log probabilities of prompts into the first delta of their request.

        Returns the requests whose prompt could not be scored, and why: they are to be ended.
        """
        failed: dict[int, str] = {}
        for row in rows:
            if row.prompt_logprobs is not None and row.prompt_logprobs.error is not None:
                failed[row.request] = row.prompt_logprobs.error
        for delta in deltas:
            if delta.sequence_index == 0 and delta.request not in failed:
                done = self._waiting.pop(delta.request, None)
                if done is not None:
                    delta.prompt_logprobs = done.entries
        for row in rows:
            if row.request not in self._waiting:
                row.prompt_logprobs = None
        return failed
