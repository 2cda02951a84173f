"""Requests of several rows: sequences of one prompt, beams, guidance. Each gives what it gives alone."""

from typing import Any

import pytest
from engine_fakes import (
    NAN_TOKEN,
    FakeRunner,
    chosen_token,
    expected_answer,
    expected_beams,
    next_token,
)
from group_engine import GroupEngine
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.engine.protocol import Abort
from tokenwire.engine.settings import GenerationSettings
from tokenwire.model.batch import ForwardBatch

EOS = (3, 40)

kinds = st.one_of(
    st.fixed_dictionaries({"kind": st.just("plain"), "drafts": st.sampled_from([0, 0, 3])}),
    st.fixed_dictionaries({"kind": st.just("sequences"), "count": st.integers(2, 5)}),
    st.fixed_dictionaries({"kind": st.just("beams"), "count": st.integers(2, 4)}),
    st.fixed_dictionaries(
        {
            "kind": st.just("guided"),
            "count": st.integers(1, 3),
            "negative": st.none() | st.lists(st.integers(0, 95), min_size=1, max_size=20),
        }
    ),
)
requests = st.lists(
    st.tuples(st.lists(st.integers(0, 95), min_size=1, max_size=25), st.integers(1, 14), kinds),
    min_size=1,
    max_size=7,
)


def submit(
    engine: GroupEngine, request: int, prompt: list[int], length: int, kind: dict[str, Any], **further: Any
) -> None:
    match kind["kind"]:
        case "plain":
            drafts = {"num_assistant_tokens": kind.get("drafts", 0)}
            engine.submit(request, prompt, length, eos_token_ids=EOS, **(drafts | further))
        case "sequences":
            engine.submit(
                request,
                prompt,
                length,
                eos_token_ids=EOS,
                do_sample=True,
                num_return_sequences=kind["count"],
                **further,
            )
        case "beams":
            engine.submit(
                request,
                prompt,
                length,
                num_beams=kind["count"],
                num_return_sequences=max(1, kind["count"] - 1),
                **further,
            )
        case "guided":
            engine.submit(
                request,
                prompt,
                length,
                eos_token_ids=EOS,
                do_sample=True,
                guidance_scale=2.0,
                num_return_sequences=kind["count"],
                negative_prompt=kind["negative"],
                **further,
            )


def expected(prompt: list[int], length: int, kind: dict[str, Any]) -> list[list[int]]:
    match kind["kind"]:
        case "plain":
            return [expected_answer(prompt, length, EOS)]
        case "sequences":
            return [expected_answer(prompt, length, EOS, sequence_index=index) for index in range(kind["count"])]
        case "beams":
            return expected_beams(prompt, kind["count"], length)[: max(1, kind["count"] - 1)]
        case _:
            negative = prompt[-1:] if kind["negative"] is None else kind["negative"]
            return [
                expected_answer(prompt, length, EOS, sequence_index=index, negative_prompt=negative)
                for index in range(kind["count"])
            ]


@given(
    requests,
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(12, 60),
    st.booleans(),
    st.booleans(),
)
def test_every_sequence_is_what_it_is_alone(
    texts: list[tuple[list[int], int, dict[str, Any]]],
    max_running: int,
    max_step_tokens: int,
    block_size: int,
    num_blocks: int,
    chunked: bool,
    shares_blocks: bool,
) -> None:
    """In any mix, with any chunk size, block size and number of preemptions; or it can never run and is refused."""
    runner = FakeRunner(
        num_blocks=num_blocks,
        block_size=block_size,
        supports_chunked_prefill=chunked,
        # A state that cannot be shared cannot go back behind a token either.
        supports_drafts=shares_blocks,
        shares_blocks=shares_blocks,
    )
    engine = GroupEngine(runner, max_running=max_running, max_step_tokens=max_step_tokens)
    for request, (prompt, length, kind) in enumerate(texts):
        submit(engine, request, prompt, length, kind)
    engine.run()
    for request, (prompt, length, kind) in enumerate(texts):
        if request in engine.failures:
            assert engine.failures[request].kind == "capacity"
            continue
        answers = expected(prompt, length, kind)
        for index, answer in enumerate(answers):
            assert engine.tokens[request, index] == answer
            assert engine.texts[request, index] == "".join(f"{token}." for token in answer)
            finish = engine.finishes[request, index]
            assert (finish.prompt_token_count, finish.completion_token_count) == (len(prompt), len(answer))
            assert finish.cached_token_count in ((0,) if index == 0 else (0, len(prompt)))
        assert (request, len(answers)) not in engine.finishes
    engine.assert_nothing_held()


