"""Guidance: rows of a batch whose unconditional rows stand behind them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_cases import VOCAB, make_generation

from tokenwire import _native

SCALES = (1.0, 1.5, 0.0, -2.0, 7.5)


def row_of(seed: int, vocab: int = VOCAB) -> Any:
    return (np.random.default_rng(seed).standard_normal((1, vocab)) * 3).astype(np.float32)


def log_softmax(row: Any) -> Any:
    return row.astype(np.float64) - np.logaddexp.reduce(row.astype(np.float64))


@given(
    st.lists(st.tuples(st.sampled_from(SCALES), st.integers(0, 50)), min_size=1, max_size=9),
    st.sampled_from([VOCAB, 700]),
    st.randoms(use_true_random=False),
)
def test_a_guided_row_in_a_batch_equals_itself_alone(rows: list[tuple[float, int]], vocab: int, order: Any) -> None:
    own = [row_of(seed, vocab) for _, seed in rows]
    guided = [index for index, (scale, _) in enumerate(rows) if scale != 1]
    order.shuffle(guided)
    twins = [row_of(1000 + index, vocab) for index in guided]
    entries = [len(rows) + guided.index(index) if index in guided else -1 for index in range(len(rows))]
    settings = [
        {"guidance_scale": scale, "do_sample": True, "seed": seed, "logprobs": 2, "processed_logprobs": True}
        for scale, seed in rows
    ]
    batch = [make_generation(vocab_size=vocab, **chosen) for chosen in settings]
    together = _native.Sampler().step(np.concatenate([*own, *twins]), batch, guidance=entries)
    for index, chosen in enumerate(settings):
        generation = make_generation(vocab_size=vocab, **chosen)
        if index in guided:
            twin = twins[guided.index(index)]
            (alone,) = _native.Sampler().step(np.concatenate([own[index], twin]), [generation], guidance=[1])
        else:
            (alone,) = _native.Sampler().step(own[index], [generation])
        emission = together[index]
        assert (emission.token_id, emission.logprob, emission.top_logprobs) == (
            alone.token_id,
            alone.logprob,
            alone.top_logprobs,
        )


def test_a_scale_goes_from_one_distribution_to_the_other_and_beyond() -> None:
    conditional, unconditional = row_of(1), row_of(2)
    for scale in (0.0, 0.5, 3.0):
        got = _native.Sampler().processed_logits(
            conditional[0], make_generation(guidance_scale=scale), unconditional=unconditional[0]
        )
        c, u = log_softmax(conditional[0]), log_softmax(unconditional[0])
        np.testing.assert_allclose(got, u + scale * (c - u), atol=1e-5)


def test_bfloat16_rows_guide_as_their_values_do() -> None:
    bits = (np.concatenate([row_of(1), row_of(2)]).view(np.uint32) >> 16).astype(np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    results = []
    for logits in (bits, values):
        generation = make_generation(guidance_scale=2.0, logprobs=3, processed_logprobs=True)
        (emission,) = _native.Sampler().step(logits, [generation], guidance=[1])
        results.append((emission.token_id, emission.top_logprobs))
    assert results[0] == results[1]


def test_threads_find_the_unconditional_rows() -> None:
    vocab, rows = 70_000, 12
    logits = np.concatenate([row_of(seed, vocab) for seed in range(2 * rows)])
    results = []
    for threads in (1, 5):
        batch = [make_generation(vocab_size=vocab, guidance_scale=3.0) for _ in range(rows)]
        entries = [2 * rows - 1 - index for index in range(rows)]
        emissions = _native.Sampler(threads=threads).step(logits, batch, guidance=entries)
        results.append([emission.token_id for emission in emissions])
    assert results[0] == results[1]


def test_raw_log_probabilities_are_those_of_the_row_with_the_prompt() -> None:
    generation = make_generation(guidance_scale=4.0, logprobs=0)
    (emission,) = _native.Sampler().step(np.concatenate([row_of(3), row_of(4)]), [generation], guidance=[1])
    assert emission.logprob == pytest.approx(log_softmax(row_of(3)[0])[emission.token_id], abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "scales", "guidance", "message"),
    [
        (1, [2.0], None, "generation 0 has guidance_scale 2, which does not go with"),
        (1, [2.0], [-1], "generation 0 has guidance_scale 2, which does not go with"),
        (3, [2.0, 1.0], [2, 2], "generation 1 has guidance_scale 1, which does not go with"),
        (2, [2.0], [0], "unconditional row of generation 0, 0, is not one of those from 1 to 1"),
        (2, [2.0], [2], "unconditional row of generation 0, 2, is not"),
        (2, [2.0], [-2], "unconditional row of generation 0, [0-9]+, is not"),
        (2, [2.0], [10**40], "unconditional row of generation 0, [0-9]+, is not"),
        (2, [2.0], [], "0 entries of guidance for 1 generations"),
        (2, [2.0], [1, 1], "2 entries of guidance for 1 generations"),
        (2, [1.0], None, "2 rows of logits for 1 generations"),
        (1, [2.0, 2.0], [1, 1], "1 rows of logits for 2 generations"),
    ],
)
def test_wrong_guidance_is_refused_and_changes_nothing(
    rows: int, scales: list[float], guidance: list[int] | None, message: str
) -> None:
    batch = [make_generation(guidance_scale=scale) for scale in scales]
    with pytest.raises(ValueError, match=message):
        _native.Sampler().step(np.zeros((rows, VOCAB), dtype=np.float32), batch, guidance=guidance)
    assert all(generation.num_generated == 0 for generation in batch)


def test_a_spoilt_unconditional_row_fails_its_own_generation_alone() -> None:
    logits = np.concatenate([row_of(seed) for seed in range(4)])
    logits[3, 5] = np.nan
    batch = [make_generation(guidance_scale=2.0) for _ in range(2)]
    first, second = _native.Sampler().step(logits, batch, guidance=[2, 3])
    assert (first.error, second.error) == (None, "the logits hold NaN")
    assert [generation.is_finished for generation in batch] == [False, True]
