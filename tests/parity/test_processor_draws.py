"""Draws follow the distribution that transformers would sample from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from processor_cases import SAMPLER, Case, make_generation, make_sampling, reference


def chi_square_is_plausible(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> bool:
    """Pearson's test at a significance of 1e-4; cells that expect less than 5 are taken together."""
    expected = probabilities * counts.sum()
    assert not counts[expected == 0].any()
    small = expected < 5
    observed = np.append(counts[~small], counts[small].sum())
    cells = np.append(expected[~small], expected[small].sum())
    observed, cells = observed[cells > 0], cells[cells > 0]
    statistic, freedom = float(np.sum((observed - cells) ** 2 / cells)), len(cells) - 1
    # Wilson-Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal; 3.72 is its quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3 if freedom else 1e-6
    return statistic <= limit


DRAWS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.6},
    "all": {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
    "top_h": {"top_h": 0.7},
    "epsilon_cutoff": {"epsilon_cutoff": 0.01},
    "eta_cutoff": {"eta_cutoff": 0.02},
    "renormalize": {"top_p": 0.8, "renormalize_logits": True},
    "encoder": {"encoder_repetition_penalty": 2.0, "prompt": (1, 2, 3), "encoder_no_repeat_ngram_size": 1},
    "sequences": {"prompt": (1, 2), "sequence_bias": (((2, 3), 2.0), ((4,), 1.0)), "bad_words_ids": ((1, 2, 5),)},
    "allowed": {"allowed_token_ids": tuple(range(10))},
    "penalties": {"repetition_penalty": 1.5, "prompt": (1, 2, 3), "logit_bias": ((5, 2.0),), "suppress_tokens": (7,)},
}


@pytest.mark.parametrize("size", [12, 700, 5000])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_the_processed_distribution(name: str, size: int) -> None:
    logits = (np.random.default_rng(size).standard_normal(size) * 2).astype(np.float32)
    case = replace(Case(logits), **{**DRAWS[name], "top_k": min(DRAWS[name].get("top_k", 0), size)})
    probabilities = torch.softmax(torch.from_numpy(reference(case)).double(), dim=-1).numpy()
    counts = np.zeros(size, dtype=np.int64)
    batch = np.tile(logits, (500, 1))
    for seed in range(40):
        # Each draw is the first step of its own sequence, so that no history changes the distribution.
        sampling = make_sampling(case, seed=seed)
        sequences = [make_generation(case, sampling, sequence_index=index)[1] for index in range(500)]
        for emission in SAMPLER.step(batch, sequences):
            counts[emission.token_id] += 1
    assert chi_square_is_plausible(counts, probabilities)


def test_the_chi_square_test_notices_a_wrong_distribution() -> None:
    uniform = np.full(20, 0.05)
    generator = np.random.default_rng(1)
    assert chi_square_is_plausible(generator.multinomial(5000, uniform), uniform)
    bent = np.linspace(0.8, 1.2, 20) / 20
    assert not chi_square_is_plausible(generator.multinomial(5000, bent), uniform)
