"""Who can resume what, for how long, and how much of it is kept."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine, say
from harness import Service, service_config
from resuming import MINE, Answer, cancel, check_unknown, keeping, read, resumable, resume, retention, until
from test_calls import conversation
from test_credentials import bearer, write_callers
from test_statuses import check_common, failure

from tokenwire.config import SecurityConfig
from tokenwire.security.keys import hash_of, new_key
from tokenwire.v1 import generation_service_pb2, model_service_pb2

Start = Callable[..., Awaitable[Service]]


async def test_another_caller_learns_nothing(start: Start, tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("alice", "bob")}
    entries = {name: {"key_hashes": [hash_of(key)]} for name, key in keys.items()}
    callers = write_callers(tmp_path / "callers.toml", **entries)
    security = SecurityConfig(callers=callers)
    service = await start(FakeEngine(), service_config(keeping(), security=security))
    alice, bob = bearer(keys["alice"]), bearer(keys["bob"])
    call = service.generation.GenerateStream(resumable(), metadata=(*MINE, *alice))
    stream = await service.engine.submitted.get()
    stream.answer("secret")
    assert await read(call, Answer())
    known = await check_unknown(service, "mine", metadata=bob)
    assert known == await check_unknown(service, "never", metadata=bob)
    # The same id is another stream for another caller.
    theirs = service.generation.GenerateStream(resumable(), metadata=(*MINE, *bob))
    (await service.engine.submitted.get()).answer("theirs")
    assert await read(theirs, Answer())
    for metadata, text in ((alice, "secret"), (bob, "theirs")):
        answer = Answer()
        assert await read(service.generation.ResumeStream(resume(), metadata=metadata), answer)
        assert answer.texts == {0: text}


async def test_an_id_in_use_is_refused(kept: Service) -> None:
    call = kept.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await kept.engine.submitted.get()
    failed = await failure(kept.generation.GenerateStream(resumable(), metadata=MINE))
    assert failed.code is grpc.StatusCode.ALREADY_EXISTS
    check_common(failed, "STREAM_EXISTS")
    stream.answer("x")
    assert await read(call, Answer())


@pytest.mark.parametrize("is_finished", [False, True])
async def test_after_the_window_nothing_is_held(start: Start, is_finished: bool) -> None:
    service = await start(FakeEngine(), service_config(keeping(resume_window=0.3)))
    call = service.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await service.engine.submitted.get()
    if is_finished:
        stream.answer("x")
        assert await read(call, Answer())
    call.cancel()
    await until(lambda: not len(retention(service)))
    assert retention(service).num_bytes == 0
    assert stream.closed.is_set() is not is_finished
    await until(lambda: not service.engine.open)
    await check_unknown(service, "mine")


async def test_a_call_that_reads_stops_the_window(start: Start) -> None:
    window_s = 5.0
    service = await start(FakeEngine(), service_config(keeping(resume_window=window_s)))
    call = service.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await service.engine.submitted.get()
    answer = Answer()
    assert not await read(call, answer, 1)
    call.cancel()
    await until(lambda: retention(service).num_unread == 1)
    call = service.generation.ResumeStream(resume())
    assert not await read(call, answer, 1)
    # Nothing tells that a timer that is gone did not go off.
    await asyncio.sleep(1.2 * window_s)
    assert not stream.closed.is_set()
    assert len(retention(service)) == 1
    stream.answer("x")
    assert await read(call, answer)
    assert answer.texts == {0: "x"}


async def test_a_stream_that_outgrows_its_bound_goes_on_but_not_without_its_call(start: Start) -> None:
    service = await start(FakeEngine(), service_config(keeping(max_retained_stream_bytes=10_000)))
    calls = [service.generation.GenerateStream(resumable(), metadata=(("x-request-id", name),)) for name in "ab"]
    streams = [await service.engine.submitted.get() for _ in calls]
    for stream in streams:
        stream.push("x" * 20_000, [120])
    await until(lambda: not len(retention(service)))
    assert retention(service).num_bytes == 0
    for name in "ab":
        await check_unknown(service, name)
    calls[1].cancel()
    (given_up,) = [stream for stream in streams if stream.closed.is_set()] or [await _first_closed(streams)]
    (other,) = [stream for stream in streams if stream is not given_up]
    other.push("y" * 20_000, [121], "length")
    answer = Answer()
    assert await read(calls[0], answer)
    assert answer.texts == {0: "x" * 20_000 + "y" * 20_000}


async def _first_closed(streams: list[Any]) -> Any:
    await until(lambda: any(stream.closed.is_set() for stream in streams))
    return next(stream for stream in streams if stream.closed.is_set())


async def test_where_all_are_too_large_the_longest_unread_goes_first(start: Start) -> None:
    service = await start(FakeEngine(), service_config(keeping(max_retained_bytes=60_000)))
    calls, streams = {}, {}
    for name in ("read", "old", "new"):
        calls[name] = service.generation.GenerateStream(resumable(), metadata=(("x-request-id", name),))
        streams[name] = await service.engine.submitted.get()
        streams[name].push("x" * 10_000, [120])
        await read(calls[name], Answer(), 2)
    calls["old"].cancel()
    await until(lambda: retention(service).num_unread == 1)
    calls["new"].cancel()
    await until(lambda: retention(service).num_unread == 2)
    streams["new"].push("x" * 20_000, [120])
    await streams["old"].closed.wait()
    assert not streams["new"].closed.is_set()
    assert retention(service).num_bytes <= 60_000
    await check_unknown(service, "old")
    assert {stream for stream in streams.values() if stream in service.engine.open} == {streams["read"], streams["new"]}


async def test_nobody_can_push_out_another_callers_streams(start: Start, tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("many", "one")}
    entries = {name: {"key_hashes": [hash_of(key)]} for name, key in keys.items()}
    security = SecurityConfig(callers=write_callers(tmp_path / "callers.toml", **entries))
    limits = keeping(max_retained_bytes=40_000)
    service = await start(FakeEngine(script=say("x")), service_config(limits, security=security))
    # The one's is the longest unread of all.
    one = service.generation.GenerateStream(resumable(), metadata=(*MINE, *bearer(keys["one"])))
    assert await read(one, Answer())
    for number in range(30):
        metadata = (("x-request-id", str(number)), *bearer(keys["many"]))
        assert await read(service.generation.GenerateStream(resumable(), metadata=metadata), Answer())
    assert retention(service).num_bytes <= 40_000
    assert await read(service.generation.ResumeStream(resume(), metadata=bearer(keys["one"])), Answer())
    await check_unknown(service, "0", metadata=bearer(keys["many"]))


async def test_off_is_said_before_anything_else(service: Service, engine: FakeEngine) -> None:
    chat = generation_service_pb2.ChatRequest(resumable=True)
    for call in (
        service.generation.GenerateStream(resumable()),
        service.generation.ChatStream(chat),
        service.generation.ResumeStream(resume()),
        service.generation.CancelStream(cancel()),
    ):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
        check_common(failed, "RESUME_OFF")
    assert not engine.streams


async def test_calls_that_do_not_stream_refuse_it(kept: Service) -> None:
    chat = generation_service_pb2.ChatRequest(conversation=conversation(("user", "hi")), resumable=True)
    for call in (kept.generation.Generate(resumable()), kept.generation.Chat(chat)):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.fields == {"resumable"}


@pytest.mark.parametrize(
    ("positions", "fields"),
    [
        ([{"text_bytes": -1}], {"positions[0].text_bytes"}),
        ([{"token_count": -1}], {"positions[0].token_count"}),
        ([{"sequence_index": -1}], {"positions[0].sequence_index"}),
        ([{}, {}], {"positions[1].sequence_index"}),
        ([{"sequence_index": index} for index in range(17)], {"positions"}),
        ([{"sequence_index": 1}], {"positions[0].sequence_index"}),
        ([{"text_bytes": 2}], {"positions[0].text_bytes"}),
    ],
)
async def test_bad_positions(kept: Service, positions: list[dict[str, Any]], fields: set[str]) -> None:
    """The last one lies within a character."""
    call = kept.generation.GenerateStream(resumable(), metadata=MINE)
    (await kept.engine.submitted.get()).push("aü", [97, 1, 2])
    await read(call, Answer(), 2)
    failed = await failure(kept.generation.ResumeStream(resume("mine", *positions)))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.fields == fields
    for beyond in ({"text_bytes": 4}, {"token_count": 4}):
        failed = await failure(kept.generation.ResumeStream(resume("mine", beyond)))
        assert failed.code is grpc.StatusCode.OUT_OF_RANGE
        check_common(failed, "POSITION_OUT_OF_RANGE")
    # Whoever is refused takes nothing over.
    assert not call.done()
    for refused in (kept.generation.ResumeStream(resume("")), kept.generation.CancelStream(cancel(""))):
        assert (await failure(refused)).fields == {"request_id"}


async def test_the_limits_are_reported(start: Start) -> None:
    limits = keeping(resume_window=2.5, max_retained_bytes=300, max_retained_stream_bytes=20)
    service = await start(FakeEngine(), service_config(limits))
    reported = (await service.model.GetModel(model_service_pb2.GetModelRequest())).model.limits
    assert (reported.resume_window_ms, reported.max_retained_bytes, reported.max_retained_stream_bytes) == (
        2500,
        300,
        20,
    )
