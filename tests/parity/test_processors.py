"""Processors and warpers against transformers', alone and combined, on rows made to be difficult.

``HYPOTHESIS_PROFILE=deep`` draws many more rows.
"""

import json
import os
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import GenerationMixin

from tokenwire import _native

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
rows_profile = settings(
    max_examples=3000 if DEEP else 300,
    deadline=None,
    derandomize=not DEEP,
    suppress_health_check=[HealthCheck.too_slow],
)
each_profile = settings(rows_profile, max_examples=500 if DEEP else 40)

Row = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One row, what came before it, and the settings; the names are those of SamplingParams and StoppingParams."""

    logits: Row
    prompt: tuple[int, ...] = (0,)
    generated: tuple[int, ...] = ()
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0


TUNABLE = [field.name for field in fields(Case)][3:]


class BiasAndPenalties(LogitsProcessor):  # type: ignore[misc]
    """The three settings that transformers does not have, by the formulas of generation.proto."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, bias in self.case.logit_bias:
            scores[0, token] += np.float32(bias)
        for token in set(self.case.generated):
            times = np.float32(self.case.generated.count(token))
            scores[0, token] -= np.float32(self.case.presence_penalty) + np.float32(self.case.frequency_penalty) * times
        return scores


class Model(GenerationMixin):  # type: ignore[misc]
    """As much of a model as choosing the processors takes."""

    config = SimpleNamespace(is_encoder_decoder=False)


def reference(case: Case) -> Row:
    config = GenerationConfig(
        do_sample=case.do_sample,
        temperature=case.temperature,
        top_k=case.top_k,
        top_p=case.top_p,
        min_p=case.min_p or None,
        typical_p=case.typical_p,
        repetition_penalty=case.repetition_penalty,
        suppress_tokens=list(case.suppress_tokens) or None,
        min_new_tokens=case.min_new_tokens,
    )
    config._eos_token_tensor = torch.tensor(case.eos_token_ids) if case.eos_token_ids else None
    processors = Model()._get_logits_processor(
        config,
        input_ids_seq_length=len(case.prompt),
        device="cpu",
        logits_processor=LogitsProcessorList([BiasAndPenalties(case)]),
    )
    stable_sort = torch.sort
    # torch's default sort puts ties in any order; we promise the stable one.
    with patch("torch.sort", lambda *args, **options: stable_sort(*args, **options, stable=True)):
        scores = processors(torch.tensor([case.prompt + case.generated]), torch.from_numpy(case.logits.copy())[None])
    return np.asarray(scores[0].numpy(), dtype=np.float32)


