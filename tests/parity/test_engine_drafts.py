"""Answers with drafts are those without, token by token: greedy and drawn, whatever the draft model is worth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_models
from tests.parity.runner_loop import BLOCK_SIZE, load_runner, prompts

FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "mixtral")
"""Two of them with sliding windows, one with experts."""

NEW_TOKENS = 24
LENGTHS = [1, 4, 7, 13, 20, 33]

MODELS = ("equal", "other", "wrong", "none")
"""Draft models: the served one's weights, other weights, one that is always wrong; or prompt lookup alone."""


@dataclass(frozen=True)
class Case:
    """A served model, what drafts for it, and what it answers without drafts."""

    loaded: Any
    runner: Any
    equal: Any
    """A second runner of the same weights."""
    other: Any
    tokenizer: Any
    reference: Any
    """A transformers model of the same weights."""


def make_case(folder: Path, other: Path) -> Case:
    """The model of ``folder``, and that of ``other`` to draft for it."""
    import torch
    from transformers import AutoModelForCausalLM

    from tokenwire._native import Tokenizer

    loaded, runner = load_runner(folder)
    tokenizer = Tokenizer.from_json(loaded.tokenizer_json)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Case(loaded, runner, load_runner(folder)[1], load_runner(other)[1], tokenizer, reference)


