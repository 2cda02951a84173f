"""Limits and order in front of the engine: what waits, what is refused and how, and what comes first."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes import FakeEngine, FakeStream, model_info, say
from harness import Service, service_config
from test_calls import conversation, generate_request
from test_credentials import bearer, write_callers
from test_statuses import Failed, check_common, failure

from tokenwire.admission import admission
from tokenwire.config import LimitsConfig, SecurityConfig
from tokenwire.engine.handle import EngineState
from tokenwire.security.keys import hash_of, new_key
from tokenwire.v1 import generation_pb2, generation_service_pb2, model_service_pb2

Start = Callable[..., Awaitable[Service]]
KEYS = {name: new_key() for name in ("alice", "bob", "nightly", "first")}


def callers_file(folder: Path, **limits: dict[str, Any]) -> SecurityConfig:
    entries = {name: {"key_hashes": [hash_of(key)], **limits.get(name, {})} for name, key in KEYS.items()}
    return SecurityConfig(callers=write_callers(folder / "callers.toml", **entries))


class Calls:
    """Calls under way, and the streams that the engine was given for them, by prompt."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.tasks: list[asyncio.Task[Any]] = []

    def send(self, text: str, caller: str = "", **fields: Any) -> "asyncio.Task[Any]":
        request = generate_request(text, **fields.pop("config", {}))
        if "priority" in fields:
            request.priority = fields.pop("priority")
        metadata = bearer(KEYS[caller]) if caller else ()
        call = self._service.generation.Generate(request, metadata=metadata, **fields)
        task = asyncio.ensure_future(_awaited(call))
        self.tasks.append(task)
        return task

    async def next_start(self) -> FakeStream:
        async with asyncio.timeout(20):
            return await self._service.engine.submitted.get()


async def _awaited(call: Any) -> Any:
    return await call


def prompt_of(stream: FakeStream) -> str:
    return bytes(stream.prompt_ids).decode()


async def until_waiting(service: Service, count: int) -> None:
    """Until ``count`` requests wait in front of the engine."""
    give_up_at = time.monotonic() + 20
    backend = service.server.backend
    assert backend is not None
    while backend.admission.num_waiting != count:
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


def check_refused(failed: Failed, reason: str, subject: str) -> int:
    """The pushback in milliseconds."""
    assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    check_common(failed, reason)
    assert failed.details["QuotaFailure"].violations[0].subject == subject
    pushback = int(failed.trailing["grpc-retry-pushback-ms"])
    assert failed.details["RetryInfo"].retry_delay.ToMilliseconds() == pushback > 0
    return pushback


async def refused(task: "asyncio.Task[Any]") -> Failed:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await task
    return Failed(caught.value)


async def test_the_engine_gets_what_it_can_run_and_the_rest_waits_in_order(start: Start) -> None:
    service = await start(FakeEngine(), service_config(max_running=2))
    calls = Calls(service)
    for number in range(5):
        calls.send(str(number))
        await (asyncio.sleep(0) if number > 1 else calls.next_start())
        await until_waiting(service, max(0, number - 1))
    assert len(service.engine.open) == 2
    for number in range(2, 5):
        service.engine.streams[number - 2].answer("x")
        assert prompt_of(await calls.next_start()) == str(number)
    for stream in service.engine.streams[3:]:
        stream.answer("x")
    answers = await asyncio.gather(*calls.tasks)
    assert [answer.sequences[0].text for answer in answers] == ["x"] * 5
    # The time in front of the engine is part of the time in the queue.
    assert answers[0].sequences[0].finish.timings.queue_ms == 1.0
    assert answers[4].sequences[0].finish.timings.queue_ms > 1.0


