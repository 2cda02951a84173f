"""Explanations against transformers' processors, step by step: names, removed tokens, probabilities, entropies."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import currently_in_test_context, event, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from processor_cases import SAMPLER, Case, Row, each_profile, make_generation, make_sampling, rows_profile, stages
from processor_strategies import TUNABLE, cases, combinations

from tokenwire import _native

NAMES = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale",
    "SequenceBiasLogitsProcessor": "sequence_bias",
    "EncoderRepetitionPenaltyLogitsProcessor": "encoder_repetition_penalty",
    "RepetitionPenaltyLogitsProcessor": "repetition_penalty",
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram_size",
    "EncoderNoRepeatNGramLogitsProcessor": "encoder_no_repeat_ngram_size",
    "NoBadWordsLogitsProcessor": "bad_words_ids",
    "MinLengthLogitsProcessor": "min_length",
    "MinNewTokensLengthLogitsProcessor": "min_new_tokens",
    "PrefixConstrainedLogitsProcessor": "allowed_token_ids",
    "ForcedBOSTokenLogitsProcessor": "forced_bos_token_id",
    "ForcedEOSTokenLogitsProcessor": "forced_eos_token_id",
    "InfNanRemoveLogitsProcessor": "remove_invalid_values",
    "ExponentialDecayLengthPenalty": "exponential_decay_length_penalty",
    "SuppressTokensLogitsProcessor": "suppress_tokens",
    "SuppressTokensAtBeginLogitsProcessor": "begin_suppress_tokens",
    "LogitBias": "logit_bias",
    "PresenceAndFrequency": "presence_and_frequency_penalty",
    "TemperatureLogitsWarper": "temperature",
    "TopHLogitsWarper": "top_h",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p",
    "EpsilonLogitsWarper": "epsilon_cutoff",
    "EtaLogitsWarper": "eta_cutoff",
    "LogitNormalization": "renormalize_logits",
}


class Expected(NamedTuple):
    """What transformers' rows say of one step."""

    name: str
    removed: int
    before: Row
    after: Row
    is_changed: bool
    is_clear: bool
    """Whether it changed more than the last bits."""
    is_doubtful: bool
    """Whether the last bits of this step, or of one before it, decide what is removed."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more, torch adds up long rows in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def expected_steps(case: Case) -> list[Expected]:
    """The steps of transformers' list."""
    before, found, in_doubt = case.logits, [], False
    for stage in stages(case):
        after = stage.scores
        in_doubt |= bool(stage.doubtful.any())
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        lost = (before != -np.inf) & (after == -np.inf)
        with np.errstate(invalid="ignore"):
            moved = np.abs(after.astype(np.float64) - before.astype(np.float64))
        least = 1e-4 * (1 + np.abs(np.where(np.isfinite(before), before, 0)).astype(np.float64))
        # Between infinities, and where NaN goes, the distance is no number.
        is_clear = bool((~same & ~(moved <= least)).any())
        found.append(
            Expected(NAMES[stage.name], int(lost.sum()), before, after, not bool(same.all()), is_clear, in_doubt)
        )
        before = after
    return found


def softmax(row: Row) -> NDArray[np.float64] | None:
    """In float64; None where the row is no distribution. Tokens at infinity share the probability."""
    top = row.max() if len(row) else np.nan
    if np.isnan(row).any() or top == -np.inf:
        return None
    weights = (row == np.inf).astype(np.float64) if top == np.inf else np.exp(row.astype(np.float64) - np.float64(top))
    return weights / weights.sum()  # type: ignore[no-any-return]


def agree(got: _native.Standing | None, row: Row, token: int, tolerance: float) -> bool:
    """Whether a standing is the token's in ``row``, whose values may be off by ``tolerance``."""
    p = softmax(row)
    if got is None or p is None:
        return got is None and p is None
    logits = row.astype(np.float64)
    with np.errstate(invalid="ignore"):
        ahead = int((logits > logits[token] + tolerance).sum())
        level = int((logits >= logits[token] - tolerance).sum())
    entropy = -float((p[p > 0] * np.log(p[p > 0])).sum())
    off = np.expm1(2 * min(tolerance, 1.0)) + 1e-5
    largest = p.max()
    return (
        abs(got.probability - p[token]) <= off * min(1.0, p[token] + 1e-7)
        and ahead + 1 <= got.rank <= max(level, ahead + 1)
        and abs(got.entropy - entropy) <= off * (2 + 2 * np.log(len(row)))
        and (p > 1e-36 * largest).sum() <= got.token_count <= (p > 1e-39 * largest).sum()
    )


