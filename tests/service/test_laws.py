"""Laws of the whole line, over real gRPC on a tiny model: streams, seeds, cancels, refusals."""

import asyncio
import random

import grpc
import pytest

from tests import tiny_models
from tests.serving import Server
from tokenwire.client import AsyncClient, Client, InvalidArgument
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1 import generation_service_pb2_grpc as pb_grpc

CASES = [
    {},
    {"stop_strings": ["e"]},
    {"stop_strings": ["the", "th", "q"], "include_stop_string": True},
    {"temperature": 1.5, "seed": 3},
    {"temperature": 2.0, "top_k": 0, "seed": 4, "logprobs": 3},
    {"repetition_penalty": 1.3, "eos_token_id": []},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5, "skip_special_tokens": False},
    {"min_new_tokens": 20, "logit_bias": {300: 5.0}, "suppress_tokens": [5, 6, 7]},
]


@pytest.mark.parametrize("options", CASES)
def test_joined_deltas_equal_the_unary_answer(server: Server, options: dict[str, object]) -> None:
    generator = random.Random(7)
    with Client(server.address) as client:
        for _ in range(4):
            prompt = [generator.randrange(4, tiny_models.TOKENIZER_VOCAB_SIZE) for _ in range(12)]
            whole = client.generate(prompt, max_new_tokens=40, **options)
            with client.stream(prompt, max_new_tokens=40, **options) as stream:
                deltas = list(stream)
            assert "".join(delta.text for delta in deltas) == whole.text
            assert [token for delta in deltas for token in delta.token_ids] == list(whole.token_ids)
            assert stream.finish.reason == whole.finish_reason


def test_chat_answers_like_generate_on_the_rendered_prompt(server: Server) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello <|im_end|> there"}]
    with Client(server.address) as client:
        rendered = client.render_chat(messages)
        chat = client.chat(messages, max_new_tokens=16)
        plain = client.generate(list(rendered.token_ids), max_new_tokens=16)
    assert chat.token_ids == plain.token_ids
    # The marker that the user wrote stays text: one per message from the template, none from the content.
    assert list(rendered.token_ids).count(tiny_models.EOS_ID) == len(messages)


async def test_one_seed_gives_one_answer_in_any_company(server: Server) -> None:
    async with AsyncClient(server.address) as client:
        options = {"max_new_tokens": 32, "temperature": 1.2, "seed": 11}
        alone = [await client.generate(f"prompt {index}", **options) for index in range(16)]
        together = await asyncio.gather(*(client.generate(f"prompt {index}", **options) for index in range(16)))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


async def test_cancelled_streams_make_room_for_others(server: Server) -> None:
    """More streams than the server has rows, all cancelled: had any kept its row, the last call would wait forever."""
    async with AsyncClient(server.address) as client:
        for _ in range(3):
            async with asyncio.TaskGroup() as group:

                async def start_and_leave() -> None:
                    async with client.stream("the", max_new_tokens=200, eos_token_id=[]) as stream:
                        await anext(stream)

                for _ in range(80):
                    group.create_task(start_and_leave())
        answer = await client.generate("the", max_new_tokens=4, eos_token_id=[], timeout=30)
    assert len(answer.token_ids) == 4


BAD_REQUESTS: list[tuple[dict[str, object], set[str]]] = [
    ({}, {"prompt"}),
    ({"prompt": {}}, {"prompt"}),
    ({"prompt": {"text": ""}}, {"prompt.text"}),
    ({"prompt": {"text": "x", "token_ids": [5]}}, {"prompt"}),
    ({"prompt": {"token_ids": [tiny_models.MODEL_VOCAB_SIZE]}}, {"prompt.token_ids[0]"}),
    ({"prompt": {"token_ids": [-1]}}, {"prompt.token_ids[0]"}),
    (
        {"prompt": {"text": "x"}, "generation_config": {"temperature": float("nan"), "top_p": 1.5, "top_k": -1}},
        {"generation_config.temperature", "generation_config.top_p", "generation_config.top_k"},
    ),
    (
        {"prompt": {"text": "x"}, "generation_config": {"max_new_tokens": tiny_models.CONTEXT_LENGTH}},
        {"generation_config.max_new_tokens"},
    ),
    ({"prompt": {"token_ids": [5] * (tiny_models.CONTEXT_LENGTH + 1)}}, {"prompt.token_ids"}),
    (
        {
            "prompt": {"text": "x"},
            "generation_config": {"suppress_tokens": {"ids": list(range(tiny_models.MODEL_VOCAB_SIZE))}},
        },
        {"generation_config.suppress_tokens.ids"},
    ),
]


@pytest.mark.parametrize(("fields", "violated"), BAD_REQUESTS)
async def test_refusals_name_every_field(server: Server, fields: dict[str, object], violated: set[str]) -> None:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Generate(pb.GenerateRequest(**fields))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(refusal.value)
    details = error_details_pb2.BadRequest()
    assert any(any_detail.Unpack(details) for any_detail in status.details)
    assert {violation.field for violation in details.field_violations} == violated


def test_every_id_that_can_be_generated_can_be_detokenized(server: Server) -> None:
    with Client(server.address) as client:
        text = client.detokenize(range(tiny_models.TOKENIZER_VOCAB_SIZE - 2, tiny_models.MODEL_VOCAB_SIZE))
        with pytest.raises(InvalidArgument, match=r"token_ids\.ids"):
            client.detokenize([tiny_models.MODEL_VOCAB_SIZE])
    assert text


def test_a_text_that_cannot_be_a_prompt_is_not_tokenized(server: Server) -> None:
    with Client(server.address) as client, pytest.raises(InvalidArgument, match="must be at most"):
        client.tokenize("a b" * 1_000_000)


def test_a_refused_conversation_carries_the_templates_words(server: Server) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "system", "content": "late"}]
    with Client(server.address) as client, pytest.raises(InvalidArgument, match="system message must be the first"):
        client.chat(messages)