async def test_rows_and_the_cache_bound_what_runs(start: Start) -> None:
    service = await start(FakeEngine(model_info(kv_token_capacity=100)), service_config(max_running=4))
    calls = Calls(service)
    calls.send("a" * 50)
    first = await calls.next_start()
    calls.send("b" * 60)
    await until_waiting(service, 1)
    # Nobody overtakes it, though there would be room.
    calls.send("c")
    await until_waiting(service, 2)
    first.answer("x")
    assert {prompt_of(await calls.next_start())[0] for _ in range(2)} == {"b", "c"}
    calls.send("d", config={"do_sample": True, "num_return_sequences": 3})
    await until_waiting(service, 1)
    service.engine.streams[2].answer("x")
    assert prompt_of(await calls.next_start()) == "d"
    for stream in list(service.engine.open):
        stream.answer("x")
    await asyncio.gather(*calls.tasks)


@pytest.mark.parametrize(("limits", "limit"), [({"max_queued": 2}, "2"), ({"max_queued_tokens": 8}, "8")])
async def test_a_full_queue_refuses_before_any_work(start: Start, limits: dict[str, int], limit: str) -> None:
    service = await start(FakeEngine(), service_config(LimitsConfig(**limits), max_running=1))
    calls = Calls(service)
    calls.send("runs")
    first = await calls.next_start()
    calls.send("four")
    calls.send("five")
    await until_waiting(service, 2)
    too_long = generate_request("x" * 100, max_new_tokens=100)
    for call in (
        service.generation.Generate(generate_request()),
        service.generation.GenerateStream(generate_request()),
        service.generation.GenerateBatch(
            generation_service_pb2.GenerateBatchRequest(prompts=[generation_service_pb2.Prompt(text="a")])
        ),
        service.generation.ChatStream(generation_service_pb2.ChatRequest(conversation=conversation(("user", "x")))),
        # Refused for the queue and not for what a look at the prompt would find.
        service.generation.Generate(too_long),
    ):
        failed = await failure(call)
        assert 750 <= check_refused(failed, "QUEUE_FULL", "queue") <= 1250
        assert failed.details["ErrorInfo"].metadata["limit"] == limit
    first.answer("x")
    for _ in range(2):
        (await calls.next_start()).answer("x")
    await asyncio.gather(*calls.tasks)
    reported = (await service.model.GetModel(model_service_pb2.GetModelRequest())).model.limits
    config = LimitsConfig(**limits)
    assert (reported.max_queued_count, reported.max_queued_token_count) == (config.max_queued, config.max_queued_tokens)


async def test_a_full_queue_answers_at_once(start: Start) -> None:
    service = await start(FakeEngine(), service_config(LimitsConfig(max_queued=1), max_running=1))
    calls = Calls(service)
    calls.send("runs")
    await calls.next_start()
    calls.send("waits")
    await until_waiting(service, 1)
    took = []
    for _ in range(100):
        begun = time.monotonic()
        await failure(service.generation.Generate(generate_request("x" * 90)))
        took.append(time.monotonic() - begun)
    # 50 ms on a machine with nothing else to do, which this one may have.
    assert sorted(took)[10] < 0.05
    for task in calls.tasks:
        task.cancel()
    await asyncio.wait(calls.tasks)


async def test_a_caller_waits_for_its_own_limit_and_others_do_not(start: Start, tmp_path: Path) -> None:
    security = callers_file(tmp_path, alice={"max_running": 1, "max_queued": 1})
    service = await start(FakeEngine(), service_config(max_running=4, security=security))
    calls = Calls(service)
    calls.send("a1", "alice")
    first = await calls.next_start()
    calls.send("a2", "alice")
    await until_waiting(service, 1)
    failed = await refused(calls.send("a3", "alice"))
    check_refused(failed, "CALLER_LIMIT", "caller:alice")
    assert dict(failed.details["ErrorInfo"].metadata)["limit"] == "max_queued"
    for number in range(3):
        calls.send(f"b{number}", "bob")
        assert prompt_of(await calls.next_start()) == f"b{number}"
    first.answer("x")
    assert prompt_of(await calls.next_start()) == "a2"
    # Wider than the limit: alone, when nothing else of the caller's runs.
    service.engine.streams[-1].answer("x")
    calls.send("wide", "alice", config={"do_sample": True, "num_return_sequences": 3})
    await until_waiting(service, 1)
    for stream in list(service.engine.open)[:2]:
        stream.answer("x")
    assert prompt_of(await calls.next_start()) == "wide"
    for stream in list(service.engine.open):
        stream.answer("x")
    await asyncio.gather(*calls.tasks, return_exceptions=True)