def assert_explained_as_by_transformers(case: Case) -> None:
    case, generation = make_generation(case, make_sampling(case, seed=len(case.logits), explain=True))
    steps = expected_steps(case)
    rows = [case.logits] if case.unconditional is None else [case.logits, case.unconditional]
    (emission,) = SAMPLER.step(np.stack(rows), [generation], guidance=[1] if len(rows) == 2 else None)
    token, explanation = emission.token_id, emission.explanation
    assert explanation is not None, (case, emission.error)
    size = max((float(np.abs(row[np.isfinite(row)]).max(initial=0)) for row in rows), default=0.0)
    scale = max(1.0, abs(case.guidance_scale))
    is_exact = case.guidance_scale == 1 and not case.renormalize_logits
    tolerance = 0.0 if is_exact else 1e-5 + 5e-7 * scale * (1 + size) / min(case.temperature, 1.0)
    if tolerance > 0.1:
        if currently_in_test_context():
            event("too large for float32 to say")
        return
    assert agree(explanation.model, case.logits, token, 0.0), case
    effects = {effect.name: effect for effect in explanation.effects}
    assert list(effects) == [step.name for step in steps if step.name in effects], case
    for step in steps:
        effect = effects.get(step.name)
        if effect is None:
            is_right = not step.is_clear
        elif not step.is_changed:
            # Subtracting a logarithm that rounding keeps from being 0 changes the logits and nothing else.
            is_right = step.name == "renormalize_logits"
        else:
            is_right = (
                effect.removed_token_count == step.removed
                and agree(effect.before, step.before, token, tolerance)
                and agree(effect.after, step.after, token, tolerance)
            )
        if not is_right:
            assert step.is_doubtful, (case, step, effect and (effect.name, effect.removed_token_count))
            if currently_in_test_context():
                event("within rounding of a threshold")
            return
    assert agree(explanation.outcome, steps[-1].after, token, tolerance), case


@pytest.mark.parametrize("name", TUNABLE)
@each_profile
@given(data=st.data())
def test_each_setting_alone_is_explained_as_by_transformers(name: str, data: st.DataObject) -> None:
    assert_explained_as_by_transformers(data.draw(cases(name)))


@pytest.mark.timeout(900)  # Two thousand cases; when one fails, as many again to make it small.
@rows_profile
@given(case=combinations())
def test_settings_combined_are_explained_as_by_transformers(case: Case) -> None:
    assert_explained_as_by_transformers(case)


def test_every_name_is_the_name_of_a_setting() -> None:
    """Of those in the table above, each is a field; the one step of two settings apart."""
    fields = set(Case.__dataclass_fields__) | {"forced_eos_token_id", "presence_and_frequency_penalty"}
    assert set(NAMES.values()) <= fields


def test_what_invalid_values_hide_is_told() -> None:
    logits = np.array([0, np.nan, np.inf, -np.inf], dtype=np.float32)
    case = Case(logits, do_sample=False, remove_invalid_values=True, repetition_penalty=2.0)
    _, generation = make_generation(case, make_sampling(case, explain=True))
    (emission,) = SAMPLER.step(logits[None], [generation])
    explanation = emission.explanation
    assert explanation is not None
    assert explanation.model is None
    (effect,) = explanation.effects
    assert (effect.name, effect.removed_token_count, effect.before) == ("remove_invalid_values", 0, None)
    assert effect.after is not None
    assert explanation.outcome is not None
    assert (effect.after.probability, effect.after.rank, effect.after.token_count) == (1.0, 1, 1)


def test_tokens_at_infinity_share_what_there_is() -> None:
    logits = np.array([np.inf, 3, np.inf, -np.inf, 1, np.inf], dtype=np.float32)
    case = Case(logits, temperature=0.5, top_k=3, suppress_tokens=(2,))
    for seed in range(20):
        _, generation = make_generation(case, make_sampling(case, seed=seed, explain=True))
        (emission,) = SAMPLER.step(logits[None], [generation])
        explanation = emission.explanation
        assert explanation is not None
        model, outcome = explanation.model, explanation.outcome
        assert model is not None
        assert outcome is not None
        assert (model.token_count, outcome.token_count) == (3, 2)
        assert model.probability == pytest.approx(1 / 3)
        assert outcome.probability == pytest.approx(0.5)
        assert outcome.entropy == pytest.approx(np.log(2))
        # What infinity leaves no probability is no other step's doing.
        assert [(effect.name, effect.removed_token_count) for effect in explanation.effects] == [("suppress_tokens", 1)]


def test_a_row_of_equal_logits() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    case = Case(logits, top_k=10)
    _, generation = make_generation(case, make_sampling(case, explain=True))
    (emission,) = SAMPLER.step(logits[None], [generation])
    explanation = emission.explanation
    assert explanation is not None
    assert not explanation.effects  # All tie with the tenth.
    assert explanation.model is not None
    assert explanation.model.entropy == pytest.approx(np.log(1000))
    assert explanation.model.rank == emission.token_id + 1
