"""Builds the protobuf requests from what callers pass. No I/O: both faces of the client share it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from tokenwire.client.errors import ErrorDetails, FieldViolation, InvalidArgument
from tokenwire.client.types import (
    ChatMessage,
    GenerationOptions,
    GreenListWatermark,
    Messages,
    OutputOptions,
    Prompt,
    ToolCall,
    Watermark,
)
from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2

_GENERATION = GenerationOptions.__optional_keys__
_OUTPUT = OutputOptions.__optional_keys__

_EARLY_STOPPING = {
    False: generation_pb2.EARLY_STOPPING_FALSE,
    True: generation_pb2.EARLY_STOPPING_TRUE,
    "never": generation_pb2.EARLY_STOPPING_NEVER,
}
_SEEDING_SCHEMES = {
    "lefthash": generation_pb2.GreenListWatermark.SEEDING_SCHEME_LEFT_HASH,
    "selfhash": generation_pb2.GreenListWatermark.SEEDING_SCHEME_SELF_HASH,
}


_PRIORITIES = {
    None: generation_service_pb2.PRIORITY_UNSPECIFIED,
    "low": generation_service_pb2.PRIORITY_LOW,
    "normal": generation_service_pb2.PRIORITY_NORMAL,
    "high": generation_service_pb2.PRIORITY_HIGH,
}


_WHAT_IT_TAKES = {
    "early_stopping": '(it takes False, True or "never")',
    "watermarking_config": "(it takes a GreenListWatermark or a SynthIdTextWatermark)",
    "seed": "(it takes an integer from -2^63 to 2^63 - 1)",
}
"""For fields whose wrong values give errors that say nothing of them."""


def _invalid(field: str, description: str) -> InvalidArgument:
    violation = FieldViolation(field, description)
    return InvalidArgument(str(violation), ErrorDetails(violations=(violation,)))


def check_option_names(options: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Raise TypeError for an option that the call does not have, as Python does for a wrong keyword."""
    if unknown := sorted(options.keys() - allowed):
        close = sorted({near for name in unknown for near in get_close_matches(name, allowed)})
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise TypeError(f"unknown option {', '.join(unknown)}; {hint}known are {', '.join(sorted(allowed))}")