async def test_tokens_per_minute_count_prompt_and_answer(start: Start, tmp_path: Path) -> None:
    security = callers_file(tmp_path, alice={"tokens_per_minute": 100})
    service = await start(FakeEngine(script=say("xyz")), service_config(security=security))
    calls = Calls(service)
    # 10 of the prompt and 4 of the answer are used; what was set aside for the rest comes back.
    for _ in range(5):
        await calls.send("p" * 10, "alice", config={"max_new_tokens": 20})
    failed = await refused(calls.send("p" * 10, "alice", config={"max_new_tokens": 60}))
    pushback = check_refused(failed, "CALLER_LIMIT", "caller:alice")
    # 40 of 100 tokens are missing, give or take those of the seconds that the test took.
    assert 4_000 <= pushback <= 24_000
    assert failed.details["ErrorInfo"].metadata["value"] == "100"
    await calls.send("p" * 10, "bob", config={"max_new_tokens": 60})
    await calls.send("p" * 10, "alice", config={"max_new_tokens": 10})


async def test_tokens_of_what_is_given_up_come_back(start: Start, tmp_path: Path) -> None:
    security = callers_file(tmp_path, alice={"tokens_per_minute": 100})
    service = await start(FakeEngine(), service_config(max_running=1, security=security))
    calls = Calls(service)
    running = calls.send("p", "bob")
    stream = await calls.next_start()
    for _ in range(5):
        waiting = calls.send("p" * 10, "alice", config={"max_new_tokens": 80})
        await until_waiting(service, 1)
        waiting.cancel()
        await until_waiting(service, 0)
    stream.answer("x")
    await running


async def test_higher_classes_go_first_and_none_starves(start: Start, tmp_path: Path) -> None:
    security = callers_file(tmp_path, nightly={"priority": "low"}, first={"priority": "high"})
    service = await start(FakeEngine(), service_config(max_running=1, security=security))
    calls = Calls(service)
    calls.send("holds", "bob")
    stream = await calls.next_start()
    for number in range(22):
        for text, caller in (("low", "nightly"), ("normal", "alice"), ("high", "first")):
            calls.send(text, caller)
        await until_waiting(service, 3 * (number + 1))
    order = []
    for _ in range(22):
        stream.answer("x")
        stream = await calls.next_start()
        order.append(prompt_of(stream))
    assert order[0] == "high"
    assert order[:21].count("low") == 1
    assert order[:21].count("normal") == 4
    for task in calls.tasks:
        task.cancel()
    await asyncio.wait(calls.tasks)


async def test_a_request_may_ask_for_less_than_its_callers_priority_and_not_for_more(
    start: Start, tmp_path: Path
) -> None:
    security = callers_file(tmp_path, nightly={"priority": "low"}, first={"priority": "high"})
    service = await start(FakeEngine(script=say("x")), service_config(security=security))
    low, normal, high = (getattr(generation_service_pb2, f"PRIORITY_{name}") for name in ("LOW", "NORMAL", "HIGH"))
    for caller, allowed in (("nightly", {low}), ("alice", {low, normal}), ("first", {low, normal, high})):
        for priority in (low, normal, high):
            prompt = generation_service_pb2.Prompt(text="a")
            batch = generation_service_pb2.GenerateBatchRequest(prompts=[prompt], priority=priority)
            chat = generation_service_pb2.ChatRequest(conversation=conversation(("user", "x")), priority=priority)
            request = generate_request()
            request.priority = priority
            metadata = bearer(KEYS[caller])
            for call in (
                service.generation.Generate(request, metadata=metadata),
                service.generation.GenerateBatch(batch, metadata=metadata),
                service.generation.Chat(chat, metadata=metadata),
            ):
                if priority in allowed:
                    await call
                else:
                    failed = await failure(call)
                    assert failed.code is grpc.StatusCode.PERMISSION_DENIED
                    check_common(failed, "PRIORITY_NOT_ALLOWED")
    request = generate_request(top_p=7.0)
    request.priority = 9
    failed = await failure(service.generation.Generate(request, metadata=bearer(KEYS["alice"])))
    assert failed.fields == {"priority", "generation_config.top_p"}


