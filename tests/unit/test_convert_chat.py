"""Conversations in the shape that chat templates read."""

import json

import pytest

from tokenwire import convert_chat
from tokenwire.v1 import chat_pb2


def test_messages_take_the_shape_that_templates_read() -> None:
    call = chat_pb2.ToolCall(id="1", name="add", arguments_json='{"a": 1.5, "b": [null]}')
    conversation = chat_pb2.Conversation(
        messages=[
            chat_pb2.ChatMessage(
                role="user", content=[chat_pb2.ContentPart(text="a"), chat_pb2.ContentPart(text="b")], name="Ann"
            ),
            chat_pb2.ChatMessage(role="assistant", tool_calls=[call], reasoning_content="hm"),
            chat_pb2.ChatMessage(role="tool", content=[chat_pb2.ContentPart(text="3")], tool_call_id="1"),
            chat_pb2.ChatMessage(role="assistant", tool_calls=[chat_pb2.ToolCall(name="stop")]),
        ]
    )
    assert json.loads(convert_chat.messages_json_of(conversation)) == [
        {"role": "user", "content": "ab", "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 1.5, "b": [None]}}}
            ],
        },
        {"role": "tool", "content": "3", "tool_call_id": "1"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "stop", "arguments": {}}}],
        },
    ]


def test_tools() -> None:
    assert convert_chat.tools_json_of(chat_pb2.Conversation()) is None
    tools = [
        chat_pb2.Tool(name="f", description="does f", parameters_json='{"type": "object"}'),
        chat_pb2.Tool(name="g"),
    ]
    assert json.loads(convert_chat.tools_json_of(chat_pb2.Conversation(tools=tools)) or "") == [
        {"type": "function", "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}}},
        {
            "type": "function",
            "function": {"name": "g", "description": "", "parameters": {"type": "object", "properties": {}}},
        },
    ]


@pytest.mark.parametrize(
    ("opens", "continues", "expected"),
    [
        (None, None, (True, False)),
        (None, True, (False, True)),
        (False, None, (False, False)),
        (True, False, (True, False)),
        (False, True, (False, True)),
    ],
)
def test_how_the_turn_is_opened(opens: bool | None, continues: bool | None, expected: tuple[bool, bool]) -> None:
    conversation = chat_pb2.Conversation(add_generation_prompt=opens, continue_final_message=continues)
    assert convert_chat.turn_of(conversation) == expected


def test_documents() -> None:
    assert convert_chat.documents_json_of(chat_pb2.Conversation()) is None
    documents = [chat_pb2.Document(title="T", text="é"), chat_pb2.Document(text="x")]
    assert json.loads(convert_chat.documents_json_of(chat_pb2.Conversation(documents=documents)) or "") == [
        {"title": "T", "text": "é"},
        {"title": "", "text": "x"},
    ]


def test_variables() -> None:
    assert convert_chat.variables_json_of(chat_pb2.Conversation()) is None
    values = {
        "text": chat_pb2.TemplateValue(string_value="3"),
        "empty": chat_pb2.TemplateValue(string_value=""),
        "no": chat_pb2.TemplateValue(bool_value=False),
        "zero": chat_pb2.TemplateValue(number_value=-0.0),
        "whole": chat_pb2.TemplateValue(number_value=-(2.0**53)),
        "part": chat_pb2.TemplateValue(number_value=0.5),
        "huge": chat_pb2.TemplateValue(number_value=1e300),
    }
    text = convert_chat.variables_json_of(chat_pb2.Conversation(template_variables=values)) or ""
    read = json.loads(text)
    assert read == {"text": "3", "empty": "", "no": False, "zero": 0, "whole": -(2**53), "part": 0.5, "huge": 1e300}
    assert {name: type(value) for name, value in read.items()} == {
        "text": str, "empty": str, "no": bool, "zero": int, "whole": int, "part": float, "huge": float
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "tools", "names", "expected"),
    [
        ("", False, ["default"], "default"),
        ("", True, ["default"], "default"),
        ("", True, ["default", "tool_use"], "tool_use"),
        ("", False, ["default", "tool_use"], "default"),
        ("default", True, ["default", "tool_use"], "default"),
        ("rag", True, ["default", "rag"], "rag"),
        ("other", False, ["default"], "other"),
        ("", True, ["tool_use"], "tool_use"),
        ("", False, ["tool_use"], None),
        ("", True, ["rag"], None),
    ],
)
def test_which_template(wanted: str, tools: bool, names: list[str], expected: str | None) -> None:
    conversation = chat_pb2.Conversation(template_name=wanted, tools=[chat_pb2.Tool(name="f")] * tools)
    assert convert_chat.template_name_of(conversation, names) == expected
