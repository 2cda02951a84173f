"""The engine with the sampler in Rust: text, draws and failures are those of a sequence served alone."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from engine_fakes import NAN_TOKEN, VOCAB, FakeRunner, expected_answer

from tokenwire._native import Generation, Sampler, Tokenizer
from tokenwire.engine.engine import Engine
from tokenwire.engine.failures import error_of
from tokenwire.engine.generations import generation_factory
from tokenwire.engine.protocol import Delta, Failure, Submit
from tokenwire.engine.settings import GenerationSettings
from tokenwire.errors import InvalidRequestError, RowFailedError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One printable character per token."""
    vocabulary = {chr(33 + token): token for token in range(VOCAB - 3)} | {
        "é": VOCAB - 3,
        "ß": VOCAB - 2,
        "ø": VOCAB - 1,
    }
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    return Tokenizer.from_json(json.dumps({"version": "1.0", "model": model, "decoder": {"type": "Fuse"}}))


@dataclass
class Answer:
    tokens: list[int]
    text: str
    deltas: list[Delta] = field(default_factory=list)
    failure: str | None = None

    @property
    def last(self) -> Delta | None:
        return self.deltas[-1] if self.deltas else None


def serve(
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    settings: GenerationSettings,
    *,
    num_blocks: int = 256,
    max_running: int = 8,
) -> tuple[list[Answer], int]:
    """The answers, and how many sequences were preempted."""
    engine: Engine[Generation] = Engine(
        FakeRunner(num_blocks=num_blocks),
        Sampler(),
        generation_factory(tokenizer, VOCAB),
        max_running=max_running,
        max_step_tokens=16,
    )
    for request, prompt in enumerate(prompts):
        engine.inbox.put((0.0, Submit(request, list(prompt), settings)))
    answers = [Answer([], "") for _ in prompts]
    open_requests = len(prompts)
    while open_requests:
        outputs = engine.step()
        for delta in outputs.deltas:
            answer = answers[delta.request]
            answer.tokens += delta.token_ids
            answer.text += delta.text
            answer.deltas.append(delta)
            open_requests -= delta.finish is not None
        for failure in outputs.failures:
            answers[failure.request].failure = f"{failure.kind}: {failure.message}"
            open_requests -= 1
    return answers, engine.stats().preemptions


PROMPTS = [[request + 1] * (3 * request + 1) for request in range(8)]
GREEDY = GenerationSettings(max_new_tokens=24)
SAMPLED = GenerationSettings(max_new_tokens=24, do_sample=True, temperature=2.0, top_k=0, seed=11)


@pytest.mark.parametrize("num_blocks", [256, 14])
def test_greedy_gives_the_tokens_and_their_text(tokenizer: Tokenizer, num_blocks: int) -> None:
    answers, preemptions = serve(tokenizer, PROMPTS, GREEDY, num_blocks=num_blocks)
    assert bool(preemptions) == (num_blocks == 14)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.tokens == expected_answer(prompt, 24)
        assert answer.text == tokenizer.decode(answer.tokens)


def test_draws_depend_neither_on_neighbours_nor_on_preemption(tokenizer: Tokenizer) -> None:
    alone = [serve(tokenizer, [prompt], SAMPLED)[0][0] for prompt in PROMPTS]
    together, _ = serve(tokenizer, PROMPTS, SAMPLED)
    squeezed, preemptions = serve(tokenizer, PROMPTS, SAMPLED, num_blocks=14)
    assert preemptions
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert [answer.tokens for answer in squeezed] == [answer.tokens for answer in alone]
    assert alone[0].tokens != expected_answer(PROMPTS[0], 24)


def test_a_row_of_nan_fails_alone(tokenizer: Tokenizer) -> None:
    answers, _ = serve(tokenizer, [[1, 2], [NAN_TOKEN, 2], [3]], GREEDY)
    assert [answer.failure is None for answer in answers] == [True, False, True]
    assert str(answers[1].failure).startswith("row: ")
    assert answers[2].tokens == expected_answer([3], 24)


def test_stops_are_reported_with_what_matched(tokenizer: Tokenizer) -> None:
    answer = expected_answer([1, 2], 24)
    characters = [tokenizer.decode([token]) for token in answer]
    stop = "".join(characters[4:7])
    cases = {
        "eos": GenerationSettings(max_new_tokens=24, eos_token_ids=(answer[3],)),
        "stop_token": GenerationSettings(max_new_tokens=24, stop_token_ids=(answer[3],)),
        "stop_string": GenerationSettings(max_new_tokens=24, stop_strings=(stop,)),
        "length": GenerationSettings(max_new_tokens=2, logprobs=2),
    }
    for reason, settings in cases.items():
        (served,), _ = serve(tokenizer, [[1, 2]], settings)
        assert served.last is not None
        finish = served.last.finish
        assert finish is not None
        assert finish.reason == reason
        assert finish.stop_token_id == (answer[3] if reason in ("eos", "stop_token") else None)
        assert finish.stop_string == (stop if reason == "stop_string" else None)
        assert finish.completion_token_count == len(served.tokens)
        if reason == "stop_string":
            assert served.text == "".join(characters[:4])
        if reason == "length":
            (entry,) = served.last.logprobs
            assert entry.top[0] == (served.tokens[-1], pytest.approx(entry.logprob))
            assert len(entry.top) == 2


@pytest.mark.parametrize("drafts", [0, 3])
def test_each_token_is_explained_in_its_place(tokenizer: Tokenizer, drafts: int) -> None:
    settings = GenerationSettings(
        max_new_tokens=9, explain=True, logprobs=0, processed_logprobs=True, prompt_lookup_num_tokens=drafts
    )
    (served,), _ = serve(tokenizer, [[1, 2, 1, 2, 1, 2]], settings)
    explanations = [each for delta in served.deltas for each in delta.explanations or ()]
    logprobs = [each for delta in served.deltas for each in delta.logprobs]
    assert len(explanations) == len(logprobs) == len(served.tokens) == 9
    for explanation, position in zip(explanations, logprobs, strict=True):
        assert explanation.effects == []
        assert explanation.model == explanation.outcome
        assert explanation.outcome is not None
        assert math.log(explanation.outcome.probability) == pytest.approx(position.logprob, abs=1e-5)
        assert explanation.outcome.rank == position.rank


def test_settings_that_the_sampler_refuses_fail_alone(tokenizer: Tokenizer) -> None:
    (refused,), _ = serve(tokenizer, [[1]], GenerationSettings(max_new_tokens=3, top_p=2.0, do_sample=True))
    assert str(refused.failure).startswith("invalid: top_p")


def test_settings_that_come_to_forbid_every_token_are_the_callers_fault(tokenizer: Tokenizer) -> None:
    """Static conflicts are refused before; this is what is left, told by how the extension words it."""
    settings = GenerationSettings(max_new_tokens=3, suppress_tokens=tuple(range(VOCAB)))
    (served,), _ = serve(tokenizer, [[1]], settings)
    kind, _, message = str(served.failure).partition(": ")
    assert kind == "row"
    error = error_of(Failure(1, "row", message))
    assert isinstance(error, InvalidRequestError)
    assert [violation.field for violation in error.violations] == ["generation_config"]
    (nan,), _ = serve(tokenizer, [[NAN_TOKEN]], settings)
    assert isinstance(error_of(Failure(1, "row", str(nan.failure).partition(": ")[2])), RowFailedError)
