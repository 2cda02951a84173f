"""What a delta says of its tokens beside their ids and text."""

from collections.abc import Sequence

from tokenwire.engine.protocol import Delta, ProcessorEffect, TokenExplanation, TokenLogprobs, TokenStanding
from tokenwire.engine.sampler import EmissionLike, ExplanationLike, StandingLike


def prepend_details(delta: Delta, emissions: Sequence[EmissionLike]) -> None:
    """Put log probabilities and explanations of ``emissions`` in front of those that ``delta`` has."""
    delta.logprobs[:0] = [
        TokenLogprobs(emission.logprob, emission.rank or 0, emission.top_logprobs)
        for emission in emissions
        if emission.logprob is not None
    ]
    explanations = [explanation for emission in emissions if (explanation := emission.explanation) is not None]
    if explanations:
        delta.explanations = [*map(_explanation_of, explanations), *(delta.explanations or ())]


def _explanation_of(explanation: ExplanationLike) -> TokenExplanation:
    return TokenExplanation(
        _standing_of(explanation.model),
        [
            ProcessorEffect(
                effect.name, effect.removed_token_count, _standing_of(effect.before), _standing_of(effect.after)
            )
            for effect in explanation.effects
        ],
        _standing_of(explanation.outcome),
    )


def _standing_of(standing: StandingLike | None) -> TokenStanding | None:
    if standing is None:
        return None
    return TokenStanding(standing.probability, standing.rank, standing.entropy, standing.token_count)
