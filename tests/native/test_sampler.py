"""The batch step: choice, isolation of rows, log probabilities, shapes and types."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sampling_cases import SPECIAL, VOCAB, forcing, make_generation

from tokenwire import _native

MIXED: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "temperature": 0.8, "top_k": 50},
    {"do_sample": True, "top_k": 0, "top_p": 0.9},
    {"do_sample": True, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.3},
    {"do_sample": True, "top_k": 0, "typical_p": 0.8, "presence_penalty": 1.0},
    {"do_sample": True, "frequency_penalty": 0.5, "logit_bias": {3: 4.0}, "suppress_tokens": [1, 2]},
    {"repetition_penalty": 2.0, "logprobs": 3},
]


def logits_of(rows: int, vocab: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * 3).astype(np.float32)


def bfloat16(logits: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """The bits of the truncated values, and the values."""
    bits = (logits.view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


@given(st.integers(1, 9), st.integers(1, 700), st.integers(0, 2**32))
def test_greedy_is_the_first_of_the_largest(rows: int, vocab: int, seed: int) -> None:
    logits = np.round(logits_of(rows, vocab, seed))
    emissions = _native.Sampler().step(logits, [make_generation(vocab_size=vocab) for _ in range(rows)])
    assert [emission.token_id for emission in emissions] == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("settings", MIXED)
@pytest.mark.parametrize("vocab", [VOCAB, 3000])
def test_a_seed_gives_the_same_tokens_alone_and_among_others(settings: dict[str, Any], vocab: int) -> None:
    steps = [logits_of(16, vocab, seed) for seed in range(20)]
    place = 11
    alone = make_generation(vocab_size=vocab, seed=7, **settings)
    batch = [make_generation(vocab_size=vocab, seed=index, **MIXED[index % len(MIXED)]) for index in range(16)]
    batch[place] = make_generation(vocab_size=vocab, seed=7, **settings)
    first, second = _native.Sampler(), _native.Sampler()
    expected = [first.step(logits[place : place + 1].copy(), [alone])[0].token_id for logits in steps]
    assert [second.step(logits, batch)[place].token_id for logits in steps] == expected


def test_threads_change_nothing() -> None:
    """More than a million logits are spread over threads."""
    vocab, rows = 40_000, 32
    logits = logits_of(rows, vocab)
    settings = [{"vocab_size": vocab, "seed": index, **MIXED[index % len(MIXED)]} for index in range(rows)]
    together = _native.Sampler().step(logits, [make_generation(**chosen) for chosen in settings])
    for index, chosen in enumerate(settings):
        (alone,) = _native.Sampler().step(logits[index : index + 1].copy(), [make_generation(**chosen)])
        assert (alone.token_id, alone.top_logprobs) == (together[index].token_id, together[index].top_logprobs)


def test_seed_and_sequence_index_and_step_all_count() -> None:
    uniform = np.zeros((1, 1000), dtype=np.float32)
    sampler = _native.Sampler()

    def tokens(**chosen: Any) -> tuple[int, ...]:
        generation = make_generation(vocab_size=1000, do_sample=True, top_k=0, **chosen)
        return tuple(sampler.step(uniform, [generation])[0].token_id for _ in range(5))

    seen = {tokens(seed=seed, sequence_index=index) for seed in (-1, 0, 1, 2**62) for index in (0, 1, 2)}
    assert len(seen) == 12
    assert all(len(set(drawn)) > 1 for drawn in seen)
    assert tokens(seed=5) == tokens(seed=5)


@pytest.mark.parametrize("settings", MIXED)
def test_bfloat16_bits_equal_their_values(settings: dict[str, Any]) -> None:
    bits, values = bfloat16(logits_of(4, 500))
    results = []
    for logits in (bits, values):
        generations = [make_generation(vocab_size=500, seed=index, **settings) for index in range(4)]
        emissions = _native.Sampler().step(logits, generations)
        results.append([(emission.token_id, emission.logprob) for emission in emissions])
    assert results[0] == results[1]


@pytest.mark.parametrize("settings", MIXED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_are_not_changed(settings: dict[str, Any], dtype: str) -> None:
    logits: NDArray[Any] = logits_of(2, 300)
    if dtype == "bfloat16":
        logits = bfloat16(logits)[0]
    before = logits.copy()
    logits.flags.writeable = False
    generations = [make_generation(vocab_size=300, **settings) for _ in range(2)]
    sampler = _native.Sampler()
    for _ in range(3):
        sampler.step(logits, generations)
    sampler.processed_logits(logits[0], generations[0])
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("settings", MIXED)
@pytest.mark.parametrize(
    ("spoil", "message"), [(np.nan, "the logits hold NaN"), (-np.inf, "no token is allowed: all logits are -infinity")]
)
def test_a_spoilt_row_fails_alone(settings: dict[str, Any], spoil: float, message: str) -> None:
    vocab, bad = 600, 3
    logits = logits_of(8, vocab)
    expected = _native.Sampler().step(logits, [make_generation(vocab_size=vocab, **settings) for _ in range(8)])
    if np.isnan(spoil):
        logits[bad, 599] = spoil
    else:
        logits[bad] = spoil
    generations = [make_generation(vocab_size=vocab, **settings) for _ in range(8)]
    emissions = _native.Sampler().step(logits, generations)
    for index, emission in enumerate(emissions):
        if index == bad:
            assert (emission.token_id, emission.error, emission.finish_reason) == (-1, message, None)
        else:
            assert (emission.token_id, emission.error) == (expected[index].token_id, None)
        assert generations[index].is_finished == (index == bad)


def test_every_token_suppressed_is_a_defined_end() -> None:
    generation = make_generation(suppress_tokens=range(VOCAB))
    (emission,) = _native.Sampler().step(np.zeros((1, VOCAB), dtype=np.float32), [generation])
    assert emission.error == "no token is allowed: all logits are -infinity"
    assert generation.is_finished


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("processed", [False, True])
@given(st.integers(1, 300), st.integers(0, 20), st.integers(0, 2**32))
def test_log_probabilities_are_the_log_softmax(
    do_sample: bool, processed: bool, vocab: int, count: int, seed: int
) -> None:
    logits, count = np.round(logits_of(1, vocab, seed), 1), min(count, vocab)
    settings: dict[str, Any] = {"temperature": 0.7, "top_k": 7, "logit_bias": {0: 3.0}, "do_sample": do_sample}
    generation = make_generation(
        vocab_size=vocab, seed=seed, logprobs=count, processed_logprobs=processed, **settings | {"top_k": min(7, vocab)}
    )
    sampler = _native.Sampler()
    seen = sampler.processed_logits(logits[0], generation) if processed else logits[0]
    log_p = seen.astype(np.float64) - np.logaddexp.reduce(seen.astype(np.float64))
    (emission,) = sampler.step(logits, [generation])
    assert emission.logprob == pytest.approx(log_p[emission.token_id], abs=1e-5)
    best = [token for token in np.lexsort((np.arange(vocab), -seen)) if np.isfinite(seen[token])][:count]
    assert [token for token, _ in emission.top_logprobs] == best
    assert [logprob for _, logprob in emission.top_logprobs] == pytest.approx(log_p[best], abs=1e-5)


def test_log_probabilities_are_off_by_default() -> None:
    (emission,) = _native.Sampler().step(forcing(1), [make_generation()])
    assert (emission.logprob, emission.top_logprobs) == (None, [])


def test_a_removed_token_has_a_raw_log_probability_still() -> None:
    logits = np.array([[5.0, 1.0] + [0.0] * 14], dtype=np.float32)
    (emission,) = _native.Sampler().step(logits, [make_generation(suppress_tokens=[0], logprobs=1)])
    assert emission.token_id == 1
    assert emission.top_logprobs[0][0] == 0


BAD_BATCHES: list[tuple[Any, list[_native.Generation], type[Exception], str]] = [
    (np.zeros((2, VOCAB), np.float32), [make_generation()], ValueError, "2 rows of logits for 1 generations"),
    (np.zeros((1, VOCAB - 1), np.float32), [make_generation()], ValueError, "15 columns.* vocabulary of 16"),
    (np.zeros((1, 0), np.float32), [make_generation()], ValueError, "0 columns"),
    (np.zeros(VOCAB, np.float32), [make_generation()], TypeError, "2 dimensions"),
    (np.zeros((1, VOCAB), np.float64), [make_generation()], TypeError, "float32 or uint16"),
    ([[0.0] * VOCAB], [make_generation()], TypeError, "array"),
    (np.zeros((VOCAB, 2), np.float32).T, [make_generation(), make_generation()], ValueError, "C-contiguous"),
    (np.zeros((2, 2 * VOCAB), np.float32)[:, ::2], [make_generation()] * 2, ValueError, "C-contiguous"),
    (np.zeros((1, VOCAB), np.float32), [None], TypeError, "Generation"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("logits", "generations", "error", "message"), BAD_BATCHES)
def test_a_wrong_batch_is_refused(
    logits: Any, generations: list[_native.Generation], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _native.Sampler().step(logits, generations)


def test_a_refused_batch_changes_nothing() -> None:
    fresh, done = make_generation(), make_generation(stopping={"eos_token_ids": [SPECIAL]})
    sampler = _native.Sampler()
    sampler.step(forcing(SPECIAL), [done])
    for generations, message in (([fresh, fresh], "generation 1 occurs twice"), ([fresh, done], "1 is finished")):
        with pytest.raises(ValueError, match=message):
            sampler.step(forcing(1, 1), generations)
        assert fresh.num_generated == 0
    assert sampler.step(forcing(1), [fresh])[0].token_id == 1


def test_an_empty_batch_gives_nothing() -> None:
    assert _native.Sampler().step(np.zeros((0, VOCAB), dtype=np.float32), []) == []


def test_the_model_may_have_more_columns_than_the_tokenizer_has_tokens() -> None:
    generation = make_generation(vocab_size=VOCAB + 4)
    (emission,) = _native.Sampler().step(forcing(VOCAB + 3, vocab_size=VOCAB + 4), [generation])
    assert (emission.token_id, emission.text, emission.error) == (VOCAB + 3, "", None)
