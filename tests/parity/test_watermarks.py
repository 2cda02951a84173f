"""Watermarks against transformers', step by step, and found by its detectors."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processor_cases import (
    SAMPLER,
    Case,
    Row,
    each_profile,
    make_generation,
    make_sampling,
    processors_of,
    stable_sort,
    stable_topk,
)
from processor_strategies import rows
from transformers import SynthIDTextWatermarkingConfig, WatermarkDetector, WatermarkingConfig
from transformers.generation.logits_process import SynthIDTextWatermarkLogitsProcessor

from tokenwire.engine.settings import GreenListWatermark, SynthIdTextWatermark, Watermark

KEYS = (654, 400, 836, 123, 340, 443, 597, 160, 57)


def config_of(watermark: Watermark) -> Any:
    """transformers' configuration of the same scheme."""
    values = {name: getattr(watermark, name) for name in watermark.__struct_fields__}
    if isinstance(watermark, GreenListWatermark):
        return WatermarkingConfig(**values)
    return SynthIDTextWatermarkingConfig(**{**values, "keys": list(watermark.keys)})


def reference(case: Case, watermark: Watermark) -> Row:
    """Scores of the last step; the processor has a state, so that it must see those before as well.

    What normalizes comes behind it in transformers, too. Before it, rounding would make equal what is not.
    """
    processors = processors_of(replace(case, renormalize_logits=False))
    marker = config_of(watermark).construct_processor(len(case.logits), "cpu")
    if isinstance(watermark, GreenListWatermark):
        # Without any green candidate transformers indexes with an empty tensor of floats, and fails.
        score = marker._score_rejection_sampling
        marker._score_rejection_sampling = lambda *arguments: score(*arguments).long()
    with patch("torch.sort", stable_sort), patch("torch.topk", stable_topk), patch("torch.Tensor.sort", stable_sort):
        for length in range(len(case.generated) + 1):
            input_ids = torch.tensor([case.prompt + case.generated[:length]])
            scores = marker(input_ids, processors(input_ids, torch.from_numpy(case.logits.copy())[None]))
    return np.asarray(scores[0].numpy())


def ours(case: Case, watermark: Watermark) -> tuple[Case, Row]:
    case, generation = make_generation(case, make_sampling(case, watermark=watermark))
    return case, SAMPLER.processed_logits(case.logits, generation)


HISTORIES = st.lists(st.integers(0, 7), max_size=12).map(tuple)
WARPERS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"top_k": 5}, {"temperature": 0.7}, {"top_p": 0.8}, {"do_sample": False}, {"renormalize_logits": True}]
)


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
@each_profile
@given(
    row=rows(),
    history=HISTORIES,
    warpers=WARPERS,
    ratio=st.sampled_from([0.25, 0.5, 0.99, 1e-6]),
    key=st.one_of(st.just(15485863), st.integers(1, 2**63 - 1)),
    bias=st.floats(-5.0, 5.0),
    width=st.integers(1, 4),
)
def test_a_green_list_equals_transformers(
    scheme: Any, row: Row, history: tuple[int, ...], warpers: Any, ratio: float, key: int, bias: float, width: int
) -> None:
    if scheme == "selfhash" and len(row) < 40:
        # transformers tries 40 candidates and has an index error where there are fewer.
        row = np.concatenate([row, np.full(40, -np.inf, dtype=np.float32)])
    watermark = GreenListWatermark(
        greenlist_ratio=ratio, bias=bias, hashing_key=key, seeding_scheme=scheme, context_width=width
    )
    case, got = ours(Case(row, prompt=(1,), generated=history, **warpers), watermark)
    want = reference(case, watermark)
    if case.renormalize_logits:
        got, want = (scores - np.logaddexp.reduce(scores.astype(np.float64)) for scores in (got, want))
    assert np.array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@each_profile
@given(
    row=rows(),
    history=HISTORIES,
    warpers=WARPERS,
    ngram_len=st.integers(2, 6),
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5).map(tuple),
    remembered=st.sampled_from([1, 2, 1024]),
    table=st.tuples(st.integers(-(2**63), 2**63 - 1), st.sampled_from([1, 7, 2**16])),
    skips=st.booleans(),
    debug=st.booleans(),
)
def test_synth_id_text_equals_transformers(
    row: Row,
    history: tuple[int, ...],
    warpers: Any,
    ngram_len: int,
    keys: tuple[int, ...],
    remembered: int,
    table: tuple[int, int],
    skips: bool,
    debug: bool,
) -> None:
    watermark = SynthIdTextWatermark(
        ngram_len=ngram_len,
        keys=keys,
        context_history_size=remembered,
        sampling_table_seed=table[0],
        sampling_table_size=table[1],
        skip_first_ngram_calls=skips,
        debug_mode=debug,
    )
    case, got = ours(Case(row, prompt=(1,), generated=history, **{**warpers, "renormalize_logits": False}), watermark)
    want = reference(case, watermark)
    assert np.array_equal(np.isfinite(got), np.isfinite(want))
    # Where a round leaves almost no mass, float32 decides what is left of it: compare probabilities.
    p, q = (torch.softmax(torch.from_numpy(scores).double(), dim=-1).numpy() for scores in (got, want))
    np.testing.assert_allclose(p, q, rtol=1e-3, atol=1e-5)
    likely = q > 1e-3
    np.testing.assert_allclose(got[likely], want[likely], rtol=1e-4, atol=1e-3)


def generate(watermark: Watermark | None, *, vocab: int, count: int) -> list[int]:
    """Tokens sampled from rows that leave some choice."""
    generator = np.random.default_rng(5)
    case = Case(np.zeros(vocab, dtype=np.float32), prompt=(1, 2, 3))
    _, generation = make_generation(case, make_sampling(case, seed=3, watermark=watermark))
    steps = (generator.standard_normal((1, vocab)).astype(np.float32) * 2 for _ in range(count))
    return [SAMPLER.step(logits, [generation])[0].token_id for logits in steps]


@pytest.mark.parametrize("watermark", [GreenListWatermark(), GreenListWatermark(seeding_scheme="selfhash")])
def test_the_detector_finds_the_green_list(watermark: GreenListWatermark) -> None:
    vocab = 500
    model = SimpleNamespace(vocab_size=vocab, is_encoder_decoder=False, bos_token_id=-1)
    detector = WatermarkDetector(model_config=model, device="cpu", watermarking_config=config_of(watermark))
    marked, plain = (torch.tensor([generate(choice, vocab=vocab, count=120)]) for choice in (watermark, None))
    assert detector(marked).tolist() == [True]
    assert detector(plain).tolist() == [False]


def test_synth_id_text_leaves_more_ones_than_chance() -> None:
    vocab, watermark = 500, SynthIdTextWatermark(ngram_len=5, keys=KEYS)
    scorer: SynthIDTextWatermarkLogitsProcessor = config_of(watermark).construct_processor(vocab, "cpu")

    def mean(choice: Watermark | None) -> float:
        tokens = torch.tensor([generate(choice, vocab=vocab, count=200)])
        return float(scorer.compute_g_values(tokens).double().mean())

    # 196 n-grams of nine coins each: four standard deviations of a mean of fair ones are 0.048.
    assert mean(watermark) > 0.6
    assert abs(mean(None) - 0.5) < 0.05


def test_a_watermark_of_neither_scheme_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'watermark'"):
        make_sampling(Case(np.zeros(4, dtype=np.float32)), watermark=object())
