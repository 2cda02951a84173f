"""GenerateBatch: each item by itself, through a queue smaller than the batch."""

import logging
from typing import Any

import grpc
import pytest
from fakes import FakeEngine, FakeStream, say
from google.rpc import error_details_pb2, status_pb2
from harness import Service, service_config
from test_statuses import failure

from tokenwire.config import LimitsConfig
from tokenwire.errors import EngineUnavailableError, RowFailedError
from tokenwire.v1 import generation_pb2, generation_service_pb2


def batch(*texts: str, **config: object) -> generation_service_pb2.GenerateBatchRequest:
    return generation_service_pb2.GenerateBatchRequest(
        prompts=[generation_service_pb2.Prompt(text=text) for text in texts],
        generation_config=generation_pb2.GenerationConfig(**config),  # type: ignore[arg-type]
    )


def echo(stream: FakeStream) -> None:
    stream.answer(bytes(stream.prompt_ids).decode())


async def test_items_answer_in_the_order_of_the_prompts(service: Service, engine: FakeEngine) -> None:
    engine.script = echo
    answer = await service.generation.GenerateBatch(batch("a", "b", "c"))
    assert [item.response.sequences[0].text for item in answer.items] == ["a", "b", "c"]


async def test_a_bad_item_fails_alone(service: Service, engine: FakeEngine) -> None:
    def script(stream: FakeStream) -> None:
        if bytes(stream.prompt_ids) == b"nan":
            stream.fail(RowFailedError("secret"))
        elif bytes(stream.prompt_ids) == b"dead":
            stream.fail(EngineUnavailableError("the engine ended"))
        else:
            echo(stream)

    engine.script = script
    answer = await service.generation.GenerateBatch(batch("ok", "", "nan", "x" * 127 + "yz", "dead"))
    assert [item.WhichOneof("outcome") for item in answer.items] == ["response"] + ["error"] * 4
    codes = [item.error.code for item in answer.items[1:]]
    expected = [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAVAILABLE,
    ]
    assert codes == [code.value[0] for code in expected]
    status = status_pb2.Status.FromString(answer.items[1].error.SerializeToString())
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    assert [violation.field for violation in bad_request.field_violations] == ["prompts[1].text"]
    assert b"secret" not in answer.SerializeToString()