def test_a_prompt_is_computed_once_and_its_full_blocks_are_shared() -> None:
    runner = FakeRunner(block_size=4)
    engine = GroupEngine(runner)
    prompt = [5] * 18
    engine.submit(0, prompt, 6, do_sample=True, num_return_sequences=4)
    engine.step()
    assert [len(tokens) for tokens in runner.batches[0].token_ids] == [18]
    engine.step()
    tables = runner.batches[1].block_tables
    # 4 full blocks, and the fifth four times: three copies of what the prompt began.
    assert len({block for table in tables for block in table}) == 8
    assert all(table[:4] == tables[0][:4] for table in tables)
    assert runner.num_copies == 3
    engine.run()
    computed = sum(len(tokens) for batch in runner.batches for tokens in batch.token_ids)
    assert computed == 18 + 4 * 5
    assert [engine.finishes[0, index].cached_token_count for index in range(4)] == [0, 18, 18, 18]
    assert len({tuple(engine.tokens[0, index]) for index in range(4)}) == 4


def test_a_sequence_of_several_is_the_one_with_that_index_alone() -> None:
    together = GroupEngine()
    together.submit(0, [1, 2, 3], 8, do_sample=True, num_return_sequences=3, sequence_index=2)
    together.run()
    for index in range(3):
        alone = GroupEngine()
        alone.submit(0, [1, 2, 3], 8, do_sample=True, sequence_index=2 + index)
        alone.run()
        assert together.tokens[0, index] == alone.tokens[0, 0]


def test_all_rows_count_when_a_group_is_admitted() -> None:
    runner = FakeRunner()
    engine = GroupEngine(runner, max_running=4, max_step_tokens=8)
    engine.submit(0, [1] * 20, 4, do_sample=True, num_return_sequences=3)
    engine.submit(1, [2] * 2, 4, do_sample=True, num_return_sequences=2)
    engine.submit(2, [3] * 2, 4)
    engine.run()
    rows = [sorted(set(batch.sequence_ids)) for batch in runner.batches]
    # Rows are numbered as they are made. Request 1 does not fit beside three rows, and nobody overtakes it.
    assert rows == [[0]] * 3 + [[0, 1, 2]] * 3 + [[3, 5]] + [[3, 4, 5]] * 3


def test_more_sequences_than_rows_take_turns() -> None:
    engine = GroupEngine(max_running=2)
    engine.submit(0, [7] * 5, 4, do_sample=True, num_return_sequences=5)
    engine.run()
    for index in range(5):
        assert engine.tokens[0, index] == expected_answer([7] * 5, 4, sequence_index=index)
    # Those that had no row when the prompt was ready computed it again.
    assert [engine.finishes[0, index].cached_token_count for index in range(5)] == [0, 5, 0, 0, 0]


def test_more_rows_at_once_than_there_are_is_said_to_be_that() -> None:
    engine = GroupEngine(max_running=1)
    engine.submit(0, [7] * 5, 4, guidance_scale=2.0)
    engine.run()
    assert engine.failures[0].message == "2 rows at once exceed max_running, 1"


def test_a_preempted_sequence_is_computed_again_alone() -> None:
    runner = FakeRunner(num_blocks=12, block_size=2)
    engine = GroupEngine(runner)
    engine.submit(0, [5] * 5, 14, do_sample=True, num_return_sequences=3)
    engine.run()
    assert engine.engine.stats().preemptions > 0
    for index in range(3):
        assert engine.tokens[0, index] == expected_answer([5] * 5, 14, sequence_index=index)
    engine.assert_nothing_held()


def test_beams_are_never_preempted_and_older_rows_make_room() -> None:
    runner = FakeRunner(num_blocks=24, block_size=2)
    engine = GroupEngine(runner)
    engine.submit(0, [5] * 5, 20)
    engine.submit(1, [6] * 5, 8, num_beams=3, num_return_sequences=3)
    engine.submit(2, [7] * 5, 20)
    engine.run()
    assert engine.engine.stats().preemptions > 0
    assert engine.tokens[0, 0] == expected_answer([5] * 5, 20)
    assert [engine.tokens[1, index] for index in range(3)] == expected_beams([6] * 5, 3, 8)
    assert engine.tokens[2, 0] == expected_answer([7] * 5, 20)
    prefills = [batch for batch in runner.batches if any(tokens[:2] == [6, 6] for tokens in batch.token_ids)]
    assert len(prefills) == 1


def test_beams_come_whole_at_the_end() -> None:
    engine = GroupEngine()
    engine.submit(0, [4] * 6, 5, num_beams=3, num_return_sequences=2)
    for _ in range(4):
        assert engine.step().deltas == []
    deltas = engine.step().deltas
    assert [(delta.sequence_index, len(delta.token_ids)) for delta in deltas] == [(0, 5), (1, 5)]
    assert [delta.finish.sequence_score for delta in deltas if delta.finish] == [0.0, -1.0]
    engine.assert_nothing_held()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 9}, "rows"),
        ({"num_beams": 4, "max_new_tokens": 64}, "rows"),
        ({"guidance_scale": 2.0, "max_new_tokens": 127}, "rows"),
        ({"guidance_scale": 2.0, "negative_prompt": []}, "negative_prompt"),
        ({"guidance_scale": 2.0, "negative_prompt": [1] * 4094}, "context"),
    ],
)
def test_groups_that_can_never_run_are_refused(settings: dict[str, Any], message: str) -> None:
    engine = GroupEngine(FakeRunner(num_blocks=64, block_size=4))
    engine.submit(0, [1] * 20, **settings)
    engine.submit(1, [2], 3)
    engine.run()
    assert engine.failures[0].kind in ("capacity", "invalid")
    assert message in engine.failures[0].message
    assert engine.tokens[1, 0] == expected_answer([2], 3)