@pytest.fixture(scope="module", params=FAMILIES)
def case(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Case:
    other = tiny_models.save(tmp_path_factory.mktemp("other"), "llama", seed=5)
    return make_case(checkpoint(request.param), other)


class WrongRunner:
    """A runner whose most likely token is never the one that the served model would choose greedily."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, batch: Any) -> Any:
        return -self._runner.forward(batch)


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: Any = None
    num_deltas: int = 0
    finish: Any = None


@dataclass
class Result:
    answers: list[Answer]
    preemptions: int
    num_steps: int


def serve(
    case: Case,
    requests: Sequence[tuple[list[int], dict[str, Any]]],
    *,
    model: str = "none",
    max_step_tokens: int = 64,
    draft_step_tokens: int | None = None,
    num_blocks: int | None = None,
) -> Result:
    """Serve all requests at once."""
    from tokenwire._native import Sampler
    from tokenwire.engine.draft_model import DraftModel
    from tokenwire.engine.engine import Engine
    from tokenwire.engine.generations import generation_factory
    from tokenwire.engine.protocol import Submit
    from tokenwire.engine.settings import GenerationSettings

    draft_model = None
    if model != "none":
        runner = {"equal": case.equal, "other": case.other, "wrong": WrongRunner(case.equal)}[model]
        draft_model = DraftModel(
            runner, vocab_size=case.loaded.vocab_size, max_step_tokens=draft_step_tokens or max_step_tokens
        )
    with pytest.MonkeyPatch.context() as patch:
        if num_blocks is not None:
            patch.setattr(case.runner, "num_blocks", num_blocks)
        engine = Engine(
            case.runner,
            Sampler(),
            generation_factory(case.tokenizer, case.loaded.vocab_size),
            max_running=8,
            max_step_tokens=max_step_tokens,
            draft_model=draft_model,
        )
    for number, (prompt, settings) in enumerate(requests):
        decided = GenerationSettings(**{"max_new_tokens": NEW_TOKENS, **settings})
        engine.inbox.put((0.0, Submit(number, list(prompt), decided)))
    answers = [Answer() for _ in requests]
    while any(answer.finish is None for answer in answers):
        outputs = engine.step()
        assert not outputs.failures
        for delta in outputs.deltas:
            answer = answers[delta.request]
            assert answer.finish is None
            answer.tokens += delta.token_ids
            answer.text += delta.text
            answer.logprobs += delta.logprobs
            answer.num_deltas += 1
            answer.finish = delta.finish
            answer.prompt_logprobs = delta.prompt_logprobs if answer.num_deltas == 1 else answer.prompt_logprobs
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total
    if draft_model is not None:
        assert draft_model._cached == {}
        assert draft_model._blocks.num_free == draft_model._blocks.num_blocks
    return Result(answers, stats.preemptions, stats.steps)


ASKED: dict[str, dict[str, int]] = {
    "none": {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 3},
    **{key: {"num_assistant_tokens": 4} for key in ("equal", "other", "wrong")},
}
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 40}


def repetitive(length: int, seed: int) -> list[int]:
    """A prompt in which n-grams come again."""
    generator = np.random.default_rng(seed)
    (phrase,) = prompts([max(1, length // 3)], seed=seed)
    return [*(phrase * 4)[: length - 1], phrase[int(generator.integers(len(phrase)))]]


def requests_of(case: Case, asked: dict[str, int], *, sampled: bool) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Prompts with and without drafts in turn, some of which end early in each way."""
    for number, length in enumerate(LENGTHS):
        settings: dict[str, Any] = {"seed": 7 + number, **(SAMPLED if sampled else {})}
        if number % 3 != 2:
            settings |= asked
        yield repetitive(length, number), settings


def same(got: Answer, expected: Answer) -> None:
    """All but the counts of drafts and the timings is equal."""
    assert got.tokens == expected.tokens
    assert got.text == expected.text
    for name in ("reason", "stop_string", "stop_token_id", "prompt_token_count", "completion_token_count"):
        assert getattr(got.finish, name) == getattr(expected.finish, name)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("model", MODELS)
def test_drafts_change_no_token(case: Case, model: str, sampled: bool) -> None:
    """In a batch of rows with and without drafts, also with few tokens per pass and a cache that preempts."""
    plain = serve(case, list(requests_of(case, {}, sampled=sampled))).answers
    requests = list(requests_of(case, ASKED[model], sampled=sampled))
    roomy = serve(case, requests, model=model)
    tight = serve(case, requests, model=model, max_step_tokens=9, draft_step_tokens=11)
    squeezed = serve(case, requests, model=model, num_blocks=-(-(LENGTHS[-1] + NEW_TOKENS) // BLOCK_SIZE) + 2)
    assert squeezed.preemptions > 0
    for result in (roomy, tight, squeezed):
        for got, expected in zip(result.answers, plain, strict=True):
            same(got, expected)
    for (_, settings), answer in zip(requests, roomy.answers, strict=True):
        drafted, accepted = answer.finish.draft_token_count, answer.finish.accepted_draft_token_count
        assert len(answer.tokens) == answer.num_deltas + accepted
        if not settings.keys() & {"num_assistant_tokens", "prompt_lookup_num_tokens"}:
            assert drafted == 0
        elif model == "equal" and not sampled:
            assert drafted == accepted > 0
        elif model == "wrong" and not sampled:
            assert drafted > 0
            assert accepted == 0
        elif model != "none":
            assert drafted > 0


def test_a_right_draft_model_saves_passes(case: Case) -> None:
    (prompt,) = prompts([9])
    plain = serve(case, [(prompt, {})])
    drafted = serve(case, [(prompt, ASKED["equal"])], model="equal")
    assert plain.num_steps == NEW_TOKENS
    # One for the prompt, then five tokens a pass.
    assert drafted.num_steps == 1 + -(-(NEW_TOKENS - 1) // 5)


@pytest.mark.parametrize("model", ["equal", "none"])
def test_every_end_is_that_of_plain_decoding(case: Case, model: str) -> None:
    """Ends that fall on accepted drafts: nothing behind them is emitted."""
    prompt = repetitive(20, 1)
    answer = serve(case, [(prompt, {})]).answers[0].tokens
    ends: list[dict[str, Any]] = [{"max_new_tokens": length} for length in range(1, 12)]
    for token in dict.fromkeys(answer[1:9]):
        ends += [{"eos_token_ids": (token,)}, {"stop_token_ids": (token,)}]
    known = [token for token in answer if token < case.tokenizer.vocab_size]
    text = case.tokenizer.decode(known)
    ends += [{"stop_strings": (text[start : start + 3],)} for start in range(0, len(text) - 3, 3)]
    for first in range(0, len(ends), 8):
        batch = ends[first : first + 8]
        plain = serve(case, [(prompt, end) for end in batch]).answers
        drafted = serve(case, [(prompt, {**end, **ASKED[model]}) for end in batch], model=model).answers
        for got, expected in zip(drafted, plain, strict=True):
            same(got, expected)


@pytest.mark.parametrize("processed", [False, True])
def test_log_probabilities_are_those_of_plain_decoding(case: Case, processed: bool) -> None:
    settings = {**SAMPLED, "logprobs": 3, "processed_logprobs": processed, "repetition_penalty": 1.2, "seed": 3}
    (prompt,) = prompts([11])
    (plain,) = serve(case, [(prompt, settings)]).answers
    (drafted,) = serve(case, [(prompt, {**settings, **ASKED["equal"]})], model="equal").answers
    assert drafted.tokens == plain.tokens
    assert drafted.finish.accepted_draft_token_count > 0
    assert len(drafted.logprobs) == len(plain.logprobs) == NEW_TOKENS
    for got, expected in zip(drafted.logprobs, plain.logprobs, strict=True):
        assert got.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert got.rank == expected.rank
        assert [token for token, _ in got.top] == [token for token, _ in expected.top]


@pytest.mark.parametrize(("max_step_tokens", "num_blocks"), [(64, None), (5, None), (64, 16)])
def test_prompt_logprobs_are_log_softmax(case: Case, max_step_tokens: int, num_blocks: int | None) -> None:
    """Equal to one plain pass of transformers, with any chunks and after preemptions, for greedy and drawn answers."""
    texts = prompts(LENGTHS, seed=3)
    kinds = cycle([{"prompt_logprobs": 4}, {"prompt_logprobs": 0, **SAMPLED, **ASKED["none"]}, {}])
    requests = list(zip(texts, kinds, strict=False))
    result = serve(case, requests, max_step_tokens=max_step_tokens, num_blocks=num_blocks)
    assert bool(result.preemptions) == (num_blocks is not None)
    for (text, settings), answer in zip(requests, result.answers, strict=True):
        check_prompt_logprobs(case.reference, text, settings, answer)


@pytest.mark.parametrize("family", tiny_models.PADDED_FAMILIES)
def test_the_padded_path_scores_prompts_and_serves_plainly_who_asks_for_drafts(
    family: str, checkpoint: Callable[[str], Path]
) -> None:
    padded = make_case(checkpoint(family), checkpoint("llama"))
    assert padded.runner.forward_path == "padded"
    texts = prompts(LENGTHS, seed=3)
    kinds = [{"prompt_logprobs": 3, **ASKED["other"]}, {"prompt_logprobs": 0, **ASKED["none"]}, ASKED["other"]]
    requests = list(zip(texts, cycle(kinds), strict=False))
    plain = serve(padded, [(text, {}) for text in texts]).answers
    for max_step_tokens in (64, 9):
        answers = serve(padded, requests, model="other", max_step_tokens=max_step_tokens).answers
        for (text, settings), answer, expected in zip(requests, answers, plain, strict=True):
            same(answer, expected)
            assert answer.finish.draft_token_count == 0
            check_prompt_logprobs(padded.reference, text, settings, answer)


def check_prompt_logprobs(reference: Any, text: list[int], settings: dict[str, Any], answer: Answer) -> None:
    """Equal to log_softmax of one plain pass; None where they were not asked for."""
    import torch

    if "prompt_logprobs" not in settings:
        assert answer.prompt_logprobs is None
    else:
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([text])).logits[0, :-1]
        expected = torch.log_softmax(logits, -1)
        assert len(answer.prompt_logprobs) == len(text) - 1
        for entry, row, token in zip(answer.prompt_logprobs, expected, text[1:], strict=True):
            assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert entry.rank == int((row > row[token]).sum()) + 1
            values, ids = row.topk(settings["prompt_logprobs"])
            assert [token for token, _ in entry.top] == ids.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)
