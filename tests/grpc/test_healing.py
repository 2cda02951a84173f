"""Token healing through the front: the prompt loses its last token, the answer begins behind the prompt's text."""

import json
from typing import Any

import msgspec
import pytest
from fakes import FakeEngine, FakeStream, model_info, tokenizer_json
from harness import Service
from test_statuses import failure

from tokenwire.v1 import generation_pb2, generation_service_pb2

ST, STO = 256, 257


def merging_tokenizer() -> str:
    """Bytes, two tokens of several, and the special tokens behind them."""
    tokenizer = json.loads(tokenizer_json())
    for token in tokenizer["added_tokens"]:
        token["id"] += 2
    tokenizer["model"]["vocab"] |= {"st": ST, "sto": STO}
    tokenizer["model"]["merges"] = ["s t", "st o"]
    return json.dumps(tokenizer)


def answer_stop(stream: FakeStream) -> None:
    """As the sampler gives it: the healed token's text without what the prompt ends with."""
    stream.push("o", [STO])
    # As the engine counts it: the prompt as it was given, and the tokens behind the healed one.
    stream.finish_changes = {"prompt_token_count": len(stream.prompt_ids) + 1, "completion_token_count": 1}
    stream.push("p", [ord("p")], "length")


@pytest.fixture
async def service(start: Any) -> Service:
    engine = FakeEngine(model_info(tokenizer_json=merging_tokenizer()), script=answer_stop)
    started: Service = await start(engine)
    return started


def request(text: str, *, token_ids: bool = False, **output: Any) -> generation_service_pb2.GenerateRequest:
    return generation_service_pb2.GenerateRequest(
        prompt=generation_service_pb2.Prompt(token_ids=[*text.encode()])
        if token_ids
        else generation_service_pb2.Prompt(text=text),
        generation_config=generation_pb2.GenerationConfig(token_healing=not token_ids, max_new_tokens=2),
        output=generation_pb2.OutputOptions(**output),
    )


async def test_the_last_token_is_taken_off_the_prompt(service: Service) -> None:
    reply = await service.generation.Generate(request("a st", echo=True, token_details=True))
    (stream,) = service.engine.streams
    assert stream.prompt_ids == list(b"a ")
    assert (stream.settings.healed_token_id, stream.settings.max_new_tokens) == (ST, 2)
    # The settings in force are those of the request.
    assert reply.start.generation_config.max_new_tokens == 2
    assert reply.start.generation_config.token_healing
    (sequence,) = reply.sequences
    assert reply.start.prompt_token_count == sequence.finish.usage.prompt_token_count == 3
    assert sequence.text == "a stop"
    assert list(sequence.token_ids) == [STO, ord("p")]
    assert [(token.piece, token.text_range.start, token.text_range.end) for token in sequence.tokens] == [
        ("sto", 4, 5),
        ("p", 5, 6),
    ]


async def test_streamed(service: Service) -> None:
    events = [event async for event in service.generation.GenerateStream(request("a st"))]
    assert "".join(event.delta.text for event in events if event.HasField("delta")) == "op"


@pytest.mark.parametrize("text", ["st", "a p", "st<|im_end|>"])
async def test_where_nothing_is_to_be_healed(service: Service, text: str) -> None:
    await service.generation.Generate(request(text))
    (stream,) = service.engine.streams
    assert (stream.settings.healed_token_id, stream.settings.max_new_tokens) == (None, 2)


async def test_token_ids_are_left_alone(service: Service) -> None:
    await service.generation.Generate(request("a st", token_ids=True))
    assert service.engine.streams[0].prompt_ids == list(b"a st")


async def test_each_prompt_of_a_batch(service: Service) -> None:
    batch = generation_service_pb2.GenerateBatchRequest(
        prompts=[generation_service_pb2.Prompt(text=text) for text in ("a st", "b")],
        generation_config=generation_pb2.GenerationConfig(token_healing=True),
    )
    await service.generation.GenerateBatch(batch)
    assert {(bytes(stream.prompt_ids), stream.settings.healed_token_id) for stream in service.engine.streams} == {
        (b"a ", ST),
        (b"b", None),
    }


@pytest.mark.parametrize("count", [125, 126, 127])
async def test_the_negative_prompt_leaves_room_for_the_healed_token_too(service: Service, count: int) -> None:
    """Context 128 and two new tokens: behind the negative prompt comes the healed token as well."""
    call = request("a st")
    call.generation_config.guidance_scale = 2.0
    call.negative_prompt.token_ids.extend([65] * count)
    if count == 125:
        await service.generation.Generate(call)
        return
    failed = await failure(service.generation.Generate(call))
    (violation,) = failed.details["BadRequest"].field_violations
    assert violation.field == "negative_prompt"
    assert "and the healed token" in violation.description


async def test_prompt_logprobs_are_of_the_prompt_as_it_was_given(service: Service) -> None:
    def answer(stream: FakeStream) -> None:
        stream.settings = msgspec.structs.replace(stream.settings, prompt_logprobs=0)
        stream.prompt_ids.append(ST)
        stream.push("o", [STO], "length")

    service.engine.script = answer
    reply = await service.generation.Generate(request("a st", prompt_logprobs=0))
    assert [position.chosen.token_id for position in reply.sequences[0].prompt_logprobs] == [ord(" "), ST]
