"""Processors and warpers against transformers', alone and combined, on rows made to be difficult.

``HYPOTHESIS_PROFILE=deep`` draws many more rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processor_cases import FILTERS, Case, assert_equal_to_transformers, each_profile, rows_profile
from processor_strategies import TUNABLE, cases, combinations


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more, torch adds up long rows in another order: what is within rounding would depend on the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TUNABLE)
@each_profile
@given(data=st.data())
def test_each_setting_alone_equals_transformers(name: str, data: st.DataObject) -> None:
    assert_equal_to_transformers(data.draw(cases(name)))


@pytest.mark.parametrize("name", FILTERS)
@each_profile
@given(data=st.data())
def test_each_filter_leaves_what_beams_need(name: str, data: st.DataObject) -> None:
    assert_equal_to_transformers(replace(data.draw(cases(name, "eos_token_ids")), beams=True))


@pytest.mark.timeout(900)  # Two thousand cases; when one fails, as many again to make it small.
@rows_profile
@given(case=combinations())
def test_settings_combined_equal_transformers(case: Case) -> None:
    assert_equal_to_transformers(case)


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("size", [49_152, 128_256])
@pytest.mark.parametrize(
    "chosen",
    [
        {"top_k": 50},
        {"top_k": 3000},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"typical_p": 0.8},
        {"top_h": 0.6},
        {"epsilon_cutoff": 1e-5},
        {"eta_cutoff": 1e-3},
    ],
)
def test_vocabularies_of_real_models_equal_transformers(chosen: dict[str, Any], size: int, spread: float) -> None:
    logits = (np.random.default_rng(size).standard_normal(size) * spread).astype(np.float32)
    for temperature in (1.0, 0.8):
        assert_equal_to_transformers(replace(Case(logits, temperature=temperature), **chosen))