def test_what_just_fits_runs() -> None:
    engine = GroupEngine(FakeRunner(num_blocks=16, block_size=4))
    # 2 blocks of the prompt are common; 7 more hold the tokens 9 to 36 of each of two beams.
    engine.submit(0, [1] * 9, 28, num_beams=2)
    engine.run()
    assert engine.tokens[0, 0] == expected_beams([1] * 9, 2, 28)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3},
        {"guidance_scale": 2.0, "num_return_sequences": 2},
        {"guidance_scale": 2.0, "negative_prompt": [NAN_TOKEN], "num_return_sequences": 2},
    ],
)
@pytest.mark.parametrize("shares_blocks", [True, False])
def test_a_failure_ends_all_rows_of_a_request_and_no_other(settings: dict[str, Any], shares_blocks: bool) -> None:
    engine = GroupEngine(FakeRunner(shares_blocks=shares_blocks))
    # The fake sampler looks for NaN in the row itself only.
    engine.submit(0, [NAN_TOKEN, 2], **settings)
    engine.submit(1, [1, 2])
    outputs = engine.step()
    assert [failure.request for failure in outputs.failures] == [0]
    assert {delta.request for delta in outputs.deltas} == {1}
    engine.run()
    assert engine.failures[0].kind == "row"
    assert engine.tokens[1, 0] == expected_answer([1, 2], 6)
    engine.assert_nothing_held()


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3},
        {"guidance_scale": 2.0, "num_return_sequences": 2},
    ],
)
@pytest.mark.parametrize("shares_blocks", [True, False])
@pytest.mark.parametrize("raises", [True, False])
def test_an_abort_or_a_raising_forward_frees_everything(
    settings: dict[str, Any], steps: int, shares_blocks: bool, raises: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: ForwardBatch) -> None:
        raise RuntimeError("injected")

    runner = FakeRunner(shares_blocks=shares_blocks)
    engine = GroupEngine(runner, max_step_tokens=8)
    engine.submit(0, [1] * 10, 20, **settings)
    for _ in range(steps):
        engine.step()
    if raises:
        runner.on_forward = fail
        engine.step()
        runner.on_forward = None
        assert [(failure.request, failure.kind) for failure in engine.failures.values()] == [(0, "step")]
    else:
        engine.send(Abort([0]))
        engine.submit(1, [2], 1)
        engine.step()
    engine.assert_nothing_held()
    assert ("injected" in capsys.readouterr().err) == raises


def test_a_guided_row_and_its_twin_share_every_forward_that_gives_a_token() -> None:
    runner = FakeRunner()
    engine = GroupEngine(runner, max_step_tokens=6)
    engine.submit(0, [1] * 9, 4, guidance_scale=1.5, negative_prompt=[2] * 5)
    engine.submit(1, [3] * 3, 4)
    engine.run()
    assert engine.tokens[0, 0] == expected_answer([1] * 9, 4, negative_prompt=[2] * 5)
    assert engine.tokens[1, 0] == expected_answer([3] * 3, 4)
    logits_of = [
        {sequence for sequence, wanted in zip(batch.sequence_ids, batch.num_logits, strict=True) if wanted}
        for batch in runner.batches
    ]
    assert all(len({0, 1} & rows) != 1 for rows in logits_of)
    # The pair's 14 prompt tokens in passes of 6: whoever could end waits for the other.
    shapes = [[len(tokens) for tokens in batch.token_ids] for batch in runner.batches[:3]]
    assert shapes == [[6], [2, 4], [1, 1, 3]]


def test_sampled_tokens_differ_between_sequences() -> None:
    """The fake would hide a mix-up of sequences if all gave the same."""
    settings = GenerationSettings(max_new_tokens=1, do_sample=True)
    tokens = {chosen_token(next_token([1, 2]), settings, index, 0) for index in range(5)}
    assert len(tokens) == 5


def test_blocks_that_cannot_be_copied_are_forgotten_with_their_requests() -> None:
    runner = FakeRunner()
    engine = GroupEngine(runner)
    engine.submit(0, [1, 2, 3, 4, 5], 8, do_sample=True, num_return_sequences=2)
    engine.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "shares_blocks", False)  # which the fake refuses to copy blocks with
        engine.step()
    assert set(engine.failures) == {0}
    engine.submit(1, [9, 8, 7], 4)
    engine.run()
    assert set(engine.failures) == {0}
    assert runner.num_copies == 0
    assert engine.tokens[1, 0] == expected_answer([9, 8, 7], 4)
    engine.assert_nothing_held()
