"""Beams of the whole engine are those of transformers, beside other requests, in chunks, and with a full KV cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.engine_groups import Job, beams, serve
from tests.parity.runner_loop import generate, load_runner, prompts

FAMILIES = ("llama", "qwen3", "gemma3", "bloom")
LENGTHS = [3, 17, 9, 1, 24, 6]


def settings_table(frequent: list[int]) -> list[dict[str, Any]]:
    """Settings of beams; ``frequent`` are tokens that the model likes, so that sequences end before their limit."""
    return [
        {"num_beams": 2, "max_new_tokens": 10},
        {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12},
        {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 14, "eos_token_ids": frequent[:1]},
        {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 14, "eos_token_ids": frequent[:3]},
        {
            "num_beams": 4,
            "num_return_sequences": 3,
            "max_new_tokens": 16,
            "eos_token_ids": frequent[1:3],
            "early_stopping": "true",
        },
        {
            "num_beams": 3,
            "num_return_sequences": 3,
            "max_new_tokens": 16,
            "eos_token_ids": frequent[:2],
            "early_stopping": "never",
            "length_penalty": 2.0,
        },
        {
            "num_beams": 3,
            "num_return_sequences": 3,
            "max_new_tokens": 16,
            "eos_token_ids": frequent[:2],
            "early_stopping": "never",
            "length_penalty": -1.0,
        },
        {
            "num_beams": 5,
            "num_return_sequences": 5,
            "max_new_tokens": 12,
            "eos_token_ids": frequent[:2],
            "length_penalty": 0.0,
        },
        {
            "num_beams": 3,
            "num_return_sequences": 3,
            "max_new_tokens": 12,
            "eos_token_ids": frequent[:2],
            "repetition_penalty": 1.7,
            "min_new_tokens": 5,
        },
        {
            "num_beams": 4,
            "num_return_sequences": 2,
            "max_new_tokens": 12,
            "eos_token_ids": frequent[2:4],
            "suppress_tokens": frequent[:2],
        },
        {
            "num_beams": 3,
            "num_return_sequences": 3,
            "max_new_tokens": 14,
            "eos_token_ids": frequent[:2],
            "no_repeat_ngram_size": 2,
            "bad_words_ids": ((frequent[2],), (frequent[3], frequent[4])),
            "renormalize_logits": True,
        },
        {
            "num_beams": 4,
            "num_return_sequences": 4,
            "max_new_tokens": 10,
            "eos_token_ids": frequent[4:6],
            "sequence_bias": (((frequent[0],), 1.5), ((frequent[1], frequent[2]), -3.0)),
            "forced_eos_token_ids": (frequent[4],),
            "exponential_decay_length_penalty": (3, 1.1),
            "begin_suppress_tokens": tuple(frequent[:2]),
        },
        {"num_beams": 8, "num_return_sequences": 8, "max_new_tokens": 1},
        {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 9, "eos_token_ids": frequent},
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[Any, Any, list[Job], list[Any]]:
    """Loaded model, runner, requests with beams, and what transformers gives for each."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint(request.param)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = prompts(LENGTHS)
    greedy = [token for text in texts for token in generate(reference, text, 16)]
    frequent = sorted(set(greedy), key=lambda token: (-greedy.count(token), token))[:6]
    table = settings_table(frequent)
    jobs = [Job(texts[5 * number % len(texts)], settings) for number, settings in enumerate([*table, *table[::-1]])]
    loaded, runner = load_runner(folder)
    return loaded, runner, jobs, [beams(reference, job) for job in jobs]


def check(answers: list[Any], expected: list[Any], loaded: Any) -> None:
    from tokenwire._native import Tokenizer

    tokenizer = Tokenizer.from_json(loaded.tokenizer_json)
    for answer, (tokens, scores) in zip(answers, expected, strict=True):
        assert [answer.tokens[index] for index in sorted(answer.tokens)] == tokens
        assert [answer.finishes[index].sequence_score for index in sorted(answer.finishes)] == pytest.approx(
            scores, abs=1e-5, rel=2e-6
        )
        for index, row in enumerate(tokens):
            known = [token for token in row if token < tokenizer.vocab_size]
            assert answer.texts[index] == tokenizer.decode(known)
            assert answer.finishes[index].completion_token_count == len(row)


@pytest.mark.parametrize(
    ("max_running", "max_step_tokens"), [(8, 512), (64, 512), (16, 16), (9, 9)], ids=["few", "many", "chunks", "tight"]
)
def test_beams_equal_transformers(
    case: tuple[Any, Any, list[Job], list[Any]], max_running: int, max_step_tokens: int
) -> None:
    loaded, runner, jobs, expected = case
    answers, _ = serve(loaded, runner, jobs, max_running=max_running, max_step_tokens=max_step_tokens)
    check(answers, expected, loaded)
    ended = [finish.reason for answer in answers for finish in answer.finishes.values()]
    assert {"eos", "length"} == set(ended)


def test_beams_beside_other_requests_with_a_full_cache(
    case: tuple[Any, Any, list[Job], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, runner, jobs, expected = case
    texts = prompts([5, 12, 2, 30, 8], seed=1)
    others = [
        Job(text, settings)
        for text in texts
        for settings in (
            {"max_new_tokens": 30},
            {"max_new_tokens": 30, "do_sample": True, "seed": 5, "num_return_sequences": 3},
        )
    ]
    alone = [serve(loaded, runner, [job])[0][0] for job in others]
    mixed = [job for pair in zip(others, jobs, strict=False) for job in pair] + jobs[len(others) :]
    monkeypatch.setattr(runner, "num_blocks", 72)
    answers, stats = serve(loaded, runner, mixed, max_running=16, max_step_tokens=24)
    assert stats.preemptions > 0
    plain = [answers[2 * number] for number in range(len(others))]
    searched = [answers[2 * number + 1] for number in range(len(others))] + answers[2 * len(others) :]
    assert [answer.tokens for answer in plain] == [answer.tokens for answer in alone]
    check(searched, expected, loaded)


def test_stop_strings_end_beams_as_in_transformers(checkpoint: Callable[[str], Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = checkpoint("llama")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded, runner = load_runner(folder)
    # transformers looks for them over the border to the prompt as well: of one character there is none.
    stops = ("e", "o", "7", "g")
    texts = prompts(LENGTHS, seed=2)
    settings = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12}
    jobs = [Job(text, {**settings, "stop_strings": stops}) for text in texts]
    answers, _ = serve(loaded, runner, jobs)
    reasons = set()
    for text, answer in zip(texts, answers, strict=True):
        tokens, scores = beams(reference, Job(text, {**settings, "stop_strings": list(stops), "tokenizer": tokenizer}))
        assert [answer.tokens[index] for index in range(4)] == tokens
        assert [answer.finishes[index].sequence_score for index in range(4)] == pytest.approx(scores, abs=1e-5)
        for index in range(4):
            finish, whole = answer.finishes[index], tokenizer.decode(tokens[index], skip_special_tokens=True)
            reasons.add(finish.reason)
            if finish.reason == "stop_string":
                first = min(whole.index(stop) for stop in stops if stop in whole)
                assert finish.stop_string == whole[first]
                assert answer.texts[index] == whole[:first]
    assert reasons == {"stop_string", "length"}
