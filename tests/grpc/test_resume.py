"""Streams whose calls are lost go on: nothing doubled, nothing missing."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine, say
from harness import Service, service_config
from resuming import (
    MINE,
    PATIENCE_S,
    Answer,
    cancel,
    check_unknown,
    detailed,
    keeping,
    read,
    resumable,
    resume,
    retention,
    until,
)
from test_admission import until_waiting
from test_calls import TEXT, conversation, generate_request
from test_statuses import check_common, failure

from tokenwire.v1 import generation_service_pb2

Start = Callable[..., Awaitable[Service]]


@pytest.mark.parametrize("method", ["GenerateStream", "ChatStream"])
async def test_cut_after_any_event_the_answer_is_the_uncut_one(start: Start, method: str) -> None:
    service = await start(FakeEngine(script=say(TEXT)), service_config(keeping()))
    chat = generation_service_pb2.ChatRequest(conversation=conversation(("user", "hi")))
    request = detailed(generate_request() if method == "GenerateStream" else chat)
    call = getattr(service.generation, method)
    uncut = Answer()
    assert await read(call(request, metadata=MINE), uncut)
    assert len(uncut.finishes) == 3
    request.resumable = True
    num_calls = 0
    for count in range(1, 12):
        answer = Answer()
        first = call(request, metadata=MINE)
        is_over = await read(first, answer, count)
        while not is_over:
            first.cancel()
            num_calls += 1
            first = service.generation.ResumeStream(resume("mine", *answer.positions()))
            # One more than the start, which comes each time.
            is_over = await read(first, answer, count + 1)
        assert answer == uncut
        await service.generation.CancelStream(cancel())
    # What has come already is merged, so that few events are left to cut after.
    assert num_calls > 10
    assert len(retention(service)) == retention(service).num_bytes == 0


async def test_an_answer_goes_on_while_no_call_reads_it(kept: Service) -> None:
    call = kept.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await kept.engine.submitted.get()
    stream.push("ab", [97, 98])
    answer = Answer()
    await read(call, answer, 2)
    call.cancel()
    stream.push("ü", [1, 2])
    again = kept.generation.ResumeStream(resume("mine", *answer.positions()))
    await read(again, answer, 2)
    stream.push("c", [99], "length")
    assert await read(again, answer)
    assert answer.texts == {0: "abüc"}
    assert answer.details[0][0] == [97, 98, 1, 2, 99]
    assert answer.finishes[0].usage.completion_token_count == 5
    assert not stream.closed.is_set()


async def test_a_request_that_waits_goes_on_waiting(start: Start) -> None:
    service = await start(FakeEngine(), service_config(keeping(), max_running=1))
    running = service.generation.GenerateStream(generate_request())
    stream = await service.engine.submitted.get()
    call = service.generation.GenerateStream(resumable(), metadata=MINE)
    await until_waiting(service, 1)
    call.cancel()
    stream.answer("x")
    (await service.engine.submitted.get()).answer("later")
    answer = Answer()
    assert await read(service.generation.ResumeStream(resume()), answer)
    assert answer.texts == {0: "later"}
    running.cancel()


@pytest.mark.parametrize("is_parked", [False, True])
async def test_the_newer_call_wins(kept: Service, is_parked: bool) -> None:
    older = kept.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await kept.engine.submitted.get()
    if is_parked:
        # More than the windows between the two take in: it hangs in a write.
        for _ in range(64):
            stream.push("x" * 20_000, [120])
        await asyncio.sleep(0)
    newer = kept.generation.ResumeStream(resume())
    answer = Answer()
    await read(newer, answer, 1)
    failed = await failure(older)
    assert failed.code is grpc.StatusCode.ABORTED
    check_common(failed, "STREAM_TAKEN_OVER")
    stream.push("end", [1], "length")
    assert await read(newer, answer)
    assert answer.texts[0].endswith("end")
    assert not stream.closed.is_set()


async def test_of_many_that_resume_at_once_one_has_the_rest_and_all_others_are_told(kept: Service) -> None:
    """Some are taken over before their first message is on its way."""
    first = kept.generation.GenerateStream(resumable(), metadata=MINE, timeout=PATIENCE_S)
    stream = await kept.engine.submitted.get()
    stream.push("a", [97])
    await read(first, Answer(), 2)
    resumed = [kept.generation.ResumeStream(resume(), timeout=PATIENCE_S) for _ in range(60)]
    answers = [Answer() for _ in (first, *resumed)]
    reading = [asyncio.create_task(read(call, answer)) for call, answer in zip((first, *resumed), answers, strict=True)]
    await until(lambda: sum(task.done() for task in reading) == len(reading) - 1)
    stream.push("b", [98], "length")
    ends = await asyncio.gather(*reading, return_exceptions=True)
    (winner,) = [index for index, end in enumerate(ends) if end is True]
    assert answers[winner].texts == {0: "ab"}
    codes = {end.code() for end in ends if isinstance(end, grpc.aio.AioRpcError)}
    assert codes == {grpc.StatusCode.ABORTED}


async def test_cancel_stream_frees_the_row_and_the_memory_at_once(kept: Service) -> None:
    call = kept.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await kept.engine.submitted.get()
    stream.push("a", [97])
    await read(call, Answer(), 2)
    await kept.generation.CancelStream(cancel())
    assert stream.closed.is_set()
    assert len(retention(kept)) == retention(kept).num_bytes == 0
    failed = await failure(call)
    assert failed.code is grpc.StatusCode.CANCELLED
    await check_unknown(kept, "mine")


async def test_the_deadline_of_the_first_call_is_the_answers(kept: Service) -> None:
    call = kept.generation.GenerateStream(resumable(), metadata=MINE, timeout=3.0)
    stream = await kept.engine.submitted.get()
    stream.push("ab", [97, 98])
    answer = Answer()
    await read(call, answer, 2)
    call.cancel()
    stream.push("c", [99])
    await stream.closed.wait()
    again = kept.generation.ResumeStream(resume("mine", *answer.positions()))
    await read(again, answer, 2)
    assert answer.texts == {0: "abc"}
    failed = await failure(again)
    assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
    check_common(failed, "DEADLINE_PASSED")


async def test_the_deadline_of_a_later_call_ends_that_call_alone(kept: Service) -> None:
    call = kept.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await kept.engine.submitted.get()
    call.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(kept.generation.ResumeStream(resume(), timeout=0.3), Answer())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    stream.answer("x")
    answer = Answer()
    assert await read(kept.generation.ResumeStream(resume()), answer)
    assert answer.texts == {0: "x"}


async def test_an_engine_that_died_is_told_within_the_window(kept: Service, caplog: pytest.LogCaptureFixture) -> None:
    call = kept.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await kept.engine.submitted.get()
    stream.push("ab", [97, 98])
    await read(call, Answer(), 2)
    call.cancel()
    await until(lambda: retention(kept).num_unread == 1)
    kept.engine.die()
    # Here too, for perhaps nobody comes back.
    await until(lambda: "a stream without a reader failed" in caplog.messages)
    for _ in range(2):
        again, answer = kept.generation.ResumeStream(resume()), Answer()
        await read(again, answer, 2)
        assert answer.texts == {0: "ab"}
        failed = await failure(again)
        assert failed.code is grpc.StatusCode.UNAVAILABLE
        check_common(failed, "ENGINE_UNAVAILABLE")


async def test_a_slow_reader_may_come_back(start: Start) -> None:
    service = await start(
        FakeEngine(), service_config(keeping(max_retained_stream_bytes=10**8), slow_reader_timeout=2.0)
    )
    slow = service.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await service.engine.submitted.get()
    for _ in range(64):
        stream.push("x" * 100_000, [120])
    # It is cut off where it does not read; what it asked for goes on.
    await until(lambda: retention(service).num_unread == 1)
    stream.push("end", [1], "length")
    assert (await failure(slow)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    answer = Answer()
    assert await read(service.generation.ResumeStream(resume()), answer)
    assert answer.texts == {0: "x" * 6_400_000 + "end"}
    assert len(answer.details[0][0]) == 65
