"""Where transformers fails or leaves it open, and the edges of single processors."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from processor_cases import SAMPLER, Case, make_generation, make_sampling, ours


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-38, 1e-10])
def test_the_coldest_temperatures_choose_the_best_token(temperature: float) -> None:
    logits = np.array([1.0, 3.0, 2.999, -1.0, 3.0], dtype=np.float32)
    filters: list[dict[str, Any]] = [{"top_p": 1.0}, {"top_k": 4}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9}]
    for top in filters:
        processed = ours(replace(Case(logits, temperature=temperature), **top)).astype(np.float64)
        weights = np.exp(processed - processed.max())
        assert weights[[0, 2, 3]].tolist() == [0, 0, 0], top
        assert weights[[1, 4]].sum() >= 1, top


def test_infinite_logits_share_the_probability() -> None:
    logits = np.array([1.0, np.inf, -np.inf, np.inf], dtype=np.float32)
    assert ours(Case(logits)).tolist() == [-np.inf, 0.0, -np.inf, 0.0]
    assert ours(Case(logits, top_k=1)).tolist() == [-np.inf, 0.0, -np.inf, 0.0]
    assert ours(Case(logits, top_p=0.4)).tolist() == [-np.inf, -np.inf, -np.inf, 0.0]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case(np.array([0.0, np.nan], dtype=np.float32)), "NaN"),
        (Case(np.array([0.0, np.nan], dtype=np.float32), suppress_tokens=(1,)), "NaN"),
        (Case(np.array([-np.inf, -np.inf], dtype=np.float32)), "no token is allowed"),
        (Case(np.zeros(2, dtype=np.float32), suppress_tokens=(0, 1)), "no token is allowed"),
    ],
)
def test_a_row_without_a_choice_is_refused(case: Case, message: str) -> None:
    for do_sample in (False, True):
        with pytest.raises(ValueError, match=message):
            ours(replace(case, do_sample=do_sample))


def test_a_row_that_is_mended_does_not_fail() -> None:
    logits = np.array([1.0, np.nan, np.inf, -np.inf, 2.0], dtype=np.float32)
    limits = np.finfo(np.float32)
    assert ours(Case(logits, remove_invalid_values=True)).tolist() == [1.0, 0.0, limits.max, limits.min, 2.0]
    for row in (logits, np.full(5, np.nan, dtype=np.float32), np.full(5, -np.inf, dtype=np.float32)):
        for do_sample in (False, True):
            for options in ({"logprobs": 2}, {"logprobs": 2, "processed_logprobs": True}):
                case = Case(row, remove_invalid_values=True, do_sample=do_sample)
                _, generation = make_generation(case, make_sampling(case, **options))
                (emission,) = SAMPLER.step(row[None], [generation])
                assert emission.error is None
                assert len(emission.top_logprobs) == 2
                assert emission.logprob is not None
                assert np.isfinite(emission.logprob)


def test_tokens_that_both_rows_forbid_stay_forbidden() -> None:
    conditional = np.array([1.0, -np.inf, 0.5], dtype=np.float32)
    unconditional = np.array([0.0, -np.inf, 0.5], dtype=np.float32)
    got = ours(Case(conditional, unconditional=unconditional, guidance_scale=3.0))
    assert np.isfinite(got).tolist() == [True, False, True]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("spoil", [np.nan, np.inf])
def test_guidance_by_what_is_no_distribution_fails_the_row(row: int, spoil: float) -> None:
    rows = np.zeros((2, 4), dtype=np.float32)
    rows[row, 2] = spoil
    with pytest.raises(ValueError, match="NaN"):
        ours(Case(rows[0], unconditional=rows[1], guidance_scale=2.0))
    mended = ours(Case(rows[0], unconditional=rows[1], guidance_scale=2.0, remove_invalid_values=True))
    assert mended.tolist() == [0.0] * 4


def test_decay_that_overflows_keeps_a_logit_of_zero() -> None:
    case = Case(np.array([0.0, 2.0, 1.0], dtype=np.float32), generated=(2,) * 20, eos_token_ids=(0,))
    assert ours(replace(case, exponential_decay_length_penalty=(0, 1e30))).tolist() == [0.0, 2.0, 1.0]


@pytest.mark.parametrize(("prompt", "suppressed_at"), [((3,), 1), ((3, 4), 0)])
def test_begin_suppression_comes_after_a_forced_bos(prompt: tuple[int, ...], suppressed_at: int) -> None:
    case = Case(np.zeros(8, dtype=np.float32), prompt=prompt, forced_bos_token_id=5, begin_suppress_tokens=(1,))
    for step in range(3):
        got = ours(replace(case, generated=(5,) * step))
        assert (got[1] == -np.inf) == (step == suppressed_at or (len(prompt) == 1 and step == 0))


@pytest.mark.parametrize(("generated", "is_forced"), [(2, False), (3, True)])
def test_the_end_is_forced_in_the_last_place(generated: int, is_forced: bool) -> None:
    case = Case(np.ones(8, dtype=np.float32), generated=(2,) * generated, forced_eos_token_ids=(6, 7), max_new_tokens=4)
    assert np.isfinite(ours(case)).tolist() == ([False] * 6 + [True] * 2 if is_forced else [True] * 8)


def test_allowed_tokens_that_nothing_leaves_are_equal() -> None:
    case = Case(np.arange(6, dtype=np.float32), bad_words_ids=((3,), (4,)))
    assert ours(replace(case, allowed_token_ids=(1, 3))).tolist() == [-np.inf, 1.0] + [-np.inf] * 4
    assert ours(replace(case, allowed_token_ids=(3, 4))).tolist() == [-np.inf] * 3 + [0.0, 0.0, -np.inf]


def test_a_bad_word_that_is_an_eos_token_may_end_the_answer() -> None:
    case = Case(np.zeros(6, dtype=np.float32), eos_token_ids=(2,), bad_words_ids=((2,), (3,), (0, 2)))
    assert np.isfinite(ours(replace(case, prompt=(1,)))).tolist() == [True, True, True, False, True, True]
    assert np.isfinite(ours(replace(case, prompt=(0,)))).tolist() == [True, True, False, False, True, True]
