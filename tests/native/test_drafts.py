"""Verification of guesses, prompt lookup, and log probabilities of given tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sampling_cases import SPECIAL, VOCAB, forcing, make_generation, token
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from tokenwire import _native

Emissions = list[_native.Emission]

SETTINGS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 3},
    {"do_sample": True, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1.4, "logprobs": 2},
    {"frequency_penalty": 1.5, "presence_penalty": 0.5, "logprobs": 3, "processed_logprobs": True},
    {"do_sample": True, "frequency_penalty": 2.0, "suppress_tokens": [1, 2], "logprobs": 0},
]
STOPPING: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 5},
    {"eos_token_ids": [SPECIAL, 3], "min_new_tokens": 2},
    {"stop_strings": ["opst", "stop"], "stop_token_ids": [7]},
]


def seen(emission: _native.Emission) -> tuple[object, ...]:
    """All that an emission says."""
    return (
        emission.token_id,
        emission.text,
        emission.finish_reason,
        emission.stop_string,
        emission.stop_token_id,
        emission.logprob,
        emission.rank,
        emission.top_logprobs,
        emission.error,
    )


def model(history: list[int]) -> NDArray[np.float32]:
    """Logits ``[vocab]`` that depend on all tokens so far."""
    return np.random.default_rng(history).standard_normal(VOCAB, dtype=np.float32) * 2


def plain_run(steps: int, **settings: Any) -> Emissions:
    """One token per step, until the sequence ends."""
    sampler, generation = _native.Sampler(), make_generation(**settings)
    history, emissions = [0], []
    while len(emissions) < steps and not generation.is_finished:
        (emission,) = sampler.step(model(history)[None], [generation])
        history.append(emission.token_id)
        emissions.append(emission)
    return emissions


@given(
    st.lists(st.tuples(st.sampled_from(SETTINGS), st.sampled_from(STOPPING)), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_any_guesses_give_the_emissions_of_plain_steps(kinds: list[tuple[Any, Any]], random: Any) -> None:
    """All that an emission says is the same, for greedy and drawn tokens, whatever was guessed, in a batch."""
    steps = 24
    settings = [{**kind, "stopping": stopping, "sequence_index": n} for n, (kind, stopping) in enumerate(kinds)]
    expected = [plain_run(steps, **chosen) for chosen in settings]
    sampler, generations = _native.Sampler(), [make_generation(**chosen) for chosen in settings]
    got: list[Emissions] = [[] for _ in settings]
    while rows := [n for n, generation in enumerate(generations) if not generation.is_finished and len(got[n]) < steps]:
        drafts, logits = [], []
        for n in rows:
            done = [emission.token_id for emission in got[n]]
            truth = [emission.token_id for emission in expected[n]][len(done) :]
            # Right up to a random place, wrong behind it.
            draft = truth[: random.randint(0, 4)] + [random.randrange(VOCAB) for _ in range(random.randint(0, 2))]
            drafts.append(draft)
            logits += [model([0, *done, *draft[:length]]) for length in range(len(draft) + 1)]
        emissions = sampler.verify(np.stack(logits), [generations[n] for n in rows], drafts)
        for n, draft, row in zip(rows, drafts, emissions, strict=True):
            assert 1 <= len(row) <= len(draft) + 1
            assert [emission.token_id for emission in row[:-1]] == draft[: len(row) - 1]
            got[n] += row
    for row, wanted in zip(got, expected, strict=True):
        assert [seen(emission) for emission in row[: len(wanted)]] == [seen(emission) for emission in wanted]
        assert len(row) == len(wanted) or len(wanted) == steps


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 3, 64])
def test_threads_and_types_change_nothing(threads: int, kind: str) -> None:
    """More than a million logits are spread over threads."""
    vocab, rows, length = 20_000, 12, 5
    logits = np.random.default_rng(1).standard_normal((rows * (length + 1), vocab), dtype=np.float32)
    bits = (logits.view(np.uint32) >> 16).astype(np.uint16)
    values = (bits.astype(np.uint32) << 16).view(np.float32)

    def run(threads: int, given: Any) -> list[list[tuple[object, ...]]]:
        generations = [
            make_generation(vocab_size=vocab, **{"seed": n, **SETTINGS[n % len(SETTINGS)]}) for n in range(rows)
        ]
        drafts = [values.argmax(1).tolist()[n * (length + 1) :][:length] for n in range(rows)]
        emissions = _native.Sampler(threads=threads).verify(given, generations, drafts)
        return [[seen(emission) for emission in row] for row in emissions]

    expected = run(1, values)
    assert max(map(len, expected)) > 1
    assert run(threads, values if kind == "float32" else bits) == expected


def test_nothing_is_emitted_behind_the_end() -> None:
    """The guesses behind the end come true in the logits as well, and are not looked at."""
    st_, op, at = token("st"), token("op"), token("at")
    cases: list[tuple[dict[str, Any], list[int], str]] = [
        ({"eos_token_ids": [SPECIAL]}, [st_, SPECIAL, at, at], "eos"),
        ({"stop_token_ids": [at]}, [st_, at, op, at], "stop_token"),
        ({"stop_strings": ["stop"]}, [st_, op, at, at], "stop_string"),
        ({"max_new_tokens": 2}, [st_, at, op, at], "length"),
    ]
    for stopping, tokens, reason in cases:
        generation = make_generation(stopping=stopping)
        (emissions,) = _native.Sampler().verify(forcing(*tokens, at), [generation], [tokens])
        assert [emission.token_id for emission in emissions] == tokens[:2]
        assert [emission.finish_reason for emission in emissions] == [None, reason]
        assert generation.is_finished


def test_a_row_without_usable_logits_fails_alone_where_it_comes_to_it() -> None:
    logits = forcing(1, 2, 3, 1, 2, 3)
    logits[1] = np.nan
    generations = [make_generation(), make_generation()]
    broken, whole = _native.Sampler().verify(logits, generations, [[1, 2], [1, 9]])
    assert [emission.token_id for emission in broken] == [1, -1]
    assert "NaN" in str(broken[1].error)
    assert [emission.token_id for emission in whole] == [1, 2]
    assert [generation.is_finished for generation in generations] == [True, False]
    # A guess that does not come true hides what lies behind it.
    logits[:3] = forcing(1, 2, 3)
    logits[2] = np.nan
    (row,) = _native.Sampler().verify(logits[:3], [make_generation()], [[9, 2]])
    assert [emission.token_id for emission in row] == [1]


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    generation = make_generation()
    for rows, drafts in ((2, [[]]), (2, [[1, 2]]), (1, [[1]]), (1, []), (2, [[], []])):
        with pytest.raises(ValueError, match=r"rows|drafts"):
            _native.Sampler().verify(np.zeros((rows, VOCAB), np.float32), [generation], drafts)
    with pytest.raises(ValueError, match="vocabulary"):
        _native.Sampler().verify(np.zeros((1, VOCAB + 1), np.float32), [generation], [[]])
    with pytest.raises(ValueError, match="twice"):
        _native.Sampler().verify(np.zeros((2, VOCAB), np.float32), [generation, generation], [[], []])
    assert generation.num_generated == 0
    ended = make_generation(stopping={"max_new_tokens": 1})
    _native.Sampler().verify(forcing(1), [ended], [[]])
    with pytest.raises(ValueError, match="finished"):
        _native.Sampler().verify(forcing(1), [ended], [[]])


def test_guesses_do_not_change_the_distribution() -> None:
    """Chi-square of 20,000 draws of the token at a guess and of the one behind it, against the model's."""
    draws = 20_000
    logits = np.stack([model([1]), model([2]), model([3])])
    first, second = (np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logits[:2])
    guess = int(first.argsort()[-2])
    sampler, counts, behind = _native.Sampler(), np.zeros(VOCAB), np.zeros(VOCAB)
    for seed in range(draws):
        generation = make_generation(do_sample=True, top_k=0, seed=seed)
        (row,) = sampler.verify(logits, [generation], [[guess, VOCAB]])
        counts[row[0].token_id] += 1
        if len(row) > 1:
            behind[row[1].token_id] += 1
    accepted = behind.sum()
    assert accepted == counts[guess]
    # 15 degrees of freedom: 37.7 is exceeded once in a thousand.
    assert (((counts - draws * first) ** 2) / (draws * first)).sum() < 37.7
    assert (((behind - accepted * second) ** 2) / (accepted * second)).sum() < 37.7


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.integers(1, 16),
    st.integers(1, 12),
    st.none() | st.integers(0, 5),
    st.integers(0, 60),
)
def test_prompt_lookup_guesses_what_transformers_does(
    tokens: list[int], max_ngram: int, count: int, end: int | None, split: int
) -> None:
    generator = PromptLookupCandidateGenerator(
        eos_token_id=None if end is None else torch.tensor([end]),
        num_output_tokens=count,
        max_matching_ngram_size=max_ngram,
        max_length=10_000,
    )
    candidates, _ = generator.get_candidates(torch.tensor([tokens]))
    lookup = _native.PromptLookup(tokens[:split], max_ngram=max_ngram)
    lookup.extend(np.array(tokens[split:], dtype=np.int64))
    assert len(lookup) == len(tokens)
    ends = () if end is None else (end,)
    assert lookup.guess(count, ends=ends) == candidates[0, len(tokens) :].tolist()


