"""Streams whose calls are lost go on, for their own caller alone, within their bounds."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine, say
from harness import Service, service_config
from test_admission import until_waiting
from test_calls import TEXT, conversation, generate_request
from test_credentials import bearer, write_callers
from test_statuses import check_common, failure

from tokenwire.config import LimitsConfig, SecurityConfig
from tokenwire.security.keys import hash_of, new_key
from tokenwire.servicers.retention import Retention
from tokenwire.v1 import generation_pb2, generation_service_pb2, model_service_pb2

Start = Callable[..., Awaitable[Service]]
WINDOW_S = 60.0
PATIENCE_S = 20.0
MINE = (("x-request-id", "mine"),)


def keeping(**limits: Any) -> LimitsConfig:
    return LimitsConfig(**{"resume_window": WINDOW_S, **limits})


@pytest.fixture
async def kept(start: Start) -> Service:
    """A server that keeps streams, over an engine that the test drives."""
    return await start(FakeEngine(), service_config(keeping()))


def resumable(text: str = "hi", **config: object) -> generation_service_pb2.GenerateRequest:
    request = generate_request(text, **config)
    request.resumable = True
    return request


def resume(request_id: str = "mine", *positions: dict[str, Any]) -> generation_service_pb2.ResumeStreamRequest:
    messages = [generation_service_pb2.StreamPosition(**position) for position in positions]
    return generation_service_pb2.ResumeStreamRequest(request_id=request_id, positions=messages)


def cancel(request_id: str = "mine") -> generation_service_pb2.CancelStreamRequest:
    return generation_service_pb2.CancelStreamRequest(request_id=request_id)


def retention(service: Service) -> Retention:
    assert service.server.backend is not None
    return service.server.backend.retention


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  (several places change it)
            await asyncio.sleep(0.01)


@dataclass
class Answer:
    """What has come of a stream, over all of its calls."""

    start: Any = None
    texts: dict[int, str] = field(default_factory=dict)
    details: dict[int, list[list[Any]]] = field(default_factory=dict)
    """Of each sequence the token ids, and what belongs to each of them."""
    finishes: dict[int, Any] = field(default_factory=dict)
    prompt_logprobs: list[Any] = field(default_factory=list)

    def take(self, event: Any) -> None:
        match event.WhichOneof("event"):
            case "start":
                assert self.start in (None, event.start)
                self.start = event.start
            case "delta":
                delta = event.delta
                index = delta.sequence_index
                assert index not in self.finishes
                before = self.texts.get(index, "")
                assert delta.text_range.start == len(before.encode())
                self.texts[index] = before + delta.text
                columns = (delta.token_ids, delta.logprobs, delta.tokens, delta.explanations)
                for known, new in zip(self.details.setdefault(index, [[], [], [], []]), columns, strict=True):
                    known += new
                self.prompt_logprobs += delta.prompt_logprobs
            case "finish":
                assert event.finish.sequence_index not in self.finishes
                self.finishes[event.finish.sequence_index] = event.finish

    def positions(self) -> list[dict[str, Any]]:
        return [
            {
                "sequence_index": index,
                "text_bytes": len(text.encode()),
                "token_count": len(self.details[index][0]),
                "is_finished": index in self.finishes,
            }
            for index, text in self.texts.items()
        ]


async def read(call: Any, answer: Answer, count: int = 1_000_000) -> bool:
    """Take ``count`` events; True where the stream ended before."""
    for _ in range(count):
        event = await call.read()
        if event is grpc.aio.EOF:
            return True
        answer.take(event)
    return False


def detailed(request: Any) -> Any:
    """Every detail that a stream can have, for three sequences."""
    request.generation_config.MergeFrom(
        generation_pb2.GenerationConfig(do_sample=True, seed=3, num_return_sequences=3, max_new_tokens=60)
    )
    request.output.MergeFrom(
        generation_pb2.OutputOptions(logprobs=1, prompt_logprobs=0, token_details=True, explain=True, echo=True)
    )
    return request


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


async def check_unknown(service: Service, request_id: str, **options: Any) -> str:
    """That no stream of this id is there; what is said of it."""
    texts = set()
    for call in (
        service.generation.ResumeStream(resume(request_id), **options),
        service.generation.CancelStream(cancel(request_id), **options),
    ):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.NOT_FOUND
        check_common(failed, "STREAM_NOT_FOUND")
        assert set(failed.details["ErrorInfo"].metadata) == {"request_id"}
        texts.add(failed.message)
    (text,) = texts
    return text


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
    service = await start(FakeEngine(), service_config(keeping(resume_window=0.3)))
    call = service.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await service.engine.submitted.get()
    await asyncio.sleep(0.6)
    stream.answer("x")
    answer = Answer()
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
    for beyond in ({"text_bytes": 4}, {"token_count": 4}, {"sequence_index": 1}):
        failed = await failure(kept.generation.ResumeStream(resume("mine", beyond)))
        assert failed.code is grpc.StatusCode.OUT_OF_RANGE
        check_common(failed, "POSITION_OUT_OF_RANGE")
    # Whoever is refused takes nothing over.
    assert not call.done()
    for refused in (kept.generation.ResumeStream(resume("")), kept.generation.CancelStream(cancel(""))):
        assert (await failure(refused)).fields == {"request_id"}


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


async def test_an_engine_that_died_is_told_within_the_window(kept: Service) -> None:
    call = kept.generation.GenerateStream(resumable(), metadata=MINE)
    stream = await kept.engine.submitted.get()
    stream.push("ab", [97, 98])
    await read(call, Answer(), 2)
    call.cancel()
    kept.engine.die()
    for _ in range(2):
        again, answer = kept.generation.ResumeStream(resume()), Answer()
        await read(again, answer, 2)
        assert answer.texts == {0: "ab"}
        failed = await failure(again)
        assert failed.code is grpc.StatusCode.UNAVAILABLE
        check_common(failed, "ENGINE_UNAVAILABLE")


async def test_a_slow_reader_may_come_back(start: Start) -> None:
    service = await start(
        FakeEngine(), service_config(keeping(max_retained_stream_bytes=10**8), slow_reader_timeout=0.3)
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


async def test_the_limits_are_reported(start: Start) -> None:
    limits = keeping(resume_window=2.5, max_retained_bytes=300, max_retained_stream_bytes=20)
    service = await start(FakeEngine(), service_config(limits))
    reported = (await service.model.GetModel(model_service_pb2.GetModelRequest())).model.limits
    assert (reported.resume_window_ms, reported.max_retained_bytes, reported.max_retained_stream_bytes) == (
        2500,
        300,
        20,
    )