async def test_each_failed_item_has_its_own_log_line(
    service: Service, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def script(stream: FakeStream) -> None:
        text = bytes(stream.prompt_ids).decode()
        stream.fail(RowFailedError("NaN")) if text == "row" else stream.fail(KeyError(text))

    engine.script = script
    with caplog.at_level(logging.INFO, "tokenwire.requests"):
        await service.generation.GenerateBatch(batch("row", "a", "b"))
    items = {record.__dict__["fields"]["item"]: record for record in caplog.records if record.msg == "batch item"}
    assert items[0].__dict__["fields"]["cause"] == "NaN"
    assert {index: str(items[index].exc_info[1]) for index in (1, 2)} == {1: "'a'", 2: "'b'"}  # type: ignore[index]
    (call,) = [record for record in caplog.records if record.msg == "request"]
    assert (call.levelno, call.exc_info) == (logging.INFO, None)


async def test_settings_are_judged_once_for_all(service: Service) -> None:
    failed = await failure(service.generation.GenerateBatch(batch("a", "b", top_k=-1)))
    assert failed.fields == {"generation_config.top_k"}


async def test_counts(start: Any) -> None:
    service = await start(FakeEngine(script=echo), service_config(LimitsConfig(max_batch_size=3)))
    assert len((await service.generation.GenerateBatch(batch("a", "b", "c"))).items) == 3
    for texts in ([], ["a"] * 4):
        assert (await failure(service.generation.GenerateBatch(batch(*texts)))).fields == {"prompts"}


async def test_larger_than_the_queue(start: Any) -> None:
    service = await start(FakeEngine(capacity=3), service_config(max_running=8))
    call = service.generation.GenerateBatch(batch(*(str(number) for number in range(40))))
    for _ in range(40):
        echo(await service.engine.submitted.get())
    answer = await call
    assert [item.response.sequences[0].text for item in answer.items] == [str(number) for number in range(40)]
    assert service.engine.most_open == 3


def num_waiting(service: Service) -> int:
    assert service.server.backend is not None
    return service.server.backend.admission.num_waiting


async def test_leaves_room_for_others(start: Any) -> None:
    service = await start(FakeEngine(), service_config(max_running=2))
    call = service.generation.GenerateBatch(batch(*("x" for _ in range(20))))
    waiting = []
    for _ in range(20):
        stream = await service.engine.submitted.get()
        waiting.append(num_waiting(service))
        echo(stream)
    await call
    assert service.engine.most_open == max(waiting) == 2


@pytest.mark.parametrize("seed", [5, -1, 2**63 - 2])
async def test_each_item_says_the_seed_that_it_draws_with(service: Service, engine: FakeEngine, seed: int) -> None:
    engine.script = say("x")
    answer = await service.generation.GenerateBatch(batch("a", "b", "c", do_sample=True, seed=seed))
    said = [item.response.start.generation_config.seed for item in answer.items]
    assert said == [seed, seed + 1, seed + 2 if seed < 2**62 else -(2**63)]
    assert sorted(stream.settings.seed for stream in engine.streams) == sorted(said)


async def test_sequences_of_an_item_draw_apart_from_those_of_the_others(service: Service, engine: FakeEngine) -> None:
    engine.script = echo
    answer = await service.generation.GenerateBatch(batch("a", "b", do_sample=True, num_return_sequences=3))
    assert len({stream.settings.seed for stream in engine.streams}) == 2
    for item, text in zip(answer.items, "ab", strict=True):
        assert [sequence.text for sequence in item.response.sequences] == [text] * 3
        assert [sequence.finish.sequence_index for sequence in item.response.sequences] == [0, 1, 2]


async def test_items_of_several_rows_leave_room_for_others(start: Any) -> None:
    service = await start(FakeEngine(), service_config(max_running=2))
    call = service.generation.GenerateBatch(batch(*("x" for _ in range(6)), do_sample=True, num_return_sequences=2))
    waiting = []
    for _ in range(6):
        stream = await service.engine.submitted.get()
        waiting.append(num_waiting(service))
        echo(stream)
    await call
    assert service.engine.most_open == max(waiting) == 1


async def test_cancel_frees_all_rows(service: Service, engine: FakeEngine) -> None:
    call = service.generation.GenerateBatch(batch("a", "b", "c"))
    streams = [await engine.submitted.get() for _ in range(3)]
    call.cancel()
    for stream in streams:
        await stream.closed.wait()
    assert not engine.open


async def test_each_prompt_has_its_negative_prompt(service: Service, engine: FakeEngine) -> None:
    engine.script = echo
    request = batch("a", "b", guidance_scale=2.0)
    for text in ("c", "d"):
        request.negative_prompts.add(text=text)
    await service.generation.GenerateBatch(request)
    pairs = {(bytes(stream.prompt_ids), bytes(stream.negative_prompt_ids or [])) for stream in engine.streams}
    assert pairs == {(b"a", b"c"), (b"b", b"d")}


@pytest.mark.parametrize(
    ("negative", "guidance_scale", "field"),
    [
        (["c"], 2.0, "negative_prompts"),
        (["c", "d", "e"], 2.0, "negative_prompts"),
        (["c", "d"], 1.0, "negative_prompts"),
    ],
)
async def test_negative_prompts_that_do_not_fit_refuse_the_batch(
    service: Service, negative: list[str], guidance_scale: float, field: str
) -> None:
    request = batch("a", "b", guidance_scale=guidance_scale)
    for text in negative:
        request.negative_prompts.add(text=text)
    failed = await failure(service.generation.GenerateBatch(request))
    assert [violation.field for violation in failed.details["BadRequest"].field_violations] == [field]


async def test_a_bad_negative_prompt_fails_its_item_alone(service: Service, engine: FakeEngine) -> None:
    engine.script = echo
    request = batch("a", "b", guidance_scale=2.0)
    request.negative_prompts.add(text="c")
    request.negative_prompts.add(text="")
    first, second = (await service.generation.GenerateBatch(request)).items
    assert first.WhichOneof("outcome") == "response"
    assert "negative_prompts[1].text" in second.error.message
    request.negative_prompts[1].text = "x" * 127
    _, second = (await service.generation.GenerateBatch(request)).items
    assert "negative_prompts[1]" in second.error.message
