"""A stream gives everything exactly once, in order, however its reader lags."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.engine.protocol import Delta, Finish, TokenExplanation, TokenLogprobs, TokenStanding
from tokenwire.engine.stream import DeltaStream
from tokenwire.errors import EngineUnavailableError, RequestAbortedError, RowFailedError

FINISH = Finish("length", None, None, 1, 1, 0.0, 0.0, 0.0)


def make_stream() -> tuple[DeltaStream, list[int]]:
    aborted: list[int] = []
    return DeltaStream(9, aborted.append), aborted


def delta(number: int, finish: Finish | None = None) -> Delta:
    return Delta(9, [number], f"<{number}>", [TokenLogprobs(-float(number), 1, [])], finish)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_merged_deltas_join_to_the_same_answer(reads: list[bool]) -> None:
    """``reads[i]``: whether the reader gets a turn after the i-th delta."""

    async def run() -> None:
        stream, aborted = make_stream()
        received: list[Delta] = []

        async def read() -> None:
            received.extend([part async for part in stream])

        reader = asyncio.create_task(read())
        for number, turn in enumerate(reads):
            stream.push(delta(number, FINISH if number == len(reads) - 1 else None))
            if turn:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        await reader
        numbers = list(range(len(reads)))
        assert [token for part in received for token in part.token_ids] == numbers
        assert "".join(part.text for part in received) == "".join(f"<{number}>" for number in numbers)
        assert [entry.logprob for part in received for entry in part.logprobs] == [-float(n) for n in numbers]
        assert [part.finish for part in received] == [None] * (len(received) - 1) + [FINISH]
        assert len(received) <= sum(reads) + 1
        assert aborted == []

    asyncio.run(run())


async def test_a_reader_that_never_comes_holds_one_delta() -> None:
    stream, _ = make_stream()
    for number in range(1000):
        stream.push(delta(number))
    assert (await anext(stream)).token_ids == list(range(1000))


@pytest.mark.parametrize("error", [RowFailedError("x"), EngineUnavailableError("y")])
async def test_a_failure_is_raised_after_what_is_unread_and_again(error: Exception) -> None:
    stream, aborted = make_stream()
    stream.push(delta(1))
    stream.fail(error)
    stream.fail(ValueError("later"))
    assert (await anext(stream)).token_ids == [1]
    for _ in range(2):
        with pytest.raises(type(error)):
            await anext(stream)
    stream.close()
    assert aborted == []


async def test_a_failure_wakes_a_waiting_reader() -> None:
    stream, _ = make_stream()
    reader = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    stream.fail(RowFailedError("x"))
    with pytest.raises(RowFailedError):
        await reader


async def test_close_aborts_once_and_never_after_the_end() -> None:
    stream, aborted = make_stream()
    stream.close()
    stream.close()
    assert aborted == [9]
    with pytest.raises(RequestAbortedError):
        await anext(stream)

    finished, aborted = make_stream()
    finished.push(delta(1, FINISH))
    finished.close()
    assert aborted == []
    assert [part.finish async for part in finished] == [FINISH]


async def test_close_in_finally_works_under_cancellation() -> None:
    stream, aborted = make_stream()

    async def handler() -> None:
        try:
            async for _ in stream:
                pass
        finally:
            stream.close()

    task = asyncio.create_task(handler())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert aborted == [9]


EVENTS = st.lists(st.integers(0, 2), max_size=30)


@given(EVENTS, st.data())
def test_sequences_in_any_interleaving_keep_their_order(steps: list[int], data: st.DataObject) -> None:
    """``steps``: which sequence each step gives a token; each then ends with one more."""
    ends = data.draw(st.permutations(range(3)))
    reads = data.draw(st.lists(st.booleans(), min_size=len(steps) + 3, max_size=len(steps) + 3))

    async def run() -> None:
        stream = DeltaStream(9, lambda _: None, num_sequences=3, num_rows=3)
        received: list[Delta] = []

        async def read() -> None:
            received.extend([part async for part in stream])

        reader = asyncio.create_task(read())
        for number, (index, turn) in enumerate(zip([*steps, *ends], reads, strict=True)):
            finish = FINISH if number >= len(steps) else None
            stream.push(Delta(9, [number], f"<{number}>", [], finish, index))
            assert stream.is_over is (number == len(steps) + 2)
            if turn:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        await reader
        for index in range(3):
            numbers = [number for number, step in enumerate([*steps, *ends]) if step == index]
            own = [part for part in received if part.sequence_index == index]
            assert [token for part in own for token in part.token_ids] == numbers
            assert "".join(part.text for part in own) == "".join(f"<{number}>" for number in numbers)
            assert [part.finish for part in own] == [None] * (len(own) - 1) + [FINISH]

    asyncio.run(run())


async def test_the_sequence_that_waited_longest_is_read_first() -> None:
    stream = DeltaStream(9, lambda _: None, num_sequences=2)
    for number, index in enumerate([1, 0, 1]):
        stream.push(Delta(9, [number], "", [], None, index))
    first, second = await anext(stream), await anext(stream)
    assert (first.sequence_index, first.token_ids) == (1, [0, 2])
    assert (second.sequence_index, second.token_ids) == (0, [1])


async def test_explanations_are_merged_behind_one_another() -> None:
    stream, _ = make_stream()
    explained = [[TokenExplanation(TokenStanding(0.5, place, 1.0, 9), [], None)] for place in range(3)]
    for token, explanations in enumerate([*explained, None]):
        stream.push(Delta(9, [token], "", [], None, explanations=explanations))
    merged = await anext(stream)
    assert merged.token_ids == [0, 1, 2, 3]
    assert merged.explanations == [explanation for each in explained for explanation in each]
    stream.push(Delta(9, [4], "", [], None))
    assert (await anext(stream)).explanations is None


async def test_prompt_logprobs_survive_merging() -> None:
    stream, _ = make_stream()
    prompt_logprobs = [TokenLogprobs(-1.0, 1, [])]
    stream.push(Delta(9, [1], "", [], None, 0, prompt_logprobs))
    stream.push(delta(2))
    assert (await anext(stream)).prompt_logprobs == prompt_logprobs
