"""Log probabilities of a prompt's own tokens, collected as its chunks are computed."""

from collections.abc import Sequence
from typing import Any

from tokenwire.engine.protocol import Delta, Submit, TokenLogprobs
from tokenwire.engine.row import Row
from tokenwire.engine.sampler import SamplerLike
from tokenwire.engine.settings import GenerationSettings

MAX_LOGITS_BYTES = 64 * 1024 * 1024
"""Logits of such prompts in one pass: 130 tokens at a vocabulary of 128,256."""


def max_scored_tokens(vocab_size: int) -> int:
    """Most tokens of such prompts in one pass."""
    return max(1, MAX_LOGITS_BYTES // (4 * vocab_size))


class PromptLogprobs:
    """What one request asks for, and has got so far. It lives through preemptions: nothing is scored twice.

    The token at index i gets its probability from the logits of the token before, so the first one has none.
    """

    __slots__ = ("_count", "_mends", "_tokens", "entries", "error", "max_chunk")

    def __init__(self, tokens: list[int], count: int, vocab_size: int, *, mends: bool) -> None:
        """``tokens``: the prompt. ``count``: most likely tokens at each place. ``mends``: as remove_invalid_values."""
        self._tokens = tokens
        self._count = count
        self._mends = mends
        self.entries: list[TokenLogprobs] = []
        self.error: str | None = None
        """Why there are none: the request fails."""
        self.max_chunk = max_scored_tokens(vocab_size)
        """Most tokens of such prompts in one pass."""

    def num_logits(self, row: Row[Any]) -> int:
        """How many of the last tokens of the row's chunk need logits for this."""
        if len(self.entries) + 1 == len(self._tokens):
            return 0
        return max(0, row.num_computed + len(row.step_tokens) - max(row.num_computed, len(self.entries)))

    def add(self, sampler: SamplerLike[Any], logits: Any) -> None:
        """Score what the last ``len(logits)`` tokens of the row's chunk predict, as far as that is prompt."""
        first = len(self.entries)
        token_ids = self._tokens[first + 1 : first + 1 + len(logits)]
        if not token_ids or self.error is not None:
            return
        try:
            scored = sampler.logprobs_of(
                logits[: len(token_ids)], token_ids, self._count, remove_invalid_values=self._mends
            )
        except ValueError as error:
            self.error = str(error)
            return
        self.entries += [TokenLogprobs(logprob, rank, top) for logprob, rank, top in scored]


class PromptScorer:
    """Those requests that wait for log probabilities of their prompt, and the logits that are taken for it."""

    def __init__(self, sampler: SamplerLike[Any], *, vocab_size: int, is_chunked: bool) -> None:
        """``is_chunked``: whether prompts can be computed in several passes."""
        self._sampler = sampler
        self._is_chunked = is_chunked
        self._vocab_size = vocab_size
        self._waiting: dict[int, PromptLogprobs] = {}
        """By request."""

    @property
    def is_wanted(self) -> bool:
        """Whether any request waits. False costs a step nothing."""
        return bool(self._waiting)

    def refusal(self, submit: Submit) -> str | None:
        """Why the prompt of ``submit`` cannot be scored, where it cannot: what is computed in one pass needs its room.

        The front is to refuse it before.
        """
        if submit.settings.prompt_logprobs is None or self._is_chunked:
            return None
        limit = max_scored_tokens(self._vocab_size)
        if len(submit.prompt_ids) <= limit:
            return None
        return f"a prompt of {len(submit.prompt_ids)} tokens exceeds the {limit} that one pass scores"

    def begin(self, row: Row[Any], settings: GenerationSettings) -> None:
        """Score the prompt of ``row``, the first of its request, where ``settings`` ask for it.

        A token that is healed is scored as it was given.
        """
        if settings.prompt_logprobs is None:
            return
        dropped = [] if settings.healed_token_id is None else [settings.healed_token_id]
        row.prompt_logprobs = PromptLogprobs(
            row.tokens + dropped,
            settings.prompt_logprobs,
            self._vocab_size,
            mends=settings.remove_invalid_values,
        )
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
        if all(row.prompt_logprobs is None for row in rows):
            return logits
        kept: list[int] = []
        end = 0
        for row, count, sampled in zip(rows, num_logits, num_sampled, strict=True):
            start, end = end, end + count
            if row.prompt_logprobs is not None:
                row.prompt_logprobs.add(self._sampler, logits[start:end])
            kept += range(end - sampled, end)
        return logits if num_logits == num_sampled else logits[kept]

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
