"""Beam sampling draws as torch.multinomial does, and beams are told to Python as they are."""

import itertools
from collections import Counter

import numpy as np
import pytest
from sampling_cases import TOKENIZER, VOCAB, token

from tokenwire import _native

NUM_BEAMS = 2
SUPPORT = (1, 4, 7, 9, 13)
"""Tokens that have any probability in the distribution test."""


def make_search(sampling: _native.SamplingParams, **options: object) -> _native.BeamSearch:
    stopping = _native.StoppingParams(vocab_size=VOCAB, max_new_tokens=5, eos_token_ids=[15])
    return _native.BeamSearch(TOKENIZER, [0], sampling, stopping, num_beams=NUM_BEAMS, **options)  # type: ignore[arg-type]


def exact(scores: dict[int, float]) -> dict[tuple[int, int], float]:
    """Of each pair of next beams the probability.

    Drawn are 2 * NUM_BEAMS continuations without replacement, by the softmax of the scores; the next beams are the
    best of them.
    """
    weights = {id_: np.exp(score) for id_, score in scores.items()}
    pairs: dict[tuple[int, int], float] = {}
    for drawn in itertools.permutations(scores, 2 * NUM_BEAMS):
        left, probability = sum(weights.values()), 1.0
        for id_ in drawn:
            probability *= weights[id_] / left
            left -= weights[id_]
        best = tuple(sorted(drawn, key=lambda id_: -scores[id_])[:NUM_BEAMS])
        pairs[best[0], best[1]] = pairs.get((best[0], best[1]), 0.0) + probability
    return pairs


def test_beam_sampling_draws_from_the_softmax_of_scores_without_replacement() -> None:
    temperature = 1.6
    logits = np.full((1, VOCAB), -np.inf, np.float32)
    logits[0, list(SUPPORT)] = np.random.default_rng(0).normal(size=len(SUPPORT)) * 1.5
    logprobs = logits[0] - np.log(np.exp(logits[0]).sum())
    # The warper divides log probabilities: transformers does not normalize them again.
    expected = exact({id_: float(logprobs[id_]) / temperature for id_ in SUPPORT})
    sampling = _native.SamplingParams(vocab_size=VOCAB, do_sample=True, temperature=temperature, seed=7)
    rounds = 20_000
    counts: Counter[tuple[int, int]] = Counter()
    for index in range(rounds):
        step = make_search(sampling, sequence_index=index).step(logits)
        assert step.parents == [0, 0]
        first, second = step.token_ids
        counts[first, second] += 1
    assert set(counts) <= set(expected)
    chi_square = sum(
        (counts[pair] - rounds * probability) ** 2 / (rounds * probability) for pair, probability in expected.items()
    )
    # Mean len - 1, variance twice that: 5 standard deviations.
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_draws_depend_on_seed_sequence_and_step_alone() -> None:
    logits = np.random.default_rng(1).normal(size=(1, VOCAB)).astype(np.float32)
    logits = np.repeat(logits, NUM_BEAMS, axis=0)

    def tokens(seed: int, index: int) -> list[list[int]]:
        sampling = _native.SamplingParams(vocab_size=VOCAB, do_sample=True, seed=seed)
        search = make_search(sampling, sequence_index=index)
        return [search.step(logits[: 1 if step == 0 else NUM_BEAMS]).token_ids for step in range(3)]

    assert tokens(3, 0) == tokens(3, 0)
    distinct = {str(tokens(seed, index)) for seed in range(6) for index in range(6)}
    assert len(distinct) > 25


def test_a_search_tells_beams_and_then_answers() -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [token("a"), token("b")]] = 9, 8
    search = make_search(_native.SamplingParams(vocab_size=VOCAB), num_return_sequences=2)
    step = search.step(logits)
    assert (step.parents, step.token_ids, step.answers, step.error) == ([0, 0], [token("a"), token("b")], [], None)
    assert not search.is_over
    last = search.step(np.repeat(logits, 2, axis=0), is_last=True)
    assert (last.parents, last.token_ids, last.error) == ([], [], None)
    assert [answer.token_ids for answer in last.answers] == [
        [token("a"), token("a")],
        [token("a"), token("b")],
    ]
    assert [(answer.text, answer.finish_reason) for answer in last.answers] == [("aa", None), ("ab", None)]
    assert last.answers[0].score > last.answers[1].score
    assert search.is_over
    with pytest.raises(ValueError, match="finished"):
        search.step(logits)


def test_nan_is_an_error_of_the_step() -> None:
    search = make_search(_native.SamplingParams(vocab_size=VOCAB))
    step = search.step(np.full((1, VOCAB), np.nan, np.float32))
    assert "NaN" in str(step.error)
    assert search.is_over


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"num_beams": 1}, ["num_beams"]),
        ({"num_beams": 70000}, ["num_beams"]),
        ({"num_beams": 3, "num_return_sequences": 4}, ["num_return_sequences"]),
        ({"num_beams": 0, "num_return_sequences": 0, "length_penalty": float("nan")}, None),
        ({"num_beams": 2, "length_penalty": float("inf")}, ["length_penalty"]),
    ],
)
def test_options_outside_their_range_are_named(options: dict[str, float], fields: list[str] | None) -> None:
    sampling = _native.SamplingParams(vocab_size=VOCAB)
    stopping = _native.StoppingParams(vocab_size=VOCAB, max_new_tokens=5)
    with pytest.raises(_native.InvalidParametersError) as caught:
        _native.BeamSearch(TOKENIZER, [0], sampling, stopping, **options)  # type: ignore[arg-type]
    named = [field for field, _, _ in caught.value.violations]
    assert named == (fields or ["num_beams", "num_return_sequences", "length_penalty"])


def test_bfloat16_rows_are_taken_as_their_values() -> None:
    logits = np.random.default_rng(2).normal(size=(1, VOCAB)).astype(np.float32)
    bits = (logits.view(np.uint32) >> 16).astype(np.uint16)
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    sampling = _native.SamplingParams(vocab_size=VOCAB)
    assert make_search(sampling).step(bits).token_ids == make_search(sampling).step(widened).token_ids