def test_prompt_lookup_checks_what_it_is_given() -> None:
    for longest in (0, -1):
        with pytest.raises(_native.InvalidParametersError, match="max_matching_ngram_size"):
            _native.PromptLookup([1], max_ngram=longest)
    with pytest.raises(_native.InvalidParametersError, match="token_ids"):
        _native.PromptLookup([1, -1], max_ngram=1)
    assert _native.PromptLookup([], max_ngram=3).guess(4) == []
    assert _native.PromptLookup([1, 2, 1], max_ngram=3).guess(0) == []


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_logprobs_of_given_tokens_are_log_softmax(kind: str) -> None:
    rows, vocab, count = 40, 3000, 5
    generator = np.random.default_rng(2)
    logits = np.round(generator.standard_normal((rows, vocab)).astype(np.float32) * 8) / 2
    logits[3, :50] = -np.inf
    bits = (logits.view(np.uint32) >> 16).astype(np.uint16)
    if kind == "bfloat16":
        logits = (bits.astype(np.uint32) << 16).view(np.float32)
    tokens = generator.integers(0, vocab, rows)
    expected = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    entries = _native.Sampler().logprobs_of(logits if kind == "float32" else bits, tokens, count)
    assert len(entries) == rows
    for row, chosen, wanted, (logprob, rank, top) in zip(logits, tokens, expected, entries, strict=True):
        order = np.lexsort((np.arange(vocab), -row)).tolist()
        assert logprob == pytest.approx(wanted[chosen], abs=1e-5)
        assert rank == order.index(chosen) + 1
        assert [token for token, _ in top] == order[:count]
        assert [value for _, value in top] == pytest.approx(wanted[order[:count]], abs=1e-5)


