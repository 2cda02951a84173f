"""max_time and the caller's deadline: answers end as they are, with all text that was held back."""

from typing import Any

import pytest
from engine_fakes import FakeRunner, expected_answer
from group_engine import GroupEngine

from tokenwire.model.batch import ForwardBatch

PROMPT = [4] * 6
KINDS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "num_return_sequences": 3},
    {"guidance_scale": 2.0},
    {"num_beams": 3, "num_return_sequences": 2},
]


def make_engine(seconds_per_step: float, **runner: Any) -> GroupEngine:
    """An engine whose clock moves with each forward pass alone."""
    engine = GroupEngine(FakeRunner(**runner))

    def pass_time(_: ForwardBatch) -> None:
        engine.now += seconds_per_step

    engine.runner.on_forward = pass_time
    return engine


def check_texts(engine: GroupEngine, request: int) -> None:
    for (owner, index), tokens in engine.tokens.items():
        if owner == request:
            assert engine.texts[owner, index] == "".join(f"{token}." for token in tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_max_time_ends_with_the_first_token_behind_it(kind: dict[str, Any]) -> None:
    engine = make_engine(1.0)
    engine.submit(0, PROMPT, 50, max_time=3.5, **kind)
    engine.submit(1, PROMPT, 8)
    engine.run()
    count = kind.get("num_return_sequences", 1)
    for index in range(count):
        finish = engine.finishes[0, index]
        # The fourth token came after 4 seconds; transformers' criterion is looked at behind each.
        assert (finish.reason, finish.completion_token_count) == ("max_time", 4)
        assert len(engine.tokens[0, index]) == 4
    check_texts(engine, 0)
    assert engine.tokens[1, 0] == expected_answer(PROMPT, 8)
    engine.assert_nothing_held()


@pytest.mark.parametrize("kind", KINDS)
def test_max_time_is_more_than_nothing(kind: dict[str, Any]) -> None:
    """However short, it leaves the first token, as in transformers."""
    engine = make_engine(1.0)
    engine.submit(0, PROMPT, 50, max_time=1e-9, **kind)
    engine.run()
    assert [len(tokens) for tokens in engine.tokens.values()] == [1] * kind.get("num_return_sequences", 1)
    assert {finish.reason for finish in engine.finishes.values()} == {"max_time"}


def test_another_reason_of_the_same_token_comes_first() -> None:
    engine = make_engine(1.0)
    answer = expected_answer(PROMPT, 3)
    engine.submit(0, PROMPT, 50, max_time=2.5, eos_token_ids=(answer[2],))
    engine.submit(1, PROMPT, 3, max_time=2.5)
    engine.run()
    assert engine.finishes[0, 0].reason == "eos"
    assert engine.finishes[1, 0].reason == "length"


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_ends_the_answer_shortly_before_it(kind: dict[str, Any]) -> None:
    engine = make_engine(0.1, num_blocks=200)
    engine.submit(0, PROMPT, 100, deadline=2.0, deadline_aware=True, **kind)
    engine.run()
    # 0.05 s and one and a half steps of 0.1 s are left: the eighteenth token comes at 1.8 s, the nineteenth would
    # come at 1.9 s.
    assert engine.now == pytest.approx(1.8)
    for index in range(kind.get("num_return_sequences", 1)):
        assert engine.finishes[0, index].reason == "deadline"
        assert len(engine.tokens[0, index]) == 18
    check_texts(engine, 0)
    engine.assert_nothing_held()


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_ends_what_waits_or_prefills_with_an_empty_answer(kind: dict[str, Any]) -> None:
    engine = make_engine(0.1, num_blocks=60, block_size=4)
    # Less than the next prompt's blocks are free for as long as this runs.
    engine.submit(0, [5] * 150, 50)
    engine.step()
    engine.submit(1, [6] * 90, 20, deadline=1.0, deadline_aware=True, **kind)
    engine.submit(2, [7] * 90, 20, **kind)
    while (1, 0) not in engine.finishes:
        engine.step()
    assert engine.now <= 0.96
    count = kind.get("num_return_sequences", 1)
    for index in range(count):
        finish = engine.finishes[1, index]
        assert (finish.reason, finish.prompt_token_count, finish.completion_token_count) == ("deadline", 90, 0)
        assert (finish.prefill_ms, finish.decode_ms) == (0, 0)
        assert engine.tokens[1, index] == []
    assert (1, count) not in engine.finishes


def test_a_deadline_in_the_middle_of_a_prefill() -> None:
    engine = GroupEngine(FakeRunner(), max_step_tokens=4, now=1.0)

    def pass_time(_: ForwardBatch) -> None:
        engine.now += 0.1

    engine.runner.on_forward = pass_time
    engine.submit(0, [5] * 60, 5, deadline=1.75, deadline_aware=True, do_sample=True, num_return_sequences=2)
    engine.run()
    assert engine.now < 1.75
    assert [engine.finishes[0, index].reason for index in range(2)] == ["deadline", "deadline"]
    assert engine.finishes[0, 0].prefill_ms == pytest.approx(1000 * (engine.now - 1))
    engine.assert_nothing_held()


def test_a_preempted_sequence_ends_with_what_it_had() -> None:
    engine = make_engine(0.1, num_blocks=6, block_size=4)
    engine.submit(0, [5] * 4, 20)
    engine.submit(1, [6] * 4, 20, deadline=1.5, deadline_aware=True)
    engine.run()
    assert engine.engine.stats().preemptions > 0
    assert engine.finishes[1, 0].reason == "deadline"
    tokens = engine.tokens[1, 0]
    assert 0 < len(tokens) < 14
    assert tokens == expected_answer([6] * 4, 20)[: len(tokens)]
    check_texts(engine, 1)
    assert engine.tokens[0, 0] == expected_answer([5] * 4, 20)
    engine.assert_nothing_held()


def test_a_deadline_without_deadline_aware_has_no_effect() -> None:
    engine = make_engine(1.0)
    engine.submit(0, PROMPT, 5, deadline=0.5)
    engine.run()
    assert engine.finishes[0, 0].reason == "length"


def test_a_deadline_that_passed_long_ago_computes_nothing() -> None:
    engine = make_engine(1.0)
    engine.now = 10.0
    engine.submit(0, PROMPT, 5, deadline=9.0, deadline_aware=True)
    engine.step()
    assert engine.finishes[0, 0].reason == "deadline"
    assert engine.runner.batches == []


@pytest.mark.parametrize(
    ("settings", "reason", "count"),
    [({"max_time": 2.5}, "max_time", 7), ({"deadline": 4.0, "deadline_aware": True}, "deadline", 7)],
)
def test_tokens_that_were_guessed_count_with_the_step_that_verified_them(
    settings: dict[str, Any], reason: str, count: int
) -> None:
    """One token behind the prompt, then three per step: two guessed right and the one behind them."""
    engine = make_engine(1.0)
    engine.submit(0, PROMPT, 50, num_assistant_tokens=4, **settings)
    engine.run()
    assert engine.tokens[0, 0] == expected_answer(PROMPT, count)
    assert (engine.finishes[0, 0].reason, engine.finishes[0, 0].completion_token_count) == (reason, count)
    check_texts(engine, 0)
    engine.assert_nothing_held()
