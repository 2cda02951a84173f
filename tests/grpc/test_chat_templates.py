"""What a conversation gives its chat template reaches it, as values and never as control tokens."""

from typing import Any

import grpc
import pytest
from fakes import IM_START, FakeEngine, model_info, say
from harness import Service
from test_calls import conversation
from test_statuses import failure

from tokenwire.v1 import chat_pb2, generation_service_pb2, model_service_pb2, tokenizer_service_pb2

SHOW = """<|im_start|>{{ name }}
{%- for document in documents or [] %}|{{ document.title }}:{{ document.text }}{% endfor %}
{%- for value in (text, flag, whole, part) if value is defined %}|{{ value }}{% endfor %}"""


def named(name: str) -> str:
    return "{% set name = '" + name + "' %}" + SHOW


async def rendered(service: Service, talk: chat_pb2.Conversation) -> tokenizer_service_pb2.RenderChatResponse:
    return await service.tokenizer.RenderChat(tokenizer_service_pb2.RenderChatRequest(conversation=talk))


@pytest.fixture
async def several(start: Any) -> Service:
    templates = {name: named(name) for name in ("default", "tool_use", "rag")} | {"broken": "{{"}
    service: Service = await start(FakeEngine(model_info(chat_templates=templates), script=say("x")))
    return service


async def test_documents_and_variables_reach_the_template(several: Service) -> None:
    talk = conversation(
        ("user", "hi"),
        documents=[chat_pb2.Document(title="A", text="a"), chat_pb2.Document(text="<|im_start|>")],
        template_variables={
            "text": chat_pb2.TemplateValue(string_value="<|im_start|>"),
            "flag": chat_pb2.TemplateValue(bool_value=True),
            "whole": chat_pb2.TemplateValue(number_value=3),
            "part": chat_pb2.TemplateValue(number_value=0.5),
        },
    )
    reply = await rendered(several, talk)
    assert reply.text == "<|im_start|>default|A:a|:<|im_start|>|<|im_start|>|True|3|0.5"
    assert list(reply.token_ids.ids).count(IM_START) == 1
    await several.generation.Chat(generation_service_pb2.ChatRequest(conversation=talk))
    assert several.engine.streams[0].prompt_ids == list(reply.token_ids.ids)


@pytest.mark.parametrize(
    ("template_name", "tools", "expected"),
    [("", 0, "default"), ("", 1, "tool_use"), ("default", 1, "default"), ("rag", 1, "rag")],
)
async def test_named_templates(several: Service, template_name: str, tools: int, expected: str) -> None:
    talk = conversation(("user", "hi"), template_name=template_name, tools=[chat_pb2.Tool(name="f")] * tools)
    assert (await rendered(several, talk)).text == f"<|im_start|>{expected}"


async def test_a_template_that_cannot_be_compiled_is_not_offered(several: Service) -> None:
    model = (await several.model.GetModel(model_service_pb2.GetModelRequest())).model
    assert list(model.chat_template_names) == ["default", "rag", "tool_use"]
    failed = await failure(rendered(several, conversation(("user", "hi"), template_name="broken")))
    assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.details["ErrorInfo"].reason == "CHAT_TEMPLATE_UNUSABLE"


async def test_a_name_that_the_model_does_not_have(several: Service) -> None:
    talk = conversation(
        ("user", "hi"), template_name="other", template_variables={"messages": chat_pb2.TemplateValue()}
    )
    for call in (
        rendered(several, talk),
        several.generation.Chat(generation_service_pb2.ChatRequest(conversation=talk)),
    ):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.fields == {"conversation.template_name", "conversation.template_variables[messages]"}


async def test_limits_are_reported(several: Service) -> None:
    limits = (await several.model.GetModel(model_service_pb2.GetModelRequest())).model.limits
    assert (limits.max_document_count, limits.max_template_variable_count) == (128, 64)