def tokenizer() -> _native.Tokenizer:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    return _native.Tokenizer.from_json(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


TOKENIZER = tokenizer()
SAMPLER = _native.Sampler()


def make_sampling(case: Case, *, seed: int = 0) -> _native.SamplingParams:
    chosen: dict[str, Any] = {name: getattr(case, name) for name in TUNABLE[: TUNABLE.index("eos_token_ids")]}
    return _native.SamplingParams(
        vocab_size=len(case.logits), seed=seed, **{**chosen, "logit_bias": dict(case.logit_bias)}
    )


def make_generation(
    case: Case, sampling: _native.SamplingParams | None = None, *, sequence_index: int = 0
) -> _native.Generation:
    """A generation that has generated what the case says, by forcing each token."""
    size = len(case.logits)
    stopping = _native.StoppingParams(
        vocab_size=size, max_new_tokens=10**6, min_new_tokens=case.min_new_tokens, eos_token_ids=case.eos_token_ids
    )
    generation = _native.Generation(
        TOKENIZER, case.prompt, sampling or make_sampling(case), stopping, sequence_index=sequence_index
    )
    for token in case.generated:
        # +infinity outweighs every setting.
        forced = np.full((1, size), -np.inf, dtype=np.float32)
        forced[0, token] = np.inf
        assert SAMPLER.step(forced, [generation])[0].token_id == token
    return generation


def ours(case: Case) -> Row:
    return SAMPLER.processed_logits(case.logits, make_generation(case))


def nudged(case: Case, amount: float) -> Case:
    """The same settings with thresholds moved by less than what the order of a float32 sum decides."""
    return replace(
        case,
        top_p=case.top_p if case.top_p == 1 else min(max(case.top_p + amount, 1e-7), 1 - 1e-7),
        typical_p=case.typical_p if case.typical_p == 1 else min(max(case.typical_p + amount, 1e-7), 1 - 1e-7),
        min_p=case.min_p and min(max(case.min_p * (1 - amount * 10), 1e-30), 1.0),
    )


def within_rounding(case: Case, kept: NDArray[np.bool_], expected: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tokens that the last bits of a float32 may move across a threshold."""
    logits = reference(replace(case, typical_p=1.0)).astype(np.float64)
    size = np.abs(logits[np.isfinite(logits)]).max()
    # Cumulative probability at the threshold, give or take the rounding of the sum ...
    wide, narrow = (np.isfinite(reference(nudged(case, amount))) for amount in (2e-6, -2e-6))
    doubtful: NDArray[np.bool_] = wide & ~narrow
    if case.typical_p < 1:
        # ... or as far from the entropy as the last one kept, give or take what float32 does to logits of this size and
        # to their entropy: torch's is off by 1e-5 at 128,256 tokens.
        log_p = logits - np.logaddexp.reduce(logits)
        p = np.exp(log_p)
        entropy = -np.sum(p[p > 0] * log_p[p > 0])
        distance = np.abs(-log_p - entropy)
        for last in (distance[expected].max(), distance[kept].max()):
            doubtful = doubtful | (np.abs(distance - last) < 2e-6 * (1 + size + entropy))
    return doubtful


def assert_equal_to_transformers(case: Case) -> None:
    got, want = ours(case), reference(case)
    kept, expected = np.isfinite(got), np.isfinite(want)
    if not np.array_equal(kept, expected):
        if currently_in_test_context():
            event("within rounding of a threshold")
        assert not np.any((kept != expected) & ~within_rounding(case, kept, expected)), case
    np.testing.assert_allclose(got[kept & expected], want[kept & expected], rtol=1e-5, atol=1e-5)


# ---- rows and settings ---------------------------------------------------------------------------------------


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Random logits: normal at any scale, ties in all amounts, bfloat16 values, one peak, some tokens forbidden."""
    size = draw(st.one_of(st.integers(8, 64), st.integers(65, 5000)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-6, 1e-2, 1.0, 3.0, 10.0, 100.0, 1e4]))
    logits = generator.standard_normal(size) * scale
    match draw(st.sampled_from(["plain", "rounded", "two values", "constant", "bfloat16", "peak", "offset"])):
        case "rounded":
            logits = np.round(logits / scale * 4) * scale / 4
        case "two values":
            logits = np.where(logits > 0, scale, -scale / 2)
        case "constant":
            logits = np.full(size, scale)
        case "bfloat16":
            logits = (logits.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
        case "peak":
            logits[generator.integers(size)] = 20 * scale
        case "offset":
            logits = logits + 50 * scale
    forbidden = draw(st.sampled_from([0.0, 0.0, 0.1, 0.9]))
    logits = np.where(generator.random(size) < forbidden, -np.inf, logits)
    logits[generator.integers(size)] = draw(st.sampled_from([0.0, scale]))
    return logits.astype(np.float32)


def token_lists(size: int, **limits: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, size - 1), **limits).map(tuple)


def setting(name: str, size: int) -> st.SearchStrategy[Any]:
    """Values of one setting, the edges of its range included."""
    finite = st.floats(-2.0, 2.0)
    return {
        "temperature": st.one_of(st.sampled_from([0.5, 2.0, 1e-3, 1e3]), st.floats(0.05, 10.0)),
        "top_k": st.one_of(st.just(1), st.just(size), st.integers(1, size)),
        "top_p": st.one_of(st.sampled_from([1e-6, 0.5, 0.9, 0.999999]), st.floats(1e-6, 1 - 1e-6)),
        "min_p": st.one_of(st.sampled_from([1e-6, 0.5, 1.0]), st.floats(1e-6, 1.0)),
        "typical_p": st.one_of(st.sampled_from([1e-6, 0.5, 0.999999]), st.floats(1e-6, 1 - 1e-6)),
        "repetition_penalty": st.floats(0.1, 5.0),
        "presence_penalty": finite,
        "frequency_penalty": finite,
        "logit_bias": st.dictionaries(st.integers(0, size - 1), st.floats(-100.0, 100.0), max_size=8).map(
            lambda biases: tuple(biases.items())
        ),
        "suppress_tokens": token_lists(size, max_size=min(6, size - 2)),
        "eos_token_ids": token_lists(size, min_size=1, max_size=3),
        "min_new_tokens": st.integers(0, 6),
        "do_sample": st.booleans(),
    }[name]


def history(draw: st.DrawFn, case: Case) -> Case:
    size = len(case.logits)
    prompt, generated = draw(token_lists(size, min_size=1, max_size=20)), draw(token_lists(size, max_size=8))
    never = {*case.eos_token_ids, *case.suppress_tokens}
    return replace(case, prompt=prompt, generated=tuple(token for token in generated if token not in never))


def has_choice(case: Case) -> bool:
    forbidden = set(case.suppress_tokens) | set(case.eos_token_ids)
    return any(np.isfinite(value) and token not in forbidden for token, value in enumerate(case.logits))


@pytest.mark.parametrize("name", [name for name in TUNABLE if name not in {"do_sample", "min_new_tokens"}])
@each_profile
@given(data=st.data())
def test_each_setting_alone_equals_transformers(name: str, data: st.DataObject) -> None:
    case = Case(data.draw(rows()))
    case = replace(case, **{name: data.draw(setting(name, len(case.logits)))})
    if name == "eos_token_ids":
        case = replace(case, min_new_tokens=data.draw(setting("min_new_tokens", len(case.logits))))
    case = data.draw(st.composite(history)(case))
    if has_choice(case):
        assert_equal_to_transformers(case)


@rows_profile
@given(data=st.data())
def test_settings_combined_equal_transformers(data: st.DataObject) -> None:
    case = Case(data.draw(rows()))
    names = data.draw(st.lists(st.sampled_from(TUNABLE), min_size=2, max_size=len(TUNABLE), unique=True))
    for name in names:
        case = replace(case, **{name: data.draw(setting(name, len(case.logits)))})
    case = data.draw(st.composite(history)(case))
    if has_choice(case):
        assert_equal_to_transformers(case)


# ---- draws ---------------------------------------------------------------------------------------------------


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
    for seed in range(10):
        # Each draw is the first step of its own sequence, so that no history changes the distribution.
        sampling = make_sampling(case, seed=seed)
        sequences = [make_generation(case, sampling, sequence_index=index) for index in range(500)]
        for emission in SAMPLER.step(batch, sequences):
            counts[emission.token_id] += 1
    assert chi_square_is_plausible(counts, probabilities)


def test_the_chi_square_test_notices_a_wrong_distribution() -> None:
    uniform = np.full(20, 0.05)
    generator = np.random.default_rng(1)
    assert chi_square_is_plausible(generator.multinomial(5000, uniform), uniform)
    bent = np.linspace(0.8, 1.2, 20) / 20
    assert not chi_square_is_plausible(generator.multinomial(5000, bent), uniform)


# ---- where transformers fails or leaves it open ----------------------------------------------------------------


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


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("size", [49_152, 128_256])
@pytest.mark.parametrize("chosen", [{"top_k": 50}, {"top_k": 3000}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.8}])
def test_vocabularies_of_real_models_equal_transformers(chosen: dict[str, Any], size: int, spread: float) -> None:
    logits = (np.random.default_rng(size).standard_normal(size) * spread).astype(np.float32)
    for temperature in (1.0, 0.8):
        assert_equal_to_transformers(replace(Case(logits, temperature=temperature), **chosen))