async def test_who_waits_too_long_is_refused(start: Start) -> None:
    service = await start(FakeEngine(), service_config(LimitsConfig(queue_timeout=0.2), max_running=1))
    calls = Calls(service)
    running = calls.send("runs")
    stream = await calls.next_start()
    begun = time.monotonic()
    failed = await refused(calls.send("waits"))
    assert time.monotonic() - begun >= 0.2
    check_refused(failed, "QUEUE_TIMEOUT", "queue")
    await until_waiting(service, 0)
    stream.answer("x")
    await running
    assert len(service.engine.streams) == 1


async def test_a_deadline_or_a_cancel_in_the_queue_never_reaches_the_engine(start: Start) -> None:
    service = await start(FakeEngine(), service_config(max_running=1))
    calls = Calls(service)
    running = calls.send("runs")
    stream = await calls.next_start()
    late = calls.send("late", timeout=0.3)
    gone = calls.send("gone")
    await until_waiting(service, 2)
    gone.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await late
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until_waiting(service, 0)
    stream.answer("x")
    await running
    assert [prompt_of(each) for each in service.engine.streams] == ["runs"]


@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "GenerateBatch", "Chat", "ChatStream"])
async def test_a_deadline_aware_request_that_waits_too_long_gets_an_empty_answer(
    start: Start, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its deadline, from the front: the engine, which may be busy until later, never sees it."""
    # However slow this machine is, the answer comes before the deadline.
    monkeypatch.setattr(admission, "_DEADLINE_MARGIN_S", 20.0)
    service = await start(FakeEngine(), service_config(max_running=1))
    running = asyncio.ensure_future(service.generation.Generate(generate_request("runs")))
    stream = await service.engine.submitted.get()
    config = generation_pb2.GenerationConfig(deadline_aware=True, do_sample=True, num_return_sequences=3)
    output = generation_pb2.OutputOptions(token_details=True, logprobs=0)
    common = {"generation_config": config, "output": output}
    prompt = generation_service_pb2.Prompt(text="late")
    requests = {
        "Generate": generation_service_pb2.GenerateRequest(prompt=prompt, **common),
        "GenerateBatch": generation_service_pb2.GenerateBatchRequest(prompts=[prompt] * 9, **common),
        "Chat": generation_service_pb2.ChatRequest(conversation=conversation(("user", "late")), **common),
    }
    call = getattr(service.generation, method)(requests[method.removesuffix("Stream")], timeout=21.0)
    if method.endswith("Stream"):
        events = [event async for event in call]
        assert [event.WhichOneof("event") for event in events] == ["start", "finish", "finish", "finish"]
        answers = [[event.finish for event in events[1:]]]
    else:
        answer = await call
        wholes = {
            "Generate": lambda: [answer.sequences],
            "GenerateBatch": lambda: [item.response.sequences for item in answer.items],
            "Chat": lambda: [[choice.sequence for choice in answer.choices]],
        }[method]()
        assert {sequence.text for sequences in wholes for sequence in sequences} == {""}
        answers = [[sequence.finish for sequence in sequences] for sequences in wholes]
    assert len(answers) == (9 if method == "GenerateBatch" else 1)
    for finishes in answers:
        assert [finish.sequence_index for finish in finishes] == [0, 1, 2]
        for finish in finishes:
            assert finish.reason == generation_pb2.FINISH_REASON_DEADLINE
            assert finish.usage.completion_token_count == 0
            assert finish.usage.prompt_token_count >= 4
            assert 0 < finish.timings.queue_ms <= 21_000
            assert (finish.timings.prefill_ms, finish.timings.decode_ms) == (0, 0)
    assert len(service.engine.streams) == 1
    await until_waiting(service, 0)
    stream.answer("x")
    await running


async def test_a_batch_is_answered_the_earlier_the_more_items_it_has(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second for the first, as without a batch: the second is so much earlier that it does not wait at all."""
    monkeypatch.setattr(admission, "_ITEM_MARGIN_S", 3600.0)
    service = await start(FakeEngine(), service_config(max_running=1))
    running = asyncio.ensure_future(service.generation.Generate(generate_request("runs")))
    stream = await service.engine.submitted.get()
    config = generation_pb2.GenerationConfig(deadline_aware=True)
    prompt = generation_service_pb2.Prompt(text="late")

    def batch(count: int) -> generation_service_pb2.GenerateBatchRequest:
        return generation_service_pb2.GenerateBatchRequest(prompts=[prompt] * count, generation_config=config)

    alone = asyncio.ensure_future(service.generation.GenerateBatch(batch(1), timeout=3600.0))
    answer = await service.generation.GenerateBatch(batch(2), timeout=3600.0)
    reasons = [item.response.sequences[0].finish.reason for item in answer.items]
    assert reasons == [generation_pb2.FINISH_REASON_DEADLINE] * 2
    assert not alone.done()
    stream.answer("x")
    await running
    (await service.engine.submitted.get()).answer("y")
    assert (await alone).items[0].response.sequences[0].text == "y"


async def test_time_in_the_queue_counts_for_max_time(start: Start) -> None:
    service = await start(FakeEngine(), service_config(max_running=1))
    calls = Calls(service)
    calls.send("runs")
    stream = await calls.next_start()
    calls.send("waits", config={"max_time": 60.0})
    await until_waiting(service, 1)
    await asyncio.sleep(0.1)
    stream.answer("x")
    second = await calls.next_start()
    assert second.settings.max_time is not None
    assert second.settings.max_time <= 59.9
    second.answer("x")
    await asyncio.gather(*calls.tasks)


async def test_what_waits_when_the_engine_dies_is_told_so(start: Start) -> None:
    service = await start(FakeEngine(), service_config(max_running=1))
    calls = Calls(service)
    tasks = [calls.send("runs"), calls.send("waits")]
    await until_waiting(service, 1)
    service.engine.die()
    for task in tasks:
        failed = await refused(task)
        assert failed.code is grpc.StatusCode.UNAVAILABLE
        assert failed.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    service.engine.script = say("back")
    service.engine.enter(EngineState.READY)
    assert (await calls.send("again")).sequences[0].text == "back"


@pytest.mark.parametrize("in_time", [True, False])
async def test_a_drain_serves_what_waits(start: Start, in_time: bool) -> None:
    service = await start(FakeEngine(), service_config(max_running=1, drain_grace=30.0 if in_time else 0.3))
    calls = Calls(service)
    tasks = [calls.send("runs")]
    stream = await calls.next_start()
    tasks.append(calls.send("waits"))
    await until_waiting(service, 1)
    service.server.stop()
    if in_time:
        stream.answer("x")
        (await calls.next_start()).answer("y")
        assert [(await task).sequences[0].text for task in tasks] == ["x", "y"]
    else:
        for task in tasks:
            assert (await refused(task)).code is grpc.StatusCode.UNAVAILABLE
    await service.serving


async def test_a_batch_waits_within_its_callers_limits(start: Start, tmp_path: Path) -> None:
    security = callers_file(tmp_path, alice={"max_running": 1, "max_queued": 2})
    service = await start(FakeEngine(script=say("x")), service_config(max_running=4, security=security))
    prompts = [generation_service_pb2.Prompt(text=f"p{number}") for number in range(20)]
    request = generation_service_pb2.GenerateBatchRequest(prompts=prompts)
    response = await service.generation.GenerateBatch(request, metadata=bearer(KEYS["alice"]))
    assert [item.response.sequences[0].text for item in response.items] == ["x"] * 20