def given(options: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Those of the options that have one of these names and are set."""
    return {name: options[name] for name in names & options.keys() if options[name] is not None}


def priority(options: Mapping[str, Any]) -> Any:
    """The option ``priority`` as the enum's value. Raises InvalidArgument."""
    value = options.get("priority")
    if value not in _PRIORITIES:
        raise _invalid("priority", f"must be low, normal or high, got {value!r}")
    return _PRIORITIES[value]


def _set(message: Any, name: str, value: Any, path: str) -> None:
    # protobuf checks types and 32-bit ranges itself, but its error names no field of ours.
    try:
        match name:
            case "stop_strings":
                message.stop_strings.values.extend([value] if isinstance(value, str) else value)
                message.stop_strings.SetInParent()
            case (
                "eos_token_id"
                | "suppress_tokens"
                | "begin_suppress_tokens"
                | "forced_eos_token_id"
                | "allowed_token_ids"
            ):
                field = getattr(message, name)
                field.ids.extend([value] if isinstance(value, int) else value)
                field.SetInParent()
            case "bad_words_ids":
                message.bad_words_ids.sequences.extend(generation_pb2.TokenIds(ids=ids) for ids in value)
                message.bad_words_ids.SetInParent()
            case "sequence_bias":
                pairs = value.items() if isinstance(value, Mapping) else value
                message.sequence_bias.entries.extend(
                    generation_pb2.SequenceBiasEntry(ids=ids, bias=bias) for ids, bias in pairs
                )
                message.sequence_bias.SetInParent()
            case "exponential_decay_length_penalty":
                penalty = message.exponential_decay_length_penalty
                penalty.start_index, penalty.decay_factor = value
            case "early_stopping":
                message.early_stopping = _EARLY_STOPPING[value]
            case "watermarking_config":
                message.watermarking_config.CopyFrom(_watermarking_config(value))
            case "stop_token_ids":
                message.stop_token_ids.extend(value)
            case "logit_bias":
                message.logit_bias.update(value)
            case _:
                setattr(message, name, value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        what = _WHAT_IT_TAKES.get(name, f"({error})")
        raise _invalid(f"{path}.{name}", f"cannot be {value!r:.60} {what}") from None


def _watermarking_config(value: Watermark) -> generation_pb2.WatermarkingConfig:
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, GreenListWatermark):
        fields["seeding_scheme"] = _SEEDING_SCHEMES[value.seeding_scheme]
        return generation_pb2.WatermarkingConfig(green_list=generation_pb2.GreenListWatermark(**fields))
    return generation_pb2.WatermarkingConfig(synth_id_text=generation_pb2.SynthIdTextWatermark(**fields))


def generation_config(options: Mapping[str, Any]) -> generation_pb2.GenerationConfig:
    """The GenerationConfig of the options that are set. Raises InvalidArgument for a value of the wrong type."""
    message = generation_pb2.GenerationConfig()
    for name, value in given(options, _GENERATION).items():
        _set(message, name, value, "generation_config")
    return message


def output_options(options: Mapping[str, Any]) -> generation_pb2.OutputOptions:
    """The OutputOptions of the options that are set."""
    message = generation_pb2.OutputOptions()
    for name, value in given(options, _OUTPUT).items():
        _set(message, name, value, "output")
    return message


def prompt_message(prompt: Prompt, path: str, **special_tokens: Any) -> generation_service_pb2.Prompt:
    """A Prompt from text or token ids."""
    try:
        if isinstance(prompt, str):
            return generation_service_pb2.Prompt(text=prompt, **special_tokens)
        return generation_service_pb2.Prompt(token_ids=prompt)
    except (TypeError, ValueError) as error:
        raise _invalid(path, f"must be Unicode text or token ids ({error})") from None


def _json_object(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise _invalid(path, f"cannot be written as JSON ({error})") from None


def _parts(content: Any, path: str) -> list[chat_pb2.ContentPart]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [chat_pb2.ContentPart(text=content)]
    parts = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            parts.append(chat_pb2.ContentPart(text=part))
        elif isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            parts.append(chat_pb2.ContentPart(text=part["text"]))
        else:
            raise _invalid(f"{path}[{index}]", 'must be a string or {"type": "text", "text": …}')
    return parts


def _tool_call(call: ToolCall | Mapping[str, Any], path: str) -> chat_pb2.ToolCall:
    if isinstance(call, ToolCall):
        name, arguments, identity = call.name, call.arguments, call.id
    else:
        function = call.get("function", call)
        name, arguments, identity = function.get("name", ""), function.get("arguments", "{}"), call.get("id", "")
    return chat_pb2.ToolCall(id=identity, name=name, arguments_json=_json_object(arguments, f"{path}.arguments"))


_MESSAGE_KEYS = frozenset(ChatMessage.__dataclass_fields__)


def _message(message: ChatMessage | Mapping[str, Any], path: str) -> chat_pb2.ChatMessage:
    fields: Mapping[str, Any]
    if isinstance(message, ChatMessage):
        fields = {name: getattr(message, name) for name in _MESSAGE_KEYS}
    else:
        fields = message
        if unknown := sorted(str(key) for key in set(fields) - _MESSAGE_KEYS):
            raise _invalid(
                f"{path}.{unknown[0]}", f"is no field of a message; known are {', '.join(sorted(_MESSAGE_KEYS))}"
            )
    try:
        return chat_pb2.ChatMessage(
            role=fields.get("role", ""),
            content=_parts(fields.get("content"), f"{path}.content"),
            name=fields.get("name") or "",
            tool_calls=[
                _tool_call(call, f"{path}.tool_calls[{index}]")
                for index, call in enumerate(fields.get("tool_calls") or ())
            ],
            tool_call_id=fields.get("tool_call_id") or "",
            reasoning_content=fields.get("reasoning_content") or "",
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid(path, f"has a value of the wrong type ({error})") from None


def _tool(tool: Mapping[str, Any], path: str) -> chat_pb2.Tool:
    function = tool.get("function", tool)
    try:
        return chat_pb2.Tool(
            name=function.get("name", ""),
            description=function.get("description") or "",
            parameters_json=_json_object(function["parameters"], f"{path}.parameters")
            if "parameters" in function
            else "",
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid(path, f"has a value of the wrong type ({error})") from None


def _document(document: Mapping[str, str] | str, path: str) -> chat_pb2.Document:
    fields = {"text": document} if isinstance(document, str) else document
    try:
        if unknown := sorted(fields.keys() - {"title", "text"}):
            raise _invalid(f"{path}.{unknown[0]}", "is no field of a document; known are text, title")
        return chat_pb2.Document(title=fields.get("title", ""), text=fields.get("text", ""))
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid(path, f"must be a text, or a title and a text ({error})") from None


def _template_value(value: Any, path: str) -> chat_pb2.TemplateValue:
    try:
        match value:
            case bool():
                return chat_pb2.TemplateValue(bool_value=value)
            case str():
                return chat_pb2.TemplateValue(string_value=value)
            case int() | float():
                return chat_pb2.TemplateValue(number_value=value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _invalid(path, f"cannot be sent ({error})") from None
    raise _invalid(path, f"must be text, a number, true or false, not {value!r:.60}")


def conversation(
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, str] | str] | None = None,
    template_variables: Mapping[str, str | float | bool] | None = None,
    **rendering: Any,
) -> chat_pb2.Conversation:
    """A Conversation from messages and tools in the form of OpenAI and transformers.

    ``rendering``: template_name, add_generation_prompt and continue_final_message.
    """
    if isinstance(messages, str):
        messages = [ChatMessage("user", messages)]
    try:
        return chat_pb2.Conversation(
            messages=[_message(each, f"conversation.messages[{index}]") for index, each in enumerate(messages)],
            tools=[_tool(each, f"conversation.tools[{index}]") for index, each in enumerate(tools or ())],
            documents=[
                _document(each, f"conversation.documents[{index}]") for index, each in enumerate(documents or ())
            ],
            template_variables={
                name: _template_value(value, f"conversation.template_variables[{name}]")
                for name, value in (template_variables or {}).items()
            },
            **rendering,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid("conversation", f"has a value of the wrong type ({error})") from None


def token_ids(ids: Iterable[int], path: str = "token_ids") -> generation_pb2.TokenIds:
    """TokenIds of integers."""
    try:
        return generation_pb2.TokenIds(ids=ids)
    except (TypeError, ValueError) as error:
        raise _invalid(path, f"must be integers of 32 bits ({error})") from None
