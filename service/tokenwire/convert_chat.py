"""Conversations as chat templates read them: pure functions, no rules."""

from collections.abc import Container

import msgspec

from tokenwire.v1 import chat_pb2

EMPTY_PARAMETERS: dict[str, object] = {"type": "object", "properties": {}}
"""JSON schema of a tool that declares no parameters."""

DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of the templates that are used without being asked for: the second where there are tools."""

MAX_WHOLE_NUMBER = 2**53
"""Up to here a template variable without a fraction is an integer; above it a double no longer tells whole numbers."""


def content_of(message: chat_pb2.ChatMessage) -> str:
    """The text parts of a message as the one string that its template sees."""
    return "".join(part.text for part in message.content)


def messages_json_of(conversation: chat_pb2.Conversation) -> str:
    """The messages in the shape that transformers' ``apply_chat_template`` takes, as JSON.

    Arguments of tool calls are objects, not strings: templates write them with ``tojson``.
    """
    messages = []
    for message in conversation.messages:
        item: dict[str, object] = {"role": message.role, "content": content_of(message)}
        if message.name:
            item["name"] = message.name
        if message.reasoning_content:
            item["reasoning_content"] = message.reasoning_content
        if message.tool_call_id:
            item["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            item["tool_calls"] = [_tool_call_of(call) for call in message.tool_calls]
        messages.append(item)
    return msgspec.json.encode(messages).decode()


def _tool_call_of(call: chat_pb2.ToolCall) -> dict[str, object]:
    arguments = msgspec.json.decode(call.arguments_json) if call.arguments_json else {}
    item: dict[str, object] = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    if call.id:
        item["id"] = call.id
    return item


def tools_json_of(conversation: chat_pb2.Conversation) -> str | None:
    """The tools in the shape that chat templates read, as JSON; None where there are none."""
    if not conversation.tools:
        return None
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": msgspec.json.decode(tool.parameters_json) if tool.parameters_json else EMPTY_PARAMETERS,
            },
        }
        for tool in conversation.tools
    ]
    return msgspec.json.encode(tools).decode()


def documents_json_of(conversation: chat_pb2.Conversation) -> str | None:
    """The documents in the shape that chat templates read, as JSON; None where there are none."""
    if not conversation.documents:
        return None
    documents = [{"title": document.title, "text": document.text} for document in conversation.documents]
    return msgspec.json.encode(documents).decode()


def variables_json_of(conversation: chat_pb2.Conversation) -> str | None:
    """The template variables as a JSON object; None where there are none."""
    if not conversation.template_variables:
        return None
    variables = {name: _value_of(value) for name, value in conversation.template_variables.items()}
    return msgspec.json.encode(variables).decode()


def _value_of(value: chat_pb2.TemplateValue) -> str | bool | int | float:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            number = value.number_value
            is_whole = number.is_integer() and abs(number) <= MAX_WHOLE_NUMBER
            return int(number) if is_whole else number


def template_name_of(conversation: chat_pb2.Conversation, names: Container[str]) -> str | None:
    """Which of the model's templates renders the conversation; None where it names none and there is no default.

    transformers' rule (``get_chat_template``): the one that is named, else tool_use with tools, else default. A name
    that the model does not have is returned as it is.
    """
    if conversation.template_name:
        return conversation.template_name
    if conversation.tools and TOOL_USE in names:
        return TOOL_USE
    return DEFAULT if DEFAULT in names else None


def turn_of(conversation: chat_pb2.Conversation) -> tuple[bool, bool]:
    """``(add_generation_prompt, continue_final_message)`` with the defaults filled in."""
    continues = conversation.continue_final_message
    opens = conversation.add_generation_prompt if conversation.HasField("add_generation_prompt") else not continues
    return opens, continues