def test_logprobs_of_given_tokens_refuse_what_has_none() -> None:
    sampler = _native.Sampler()
    logits = np.zeros((2, VOCAB), np.float32)
    with pytest.raises(ValueError, match="rows"):
        sampler.logprobs_of(logits, [1], 0)
    with pytest.raises(ValueError, match="token id"):
        sampler.logprobs_of(logits, [1, VOCAB], 0)
    logits[1, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        sampler.logprobs_of(logits, [1, 2], 0)
    assert sampler.logprobs_of(logits[:0], [], 3) == []


def test_logprobs_of_given_tokens_on_mended_logits() -> None:
    """With remove_invalid_values, as torch.nan_to_num mends them for transformers' processor."""
    logits = np.random.default_rng(4).standard_normal((3, VOCAB)).astype(np.float32)
    logits[0, 2], logits[1, 3], logits[2, 1] = np.nan, -np.inf, np.nan
    limits = np.finfo(np.float32)
    mended = np.nan_to_num(logits, nan=0.0, posinf=limits.max, neginf=limits.min)
    sampler = _native.Sampler()
    entries = sampler.logprobs_of(logits, [2, 3, 4], 3, remove_invalid_values=True)
    assert entries == sampler.logprobs_of(mended, [2, 3, 4], 3)


@pytest.mark.parametrize("processed", [False, True])
@given(st.integers(0, 2**32), st.sampled_from([{}, {"top_k": 4}, {"top_k": 0, "suppress_tokens": [0, 5, 6]}]))
def test_the_rank_of_a_chosen_token(processed: bool, seed: int, settings: dict[str, Any]) -> None:
    logits = np.round(np.random.default_rng(seed).standard_normal((1, VOCAB)) * 2).astype(np.float32)
    chosen: dict[str, Any] = {"do_sample": True, "seed": seed, "logprobs": VOCAB, "processed_logprobs": processed}
    generation = make_generation(**(chosen | settings))
    row = _native.Sampler().processed_logits(logits[0], generation) if processed else logits[0]
    (emission,) = _native.Sampler().step(logits, [generation])
    order = np.lexsort((np.arange(VOCAB), -row)).tolist()
    assert emission.rank == order.index(emission.token_id) + 1
