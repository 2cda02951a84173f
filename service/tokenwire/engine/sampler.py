"""What the engine calls of the sampler in Rust, and reads of what it gives."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar


class StandingLike(Protocol):
    """What the engine reads of `tokenwire._native.Standing`."""

    @property
    def probability(self) -> float:
        """Of the token."""

    @property
    def rank(self) -> int:
        """Its place by probability, from 1."""

    @property
    def entropy(self) -> float:
        """Of the distribution, in nats."""

    @property
    def token_count(self) -> int:
        """Tokens whose probability is above 0."""


class ProcessorEffectLike(Protocol):
    """What the engine reads of `tokenwire._native.ProcessorEffect`."""

    @property
    def name(self) -> str:
        """The processor's name."""

    @property
    def removed_token_count(self) -> int:
        """Tokens that it forbade."""

    @property
    def before(self) -> StandingLike | None:
        """The chosen token before it."""

    @property
    def after(self) -> StandingLike | None:
        """The chosen token behind it."""


class ExplanationLike(Protocol):
    """What the engine reads of `tokenwire._native.Explanation`."""

    @property
    def model(self) -> StandingLike | None:
        """The chosen token in the model's own distribution."""

    @property
    def effects(self) -> Sequence[ProcessorEffectLike]:
        """What the steps did that changed something."""

    @property
    def outcome(self) -> StandingLike | None:
        """The chosen token in the distribution that it was chosen from."""


class EmissionLike(Protocol):
    """What the engine reads of `tokenwire._native.Emission`."""

    @property
    def token_id(self) -> int:
        """The chosen token; -1 with ``error``."""

    @property
    def text(self) -> str:
        """Text that became certain."""

    @property
    def finish_reason(self) -> str | None:
        """Why the sequence ended with this token."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that matched."""

    @property
    def stop_token_id(self) -> int | None:
        """The token that ended it."""

    @property
    def logprob(self) -> float | None:
        """Log probability of the chosen token, when asked for."""

    @property
    def rank(self) -> int | None:
        """Its place among all tokens, when log probabilities are asked for."""

    @property
    def top_logprobs(self) -> list[tuple[int, float]]:
        """The most likely tokens, when asked for."""

    @property
    def explanation(self) -> ExplanationLike | None:
        """Why the token was chosen, when asked for."""

    @property
    def error(self) -> str | None:
        """Why this row alone failed."""


class GenerationLike(Protocol):
    """What the engine calls of `tokenwire._native.Generation`."""

    @property
    def eos_probability_max(self) -> float | None:
        """Largest probability that an EOS token had at any step, before processors; None without EOS tokens."""

    def end(self) -> EmissionLike:
        """End the sequence before its next token; the emission has no token, and all text that was held back."""


GenerationT = TypeVar("GenerationT", bound=GenerationLike)
_GenerationT_contra = TypeVar("_GenerationT_contra", contravariant=True)


class SamplerLike(Protocol[_GenerationT_contra]):
    """What the engine calls of `tokenwire._native.Sampler`."""

    def step(
        self, logits: Any, generations: Sequence[_GenerationT_contra], *, guidance: Sequence[int] = ...
    ) -> Sequence[EmissionLike]:
        """Choose and append one token per generation.

        The first ``len(generations)`` rows of ``logits`` ``[rows, vocab]`` are theirs, those of guidance twins
        follow: ``guidance`` holds for each generation the row of its twin, or -1.
        """

    def verify(
        self, logits: Any, generations: Sequence[_GenerationT_contra], drafts: Sequence[Sequence[int]]
    ) -> Sequence[Sequence[EmissionLike]]:
        """The same for rows with drafts: one token for each, and further ones as long as drafts come true.

        ``logits`` ``[sum of len(draft) + 1, vocab]``.
        """

    def logprobs_of(
        self, logits: Any, token_ids: Sequence[int], count: int, *, remove_invalid_values: bool = False
    ) -> Sequence[tuple[float, int, list[tuple[int, float]]]]:
        """Log probability and rank of the token behind each row of ``logits``, and the ``count`` most likely ones.

        ValueError for a row without any, as one with NaN is unless ``remove_invalid_values``.
        """
