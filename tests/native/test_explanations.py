"""Explanations of chosen tokens: they change nothing, they hang together, and there are only so many of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sampling_cases import SPECIAL, TOKENIZER, VOCAB, make_generation, token

from tokenwire import _native
from tokenwire.engine.settings import GreenListWatermark, SynthIdTextWatermark

SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.3},
    {"do_sample": True, "temperature": 1e-30, "min_p": 0.1, "renormalize_logits": True},
    {"do_sample": True, "typical_p": 0.6, "top_h": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
    {"do_sample": True, "watermark": GreenListWatermark(), "top_k": 6},
    {"watermark": GreenListWatermark(seeding_scheme="selfhash", context_width=2)},
    {"do_sample": True, "watermark": SynthIdTextWatermark(ngram_len=3, keys=(1, 2, 3)), "top_k": 6},
    {"do_sample": True, "watermark": SynthIdTextWatermark(ngram_len=2, keys=(5,)), "renormalize_logits": True},
    {"no_repeat_ngram_size": 2, "presence_penalty": 0.5, "frequency_penalty": 1.0, "logit_bias": {3: 1.5}},
    {"suppress_tokens": [1, 2], "begin_suppress_tokens": [3], "bad_words_ids": [[4], [5, 6]], "logprobs": 2},
    {"remove_invalid_values": True, "sequence_bias": [([7], -1.0)], "logprobs": 1, "processed_logprobs": True},
    {"do_sample": True, "allowed_token_ids": [2, 3, 4, 9], "forced_bos_token_id": 9, "guidance_scale": 1.5},
    {"guidance_scale": 3.0, "encoder_repetition_penalty": 1.4, "encoder_no_repeat_ngram_size": 1},
]
STOPPING: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 5, "forced_eos_token_ids": [SPECIAL]},
    {"eos_token_ids": [SPECIAL, 3], "min_new_tokens": 2, "min_length": 5},
    {"eos_token_ids": [SPECIAL], "exponential_decay_length_penalty": (1, 1.5)},
]
STEPS = 12


def model(history: list[int], *, wild: bool = False) -> NDArray[np.float32]:
    """Logits ``[VOCAB]`` that depend on all tokens so far; ``wild``: some are infinite, and some NaN."""
    rng = np.random.default_rng(history)
    logits = rng.standard_normal(VOCAB, dtype=np.float32) * 2
    if wild:
        logits[rng.integers(VOCAB, size=3)] = [np.inf, -np.inf, np.nan]
    return logits


def run(settings: dict[str, Any], *, explain: bool, wild: bool = False) -> list[_native.Emission]:
    """At most STEPS tokens of one sequence; its twin under guidance sees only what was generated."""
    sampler, generation = _native.Sampler(), make_generation(**settings, explain=explain)
    is_guided = settings.get("guidance_scale", 1) != 1
    emissions: list[_native.Emission] = []
    while len(emissions) < STEPS and not generation.is_finished:
        answer = [emission.token_id for emission in emissions]
        rows = [model([0, *answer], wild=wild)] + ([model([1, *answer], wild=wild)] if is_guided else [])
        (emission,) = sampler.step(np.stack(rows), [generation], guidance=[1] if is_guided else None)
        emissions.append(emission)
    return emissions


def seen(emission: _native.Emission) -> tuple[Any, ...]:
    """All that an emission says but the explanation."""
    return (
        emission.token_id,
        emission.text,
        emission.finish_reason,
        emission.stop_token_id,
        emission.logprob,
        emission.rank,
        emission.top_logprobs,
        emission.error,
    )


def figures(standing: _native.Standing | None) -> tuple[float, int, float, int] | None:
    if standing is None:
        return None
    return standing.probability, standing.rank, standing.entropy, standing.token_count


def told(explanation: _native.Explanation | None) -> object:
    """All that an explanation says."""
    if explanation is None:
        return None
    effects = [
        (effect.name, effect.removed_token_count, figures(effect.before), figures(effect.after))
        for effect in explanation.effects
    ]
    return figures(explanation.model), effects, figures(explanation.outcome)


@pytest.mark.parametrize("wild", [False, True])
@pytest.mark.parametrize("stopping", STOPPING)
@pytest.mark.parametrize("settings", SETTINGS)
def test_explaining_changes_nothing(settings: dict[str, Any], stopping: dict[str, Any], wild: bool) -> None:
    for seed in range(8):
        chosen = {**settings, "stopping": stopping, "seed": seed, "remove_invalid_values": wild}
        plain, explained = run(chosen, explain=False, wild=wild), run(chosen, explain=True, wild=wild)
        assert list(map(seen, explained)) == list(map(seen, plain))
        assert all(emission.explanation is None for emission in plain)
        for emission in explained:
            assert (emission.explanation is None) == (emission.error is not None)


@given(st.sampled_from(SETTINGS), st.sampled_from(STOPPING), st.integers(0, 2**62), st.booleans())
def test_the_steps_hang_together(settings: dict[str, Any], stopping: dict[str, Any], seed: int, wild: bool) -> None:
    """Each step begins with what the one before it left, the last one is what was chosen from."""
    chosen = {**settings, "stopping": stopping, "seed": seed, **({"remove_invalid_values": True} if wild else {})}
    for emission in run(chosen, explain=True, wild=wild):
        explanation = emission.explanation
        if emission.error is not None:
            continue
        assert explanation is not None
        standing = figures(explanation.model)
        for effect in explanation.effects:
            assert figures(effect.before) == standing
            standing = figures(effect.after)
        assert figures(explanation.outcome) == standing
        assert standing is not None
        for each in [explanation.model, *(effect.after for effect in explanation.effects)]:
            if each is not None:
                assert 0 <= each.probability <= 1
                assert 1 <= each.rank <= VOCAB
                assert 1 <= each.token_count <= VOCAB
                assert 0 <= each.entropy <= np.log(each.token_count) + 1e-5
        outcome = explanation.outcome
        assert outcome is not None
        assert outcome.probability > 0
        if not chosen.get("do_sample"):
            assert outcome.rank == 1


@pytest.mark.parametrize("settings", [settings for settings in SETTINGS if "guidance_scale" not in settings])
def test_the_outcome_is_what_the_choice_sees(settings: dict[str, Any]) -> None:
    sampler, generation = _native.Sampler(), make_generation(**settings, explain=True)
    history = [0]
    for _ in range(STEPS):
        logits = model(history)
        processed = sampler.processed_logits(logits, generation).astype(np.float64)
        (emission,) = sampler.step(logits[None], [generation])
        weights = np.exp(processed - processed.max())
        p = weights / weights.sum()
        assert emission.explanation is not None
        outcome = emission.explanation.outcome
        assert outcome is not None
        assert outcome.probability == pytest.approx(p[emission.token_id], rel=1e-5)
        assert outcome.entropy == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum(), abs=1e-5)
        assert outcome.token_count == (p > 1e-37).sum()
        history.append(emission.token_id)


def test_watermarks_have_the_name_of_their_setting() -> None:
    for settings in SETTINGS:
        if "watermark" in settings:
            names = [
                effect.name
                for emission in run(settings, explain=True)
                if emission.explanation is not None
                for effect in emission.explanation.effects
            ]
            assert "watermarking_config" in names


def test_healing_is_named() -> None:
    generation = _native.Generation(
        TOKENIZER,
        [0],
        _native.SamplingParams(vocab_size=VOCAB, explain=True),
        _native.StoppingParams(vocab_size=VOCAB, max_new_tokens=9),
        healed_token_id=token("op"),
    )
    names = []
    for _ in range(2):
        (emission,) = _native.Sampler().step(model([0])[None], [generation])
        assert emission.explanation is not None
        names.append([(effect.name, effect.removed_token_count) for effect in emission.explanation.effects])
    # "op" and "opera" are left; behind the first token there is nothing to heal.
    assert names == [[("token_healing", VOCAB - 2)], []]


@pytest.mark.parametrize("with_drafts", [False, True])
def test_the_first_tokens_are_explained(with_drafts: bool) -> None:
    most = _native.MAX_EXPLAINED_TOKENS
    length = most + 44
    sampler, generation = _native.Sampler(), make_generation(explain=True, stopping={"max_new_tokens": length})
    row = model([0])
    best = int(row.argmax())
    emissions: list[_native.Emission] = []
    while not generation.is_finished:
        draft = [best] * min(7, length - 1 - len(emissions)) if with_drafts else []
        (got,) = sampler.verify(np.tile(row, (len(draft) + 1, 1)), [generation], [draft])
        emissions += got
    assert [emission.explanation is not None for emission in emissions] == [True] * most + [False] * (length - most)


@given(st.sampled_from(SETTINGS), st.randoms(use_true_random=False))
def test_drafted_tokens_are_explained_as_plain_ones(settings: dict[str, Any], random: Any) -> None:
    if "guidance_scale" in settings:
        return
    expected = run(settings, explain=True)
    truth = [emission.token_id for emission in expected]
    sampler, generation = _native.Sampler(), make_generation(**settings, explain=True)
    got: list[_native.Emission] = []
    while len(got) < len(expected):
        done = truth[: len(got)]
        draft = [*truth[len(got) :][: random.randint(0, 4)], random.randrange(VOCAB)]
        logits = np.stack([model([0, *done, *draft[:length]]) for length in range(len(draft) + 1)])
        (emissions,) = sampler.verify(logits, [generation], [draft])
        got += emissions
    assert [told(emission.explanation) for emission in got[: len(expected)]] == [
        told(emission.explanation) for emission in expected
    ]


def test_a_row_in_a_batch_is_explained_as_alone() -> None:
    """Sequences of one prompt, with different settings, on three threads; float32, and bfloat16 as bits."""
    vocab, rows = 200_000, 8
    logits = np.random.default_rng(1).standard_normal((rows, vocab), dtype=np.float32)
    bits = (logits.view(np.uint32) >> 16).astype(np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)

    def made() -> list[_native.Generation]:
        plain = [settings for settings in SETTINGS if "guidance_scale" not in settings]
        return [
            make_generation(vocab_size=vocab, sequence_index=row, explain=row != 3, **plain[row % len(plain)])
            for row in range(rows)
        ]

    alone = [
        told(_native.Sampler().step(values[row][None], [generation])[0].explanation)
        for row, generation in enumerate(made())
    ]
    for given_logits in (values, bits):
        emissions = _native.Sampler(threads=3).step(given_logits, made())
        assert [told(emission.explanation) for emission in emissions] == alone
    assert [each is None for each in alone] == [row == 3 for row in range(rows)]
