"""Isolation: a chat template that explodes, and conversations that no template takes, end their own requests alone."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from chaos_service import Outcome, answer_to, outcome, request, serving
from test_calls import conversation

from tokenwire.v1 import chat_pb2, generation_service_pb2, tokenizer_service_pb2

SEVEN = [f"good {number}" for number in range(7)]
NUM_TOKENS = 60

_NAMESPACES = "{% set n = namespace(x=1) %}{% set m = namespace(x=1) %}"
_DEEP = "{% for i in range(20000) %}{% set n.x = [n.x] %}{% set m.x = {'a': m.x} %}{% endfor %}"
_DOUBLING = "{% for i in range(64) %}{% set n.x = [n.x, n.x] %}{% endfor %}"

EXPLODING = {
    "deep, printed": _NAMESPACES + _DEEP + "{{ n.x }}{{ m.x }}",
    "deep, as JSON": _NAMESPACES + _DEEP + "{{ n.x | tojson }}{{ m.x | tojson }}",
    "deep, compared": _NAMESPACES + _DEEP + "{{ n.x == m.x }}",
    "deep, thrown away": _NAMESPACES + _DEEP,
    "doubling": _NAMESPACES + _DOUBLING + "{{ n.x }}",
    "a ring": _NAMESPACES + "{% set n.x = [n] %}{{ n.x }}",
    "without end": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "calling itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a huge text": "{{ 'x' * 99999999999 }}",
    "raising": "{{ raise_exception('no') }}",
    "undefined": "{{ nothing.at.all }}",
}
UNUSABLE = {
    "a deep expression": "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
    "a long chain": "{{ 1" + " + 1" * 20_000 + " }}",
    "many blocks": "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
    "no template": "{% if",
}


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


BAD_CONVERSATIONS: dict[str, chat_pb2.Conversation] = {
    **{
        f"arguments {depth} levels deep": conversation(
            ("user", "hi"), tools=[chat_pb2.Tool(name="f", parameters_json=nested(depth))]
        )
        for depth in (101, 127, 1_000, 100_000)
    },
    "parameters that are lists without end": conversation(
        ("user", "hi"), tools=[chat_pb2.Tool(name="f", parameters_json="[" * 100_000)]
    ),
    "a text that does not end": conversation(
        ("user", "hi"), tools=[chat_pb2.Tool(name="f", parameters_json='{"a": "' + '\\"' * 100_000)]
    ),
    "a number that is none": conversation(
        ("user", "hi"), template_variables={"x": chat_pb2.TemplateValue(number_value=float("inf"))}
    ),
}


def chat(talk: chat_pb2.Conversation) -> generation_service_pb2.ChatRequest:
    return generation_service_pb2.ChatRequest(conversation=talk, generation_config={"max_new_tokens": 2})


async def ask(calls: Any, talk: chat_pb2.Conversation) -> list[Outcome]:
    """How Chat and RenderChat end."""
    render = tokenizer_service_pb2.RenderChatRequest(conversation=talk)
    both = (calls.generation.Chat(chat(talk), timeout=60), calls.tokenizer.RenderChat(render, timeout=60))
    return [Outcome(await call.code(), await call.details() or "") for call in both]


async def test_exploding_templates_end_their_own_requests_alone(tmp_path: Path) -> None:
    is_over = asyncio.Event()
    async with serving(tmp_path, {"chat_templates": EXPLODING | UNUSABLE}) as service, asyncio.TaskGroup() as group:

        async def ask_again_and_again(prompt: str) -> int:
            count = 0
            while not is_over.is_set():
                assert await service.tokens(prompt, NUM_TOKENS) == answer_to(prompt, NUM_TOKENS)
                count += 1
            return count

        good = [group.create_task(ask_again_and_again(prompt)) for prompt in SEVEN]
        for prompt in SEVEN:
            await service.until_begun(prompt)
        for names, expected in (
            (EXPLODING, grpc.StatusCode.INVALID_ARGUMENT),
            (UNUSABLE, grpc.StatusCode.FAILED_PRECONDITION),
        ):
            for name in names:
                for ended in await ask(service, conversation(("user", "hi"), template_name=name)):
                    assert ended.code is expected, (name, ended)
                    assert "internal" not in ended.details
        for name, talk in BAD_CONVERSATIONS.items():
            for ended in await ask(service, talk):
                assert ended.code is grpc.StatusCode.INVALID_ARGUMENT, (name, ended)
                assert "conversation." in ended.details
        deepest = conversation(("user", "hi"), tools=[chat_pb2.Tool(name="f", parameters_json=nested(100))])
        assert {ended.code for ended in await ask(service, deepest)} == {grpc.StatusCode.OK}
        is_over.set()
        assert all([await each >= 1 for each in good])


@pytest.mark.parametrize(("count", "code"), [(64, grpc.StatusCode.OK), (65, grpc.StatusCode.INVALID_ARGUMENT)])
async def test_the_longest_stop_list_is_served_and_a_longer_one_refused(
    tmp_path: Path, count: int, code: grpc.StatusCode
) -> None:
    """64 strings of 256 bytes each, that share all but their last characters."""
    async with serving(tmp_path) as service:
        beside = asyncio.ensure_future(service.tokens(SEVEN[0], NUM_TOKENS))
        strings = {"values": ["a" * 254 + f"{number:02}" for number in range(count)]}
        ended = await outcome(service.generation.Generate(request("stop", 40, stop_strings=strings), timeout=60))
        assert ended.code is code
        if code is grpc.StatusCode.OK:
            assert list(ended.tokens) == answer_to("stop", 40)
        else:
            assert "stop_strings" in ended.details
        assert await beside == answer_to(SEVEN[0], NUM_TOKENS)
