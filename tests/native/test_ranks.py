"""Ranks of chosen tokens, and how likely the end ever was."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_cases import VOCAB, make_generation

from tokenwire import _native


@pytest.mark.parametrize("processed", [False, True])
@given(st.integers(1, 900), st.integers(0, 5), st.integers(0, 2**32))
def test_a_rank_counts_the_likelier_tokens(processed: bool, vocab: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = np.round(generator.standard_normal((1, vocab)) * 2, 1).astype(np.float32)
    generation = make_generation(
        vocab_size=vocab,
        seed=seed,
        do_sample=True,
        temperature=2.0,
        top_p=0.9,
        logit_bias={0: 3.0},
        logprobs=min(count, vocab),
        processed_logprobs=processed,
    )
    sampler = _native.Sampler()
    seen = sampler.processed_logits(logits[0], generation) if processed else logits[0]
    (emission,) = sampler.step(logits, [generation])
    order = np.lexsort((np.arange(vocab), -seen)).tolist()
    assert emission.rank == order.index(emission.token_id) + 1
    for place, (token, _) in enumerate(emission.top_logprobs):
        assert order[place] == token


def test_there_is_no_rank_without_log_probabilities() -> None:
    (emission,) = _native.Sampler().step(np.zeros((1, VOCAB), dtype=np.float32), [make_generation()])
    assert emission.rank is None


LIKELY = 1e-6


@given(
    st.lists(st.floats(-40.0, 10.0), min_size=1, max_size=12),
    st.sampled_from([2, 5, 300, 5000]),
    st.sampled_from([0.0, 0.5, 4.0]),
    st.booleans(),
)
def test_the_largest_probability_of_the_end_is_on_the_right_side(
    eos_logits: list[float], vocab: int, spread: float, suppresses: bool
) -> None:
    """From 1e-6 on it is the first such probability, below it bounds all of them, whatever processors do."""
    settings: dict[str, Any] = {"suppress_tokens": [0, 1]} if suppresses and vocab > 2 else {}
    stopping = {"eos_token_ids": [0, 1], "max_new_tokens": 100}
    generation = make_generation(vocab_size=vocab, stopping=stopping, **settings)
    sampler, first_likely, largest = _native.Sampler(), None, 0.0
    for step, eos_logit in enumerate(eos_logits):
        logits = (np.random.default_rng(step).standard_normal((1, vocab)) * spread).astype(np.float32)
        logits[0, 0], logits[0, 1] = eos_logit, eos_logit - 1
        p = np.exp(logits[0].astype(np.float64) - np.logaddexp.reduce(logits[0].astype(np.float64)))[:2].max()
        largest = max(largest, float(p))
        if first_likely is None and p >= LIKELY * (1 + 1e-5):
            first_likely = float(p)
        sampler.step(logits, [generation])
        got = generation.eos_probability_max
        assert got is not None
        if first_likely is not None:
            assert got == pytest.approx(first_likely, rel=1e-4)
        elif largest < LIKELY * (1 - 1e-5):
            assert largest * (1 - 1e-5) <= got < LIKELY
        else:
            return
        if generation.is_finished:
            return


def test_without_eos_tokens_there_is_no_probability_of_the_end() -> None:
    generation = make_generation()
    _native.Sampler().step(np.zeros((1, VOCAB), dtype=np.float32), [generation])
    assert generation.eos_probability_max is None
