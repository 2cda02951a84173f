"""Token healing through the engine: counts, prompt log probabilities, and every strategy that may be beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_engine_drafts import ASKED, NEW_TOKENS, Case, check_prompt_logprobs, make_case, prompts, serve


@pytest.fixture(scope="module")
def healing(checkpoint: Callable[[str], Path]) -> Case:
    return make_case(checkpoint("llama"), checkpoint("llama"))


def healable(case: Case) -> list[list[int]]:
    """Prompts whose last token others begin with; the shortest has two tokens."""
    vocabulary = range(case.tokenizer.vocab_size)
    last = [token for token in vocabulary if len(case.tokenizer.extensions(token)) > 1][:6]
    return [
        [*text[: 1 + 5 * number], token]
        for number, (text, token) in enumerate(zip(prompts([40] * 6), last, strict=True))
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True, "temperature": 1.5, "seed": 4},
        {"min_new_tokens": 3, "begin_suppress_tokens": tuple(range(40)), "repetition_penalty": 1.3},
        {"encoder_repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"logprobs": 2},
    ],
)
def test_the_answer_is_that_behind_the_healed_prompt(healing: Case, settings: dict[str, Any]) -> None:
    """What comes behind the healed token is what comes behind a prompt that ends with it, whatever is set."""
    texts = healable(healing)
    healed = serve(healing, [(text[:-1], {**settings, "healed_token_id": text[-1]}) for text in texts]).answers
    plain = serve(
        healing, [([*text[:-1], answer.tokens[0]], settings) for text, answer in zip(texts, healed, strict=True)]
    ).answers
    for text, answer, expected in zip(texts, healed, plain, strict=True):
        assert answer.tokens[0] in healing.tokenizer.extensions(text[-1]).tolist()
        assert answer.tokens[1:] == expected.tokens
        assert answer.finish.reason == expected.finish.reason
        usage = (answer.finish.prompt_token_count, answer.finish.completion_token_count)
        assert usage == (len(text), len(expected.tokens))
        assert len(answer.logprobs) == (len(answer.tokens) if "logprobs" in settings else 0)


@pytest.mark.parametrize("max_step_tokens", [64, 7])
def test_the_prompt_is_scored_as_it_was_given(healing: Case, max_step_tokens: int) -> None:
    texts = healable(healing)
    requests = [(text[:-1], {"prompt_logprobs": 3, "healed_token_id": text[-1]}) for text in texts]
    answers = serve(healing, requests, max_step_tokens=max_step_tokens).answers
    for text, answer in zip(texts, answers, strict=True):
        check_prompt_logprobs(healing.reference, text, {"prompt_logprobs": 3}, answer)


@pytest.mark.parametrize("model", ["none", "equal", "other"])
def test_drafts_change_nothing(healing: Case, model: str) -> None:
    texts = healable(healing)
    asked = [(text[:-1], {"healed_token_id": text[-1]}) for text in texts]
    plain = serve(healing, asked).answers
    drafted = serve(healing, [(text, {**settings, **ASKED[model]}) for text, settings in asked], model=model).answers
    for answer, expected in zip(drafted, plain, strict=True):
        assert answer.tokens == expected.tokens
        assert len(answer.tokens) == 1 + NEW_TOKENS
        assert answer.finish.completion_token_count == NEW_TOKENS
