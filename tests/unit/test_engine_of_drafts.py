"""Drafted tokens in the engine: whatever is guessed, by whom, and however the cache is squeezed, no token changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import test_engine_groups as groups
from engine_fakes import (
    NAN_TOKEN,
    FakeGeneration,
    FakeRunner,
    FakeSampler,
    expected_answer,
    make_generation,
    next_token,
)
from group_engine import GroupEngine
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.engine import prompt_logprobs
from tokenwire.engine.drafts import Ask
from tokenwire.engine.engine import Engine
from tokenwire.engine.protocol import Abort, Delta, Finish, Submit
from tokenwire.engine.settings import GenerationSettings


@dataclass
class FakeDraftModel:
    """Guesses right for as many tokens as ``right`` says in turn, and wrong behind them."""

    right: Sequence[int] = (99,)
    fails: bool = False
    asks: list[list[Ask]] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    num_resets: int = 0

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        if self.fails:
            raise RuntimeError("a draft model without luck")
        self.asks.append(list(asks))
        proposals = []
        for ask in asks:
            assert ask.num_tokens >= 1
            right = self.right[len(ask.tokens) % len(self.right)]
            tokens = list(ask.tokens)
            for number in range(ask.num_tokens):
                tokens.append((next_token(tokens) + (number >= right)) % 96)
                if tokens[-1] in ask.end_token_ids:
                    break
            proposals.append(tokens[len(ask.tokens) :])
        return proposals

    def release(self, sequences: Sequence[int]) -> None:
        self.released.extend(sequences)

    def reset(self) -> None:
        self.num_resets += 1


@dataclass
class Served:
    """An engine and what came out, by request."""

    runner: FakeRunner = field(default_factory=FakeRunner)
    model: FakeDraftModel | None = None
    max_running: int = 8
    max_step_tokens: int = 32
    deltas: dict[int, list[Delta]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine: Engine[FakeGeneration] = Engine(
            self.runner,
            FakeSampler(),
            make_generation,
            max_running=self.max_running,
            max_step_tokens=self.max_step_tokens,
            draft_model=self.model,
        )

    def submit(self, request: int, prompt: list[int], max_new_tokens: int = 12, **settings: object) -> None:
        decided = GenerationSettings(max_new_tokens=max_new_tokens, **settings)  # type: ignore[arg-type]
        self.engine.inbox.put((0.0, Submit(request, list(prompt), decided)))

    def step(self) -> None:
        outputs = self.engine.step()
        assert len({delta.request for delta in outputs.deltas}) == len(outputs.deltas)
        for delta in outputs.deltas:
            assert request_is_open(self, delta.request)
            assert delta.token_ids
            self.deltas.setdefault(delta.request, []).append(delta)
        for failure in outputs.failures:
            assert request_is_open(self, failure.request)
            self.failures[failure.request] = failure.message

    def run(self) -> None:
        stats = self.engine.stats()
        while stats.running or stats.waiting or not self.engine.inbox.empty():
            self.step()
            stats = self.engine.stats()
        assert stats.blocks_free == stats.blocks_total

    def tokens(self, request: int) -> list[int]:
        return [token for delta in self.deltas[request] for token in delta.token_ids]

    def finish(self, request: int) -> Finish:
        finish = self.deltas[request][-1].finish
        assert finish is not None
        return finish


def request_is_open(served: Served, request: int) -> bool:
    deltas = served.deltas.get(request)
    return request not in served.failures and (not deltas or deltas[-1].finish is None)


kinds = st.sampled_from(
    [
        {},
        {"num_assistant_tokens": 4},
        {"num_assistant_tokens": 1, "logprobs": 1},
        {"prompt_lookup_num_tokens": 5},
        {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1, "num_assistant_tokens": 7},
        {"prompt_lookup_num_tokens": 64, "max_matching_ngram_size": 16, "logprobs": 2},
    ]
)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=25), kinds), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(10, 40),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.booleans(),
)
def test_tokens_do_not_depend_on_drafts(
    requests: list[tuple[list[int], dict[str, int]]],
    max_running: int,
    max_step_tokens: int,
    block_size: int,
    num_blocks: int,
    right: list[int],
    supports_drafts: bool,
) -> None:
    runner = FakeRunner(num_blocks=num_blocks, block_size=block_size, supports_drafts=supports_drafts)
    model = FakeDraftModel(right)
    served = Served(runner, model, max_running, max_step_tokens)
    for request, (prompt, settings) in enumerate(requests):
        served.submit(request, prompt, 12, eos_token_ids=(3, 40), **settings)
    served.run()
    for request, (prompt, settings) in enumerate(requests):
        if request in served.failures:
            assert len(prompt) + 11 > num_blocks * block_size
            continue
        answer = expected_answer(prompt, 12, (3, 40))
        assert served.tokens(request) == answer
        assert "".join(delta.text for delta in served.deltas[request]) == "".join(f"{token}." for token in answer)
        for delta in served.deltas[request]:
            assert len(delta.logprobs) == (len(delta.token_ids) if "logprobs" in settings else 0)
        finish = served.finish(request)
        assert finish.completion_token_count == len(answer)
        assert finish.reason == ("eos" if answer[-1] in (3, 40) else "length")
        assert 0 <= finish.accepted_draft_token_count <= finish.draft_token_count
        assert finish.draft_token_count == 0 or (settings and supports_drafts)
        # Each pass gives one token of its own, and the drafts that came true.
        assert finish.accepted_draft_token_count in (
            len(answer) - len(served.deltas[request]),
            len(answer) - len(served.deltas[request]) + 1,
        )
    for batch in runner.batches:
        assert sum(len(tokens) for tokens in batch.token_ids) <= max_step_tokens


def test_right_guesses_are_all_accepted_and_counted() -> None:
    model = FakeDraftModel()
    served = Served(model=model)
    served.submit(0, [1, 2, 3], 26, num_assistant_tokens=4)
    served.run()
    assert served.tokens(0) == expected_answer([1, 2, 3], 26)
    # The prompt gives one token, then five passes give five each.
    assert [len(delta.token_ids) for delta in served.deltas[0]] == [1, 5, 5, 5, 5, 5]
    assert (served.finish(0).draft_token_count, served.finish(0).accepted_draft_token_count) == (20, 20)
    assert model.released == [0]


def test_wrong_guesses_cost_no_token_and_are_counted() -> None:
    served = Served(model=FakeDraftModel([0]))
    served.submit(0, [1, 2, 3], 8, num_assistant_tokens=4)
    served.run()
    assert [len(delta.token_ids) for delta in served.deltas[0]] == [1] * 8
    finish = served.finish(0)
    # Behind the k-th token there is room for 7 - k drafts, four at most.
    assert (finish.draft_token_count, finish.accepted_draft_token_count) == (4 + 4 + 4 + 3 + 2 + 1, 0)


def test_an_accepted_end_is_the_end() -> None:
    answer = expected_answer([1, 2, 3], 30)
    end = next(n for n in range(2, 30) if answer[n] not in answer[:n])
    for tokens, settings in (
        (answer[: end + 1], {"max_new_tokens": 30, "eos_token_ids": (answer[end],)}),
        (answer[:4], {"max_new_tokens": 4}),
    ):
        served = Served(model=FakeDraftModel())
        served.submit(0, [1, 2, 3], num_assistant_tokens=9, **settings)  # type: ignore[arg-type]
        served.run()
        assert served.tokens(0) == tokens
        finish = served.finish(0)
        assert finish.draft_token_count == finish.accepted_draft_token_count


def test_rows_with_drafts_lie_between_the_other_decode_rows_and_the_prefill() -> None:
    runner = FakeRunner()
    served = Served(runner, FakeDraftModel(), max_step_tokens=16)
    served.submit(0, [1], 30, num_assistant_tokens=3)
    served.submit(1, [2], 30)
    served.submit(2, [3], 30, num_assistant_tokens=2)
    served.step()
    served.submit(3, [4] * 9, 30)
    served.step()
    served.step()
    shapes = [(batch.sequence_ids, [len(row) for row in batch.token_ids], batch.num_logits) for batch in runner.batches]
    assert shapes[1:] == [
        # The prompt goes first, the drafts take what is left of 16 tokens.
        ([1, 0, 2, 3], [1, 4, 2, 9], [1, 4, 2, 1]),
        ([1, 3, 0, 2], [1, 1, 4, 3], [1, 1, 4, 3]),
    ]


def test_drafts_never_preempt_and_take_only_free_blocks() -> None:
    """Two rows fill the cache to the last block without one preemption, drafts or not."""
    for right in ([0], [99], [1, 2]):
        served = Served(FakeRunner(num_blocks=8, block_size=4), FakeDraftModel(right))
        for request in range(2):
            served.submit(request, [request + 1] * 4, 13, num_assistant_tokens=64)
        served.run()
        assert served.engine.stats().preemptions == 0
        assert [served.tokens(request) for request in range(2)] == [
            expected_answer([request + 1] * 4, 13) for request in range(2)
        ]


def test_a_draft_model_that_fails_fails_no_request(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeDraftModel(fails=True)
    served = Served(model=model)
    for request in range(3):
        served.submit(request, [request + 1], 9, num_assistant_tokens=4)
    served.run()
    for request in range(3):
        assert served.tokens(request) == expected_answer([request + 1], 9)
        assert served.finish(request).draft_token_count == 0
    # The requests gave up at the first failure; a later one tries again.
    assert model.num_resets == 1
    assert capsys.readouterr().err.count("RuntimeError: a draft model without luck") == 1
    model.fails = False
    served.submit(3, [7], 9, num_assistant_tokens=4)
    served.run()
    assert served.finish(3).accepted_draft_token_count > 0


def test_a_fatal_error_of_the_draft_model_is_let_through() -> None:
    class DeviceLostError(RuntimeError):
        pass

    class Broken(FakeDraftModel):
        def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
            raise DeviceLostError

    engine: Engine[FakeGeneration] = Engine(
        FakeRunner(),
        FakeSampler(),
        make_generation,
        max_running=4,
        max_step_tokens=32,
        draft_model=Broken(),
        fatal_errors=(DeviceLostError,),
    )
    settings = GenerationSettings(max_new_tokens=5, num_assistant_tokens=2)
    engine.inbox.put((0.0, Submit(0, [1], settings)))
    engine.step()
    with pytest.raises(DeviceLostError):
        engine.step()


@pytest.mark.parametrize("settings", [{"num_return_sequences": 2}, {"num_beams": 2}, {"guidance_scale": 1.5}])
def test_requests_whose_rows_are_chosen_together_get_none(settings: dict[str, object]) -> None:
    from tokenwire.engine.block_manager import BlockManager
    from tokenwire.engine.drafts import Drafts

    drafts: Drafts[None] = Drafts(BlockManager(4, 4), max_step_tokens=8, is_supported=True, model=FakeDraftModel())
    for asked in ({"prompt_lookup_num_tokens": 4}, {"num_assistant_tokens": 4}):
        plain = Submit(0, [1], GenerationSettings(max_new_tokens=4, **asked))  # type: ignore[arg-type]
        together = GenerationSettings(max_new_tokens=4, **asked, **settings)  # type: ignore[arg-type]
        assert drafts.begin(Submit(0, [1], together)) is None
        assert drafts.begin(plain) is not None


def test_steps_are_plain_again_once_nobody_wants_drafts() -> None:
    served = Served(model=FakeDraftModel())
    served.submit(0, [1], 4, num_assistant_tokens=2)
    served.submit(1, [2], 30)
    served.run()
    assert not served.engine._drafts.is_wanted


def test_aborted_and_preempted_sequences_are_released() -> None:
    model = FakeDraftModel()
    served = Served(model=model)
    served.submit(0, [1], 30, num_assistant_tokens=2)
    served.step()
    served.step()
    served.engine.inbox.put((0.0, Abort([0])))
    served.step()
    assert model.released == [0]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.none() | st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(1, 40),
    st.integers(2, 40),
    st.sampled_from([1, 3, 7, 10_000]),
)
def test_prompts_are_scored_whatever_the_chunks(
    requests: list[tuple[int, int | None]], max_step_tokens: int, num_blocks: int, max_chunk: int
) -> None:
    """One entry per prompt token from the second on, in the first delta, also after preemptions and beside drafts."""
    runner = FakeRunner(num_blocks=num_blocks)
    served = Served(runner, FakeDraftModel([1, 2]), max_step_tokens=max_step_tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_logprobs, "MAX_LOGITS_BYTES", 4 * runner.vocab_size * max_chunk)
        for request, (length, count) in enumerate(requests):
            prompt = [(request + n) % 90 for n in range(length)]
            served.submit(request, prompt, 6, prompt_logprobs=count, num_assistant_tokens=2)
        served.run()
    for request, (length, count) in enumerate(requests):
        if request in served.failures:
            continue
        prompt = [(request + n) % 90 for n in range(length)]
        assert served.tokens(request) == expected_answer(prompt, 6)
        first, *others = served.deltas[request]
        assert all(delta.prompt_logprobs is None for delta in others)
        if count is None:
            assert first.prompt_logprobs is None
            continue
        assert first.prompt_logprobs is not None
        assert [entry.logprob for entry in first.prompt_logprobs] == [-float(token) for token in prompt[1:]]
        greedy = [next_token(prompt[:end]) for end in range(1, length)]
        assert [entry.top for entry in first.prompt_logprobs] == [[(token, 0.0)] * count for token in greedy]
    assert not served.engine._scorer.is_wanted


@pytest.mark.parametrize("max_step_tokens", [4, 32])
def test_a_prompt_without_probabilities_fails_alone(max_step_tokens: int) -> None:
    served = Served(max_step_tokens=max_step_tokens)
    served.submit(0, [NAN_TOKEN, 2, 3, 4, 5, 6, 7], 3, prompt_logprobs=1)
    served.submit(1, [1, 2, 3], 3, prompt_logprobs=1)
    served.run()
    assert list(served.failures) == [0]
    assert "NaN" in served.failures[0]
    assert 0 not in served.deltas
    assert served.tokens(1) == expected_answer([1, 2, 3], 3)


def test_a_prompt_whose_logits_are_mended_has_probabilities() -> None:
    served = Served()
    served.submit(0, [NAN_TOKEN, 2, 3], 2, prompt_logprobs=0, remove_invalid_values=True)
    served.run()
    assert not served.failures
    scored = served.deltas[0][0].prompt_logprobs
    assert scored is not None
    assert [entry.logprob for entry in scored] == [-2.0, -3.0]


@pytest.mark.parametrize("chunked", [True, False])
def test_the_logits_of_scored_prompts_are_bounded_by_pass_not_by_prompt(chunked: bool) -> None:
    """Prompts that are each short enough share a pass only as far as the logits of all of them are."""
    runner = FakeRunner(supports_chunked_prefill=chunked)
    served = Served(runner, max_step_tokens=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_logprobs, "MAX_LOGITS_BYTES", 4 * runner.vocab_size * 7)
        for request in range(6):
            served.submit(request, [request + 1, *range(10, 14)], 3, prompt_logprobs=0)
        served.submit(6, [9] * 20, 3)
        served.submit(7, [8] * 88, 3, prompt_logprobs=0)
        served.run()
    # What can be computed in one pass only is refused where that pass would be too large.
    assert list(served.failures) == ([] if chunked else [7])
    for batch in runner.batches:
        scored = [
            count for count, tokens in zip(batch.num_logits, batch.token_ids, strict=True) if 1 < count <= len(tokens)
        ]
        assert sum(scored) <= 7
    assert max(max(batch.num_logits) for batch in runner.batches) == (7 if chunked else 5)


@given(
    groups.requests,
    st.lists(st.sampled_from([{}, {"num_assistant_tokens": 3}, {"prompt_lookup_num_tokens": 4}]), min_size=1),
    st.lists(st.none() | st.integers(0, 2), min_size=1),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(12, 60),
    st.sampled_from([1, 3, 10_000]),
)
def test_beside_requests_of_several_rows(
    texts: list[tuple[list[int], int, dict[str, Any]]],
    drafts: list[dict[str, int]],
    counts: list[int | None],
    max_running: int,
    max_step_tokens: int,
    num_blocks: int,
    max_chunk: int,
) -> None:
    """Sequences, beams and guidance beside rows with drafts, prompts scored: each gives what it gives alone."""
    runner = FakeRunner(num_blocks=num_blocks)
    engine = GroupEngine(
        runner, max_running=max_running, max_step_tokens=max_step_tokens, draft_model=FakeDraftModel([1, 4])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_logprobs, "MAX_LOGITS_BYTES", 4 * runner.vocab_size * max_chunk)
        for request, (prompt, length, kind) in enumerate(texts):
            further = {**drafts[request % len(drafts)], "prompt_logprobs": counts[request % len(counts)]}
            groups.submit(engine, request, prompt, length, kind, **further)
        engine.run()
    for request, (prompt, length, kind) in enumerate(texts):
        if request in engine.failures:
            assert engine.failures[request].kind == "capacity"
            continue
        for index, answer in enumerate(groups.expected(prompt, length, kind)):
            assert engine.tokens[request, index] == answer
        scored = engine.prompt_logprobs.get(request)
        assert (scored is None) == (counts[request % len(counts)] is None)
        assert scored is None or [entry.logprob for entry in scored] == [-float(token) for token in prompt[1:]]
    engine.assert_nothing_held()
    assert not engine.engine._scorer.is_wanted
