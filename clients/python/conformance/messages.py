"""Between the proto3 JSON of the cases and what the client takes and gives.

Field names are the proto's, so most values pass as they are; the rest is what this client writes in Python's own way.
"""

from base64 import b64encode
from dataclasses import fields, is_dataclass
from typing import Any

import tokenwire.client as tw

_ID_LISTS = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "allowed_token_ids")
_INT64 = ("seed", "hashing_key", "sampling_table_seed")
_EARLY_STOPPING = {"EARLY_STOPPING_FALSE": False, "EARLY_STOPPING_TRUE": True, "EARLY_STOPPING_NEVER": "never"}
_SEEDING = {"SEEDING_SCHEME_LEFT_HASH": "lefthash", "SEEDING_SCHEME_SELF_HASH": "selfhash"}


# ---- requests ----------------------------------------------------------------------------------------------


def prompt(message: dict[str, Any]) -> tuple[str | list[int], dict[str, Any]]:
    """A prompt, and the options that go with it."""
    special = {name: value for name, value in message.items() if name.endswith("_special_tokens")}
    return message.get("text", message.get("token_ids", "")), special


def _setting(name: str, value: Any) -> Any:
    match name:
        case _ if name in _INT64:
            return int(value)
        case _ if name in _ID_LISTS:
            return value.get("ids", [])
        case "stop_strings":
            return value.get("values", [])
        case "bad_words_ids":
            return [each["ids"] for each in value["sequences"]]
        case "sequence_bias":
            return [(each["ids"], each["bias"]) for each in value["entries"]]
        case "logit_bias":
            return {int(token): bias for token, bias in value.items()}
        case "exponential_decay_length_penalty":
            return (value["start_index"], value["decay_factor"])
        case "early_stopping":
            return _EARLY_STOPPING[value]
        case "watermarking_config":
            scheme = {key: _setting(key, each) for key, each in value["green_list"].items()}
            return tw.GreenListWatermark(**scheme)
        case "seeding_scheme":
            return _SEEDING[value]
        case _ if value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        case _:
            return value


def options(request: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a generating request."""
    settings = {name: _setting(name, value) for name, value in request.get("generation_config", {}).items()}
    taken = {**settings, **request.get("output", {})}
    if "model" in request:
        taken["model"] = request["model"]
    if "priority" in request:
        taken["priority"] = request["priority"].removeprefix("PRIORITY_").lower()
    if "negative_prompt" in request:
        taken["negative_prompt"], _ = prompt(request["negative_prompt"])
    return taken


def chat_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message in the form of OpenAI and transformers."""
    taken = dict(message)
    taken["content"] = [part["text"] for part in message.get("content", [])]
    if "tool_calls" in message:
        taken["tool_calls"] = [
            {"id": each.get("id", ""), "name": each["name"], "arguments": each.get("arguments_json", "")}
            for each in message["tool_calls"]
        ]
    return taken


def conversation(message: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages, and the options of the conversation."""
    taken = {name: value for name, value in message.items() if name != "messages"}
    if "tools" in taken:
        taken["tools"] = [
            {"name": each["name"], "description": each.get("description", ""), "parameters": each["parameters_json"]}
            for each in taken["tools"]
        ]
    if "template_variables" in taken:
        taken["template_variables"] = {
            name: next(iter(value.values())) for name, value in taken["template_variables"].items()
        }
    return [chat_message(each) for each in message.get("messages", [])], taken


# ---- answers -----------------------------------------------------------------------------------------------


def _config_view(settings: dict[str, Any]) -> dict[str, Any]:
    view: dict[str, Any] = {}
    for name, value in settings.items():
        match name:
            case _ if name in _INT64:
                view[name] = str(value)
            case _ if name in _ID_LISTS:
                view[name] = {"ids": list(value)}
            case "stop_strings":
                view[name] = {"values": list(value)}
            case "bad_words_ids":
                view[name] = {"sequences": [{"ids": list(each)} for each in value]}
            case "sequence_bias":
                view[name] = {"entries": [{"ids": list(ids), "bias": bias} for ids, bias in value]}
            case "logit_bias":
                view[name] = {str(token): bias for token, bias in value.items()}
            case "exponential_decay_length_penalty":
                view[name] = {"start_index": value[0], "decay_factor": value[1]}
            case "early_stopping":
                view[name] = next(key for key, each in _EARLY_STOPPING.items() if each == value)
            case "watermarking_config":
                scheme = {key: getattr(value, key) for key in value.__dataclass_fields__}
                scheme["seeding_scheme"] = next(key for key, each in _SEEDING.items() if each == value.seeding_scheme)
                view[name] = {"green_list": scheme | {"hashing_key": str(value.hashing_key)}}
            case _:
                view[name] = list(value) if isinstance(value, tuple) else value
    return view


def _range_view(value: tuple[int, int]) -> dict[str, Any]:
    return {name: str(each) for name, each in zip(("start", "end"), value, strict=True) if each}


def _field_view(name: str, value: Any) -> Any:
    match name:
        case "generation_config" | "default_generation_config":
            return _config_view(value)
        case "range" | "text_range":
            return _range_view(value)
        case "reason":
            return f"FINISH_REASON_{value.name}"
        case "forward_path":
            return f"FORWARD_PATH_{value.upper()}"
        case "parameter_count":
            return str(value)
        case "bytes":
            return b64encode(value).decode()
        case _:
            return view(value)


def view(value: Any) -> Any:
    """What the client gave, as proto3 JSON. None stands for a field that is not there."""
    if is_dataclass(value):
        named = ((field.name, getattr(value, field.name)) for field in fields(value))
        return {name: _field_view(name, each) for name, each in named if each is not None}
    if isinstance(value, tuple | list):
        return [view(each) for each in value]
    return value


def message_view(message: tw.ChatMessage | dict[str, Any]) -> dict[str, Any]:
    """A message of a conversation."""
    if isinstance(message, dict):
        return message | {"content": [{"text": part} for part in message["content"]]}
    return {"role": message.role, "content": [{"text": message.content}]}


def generation_view(answer: tw.Generation) -> dict[str, Any]:
    """A GenerateResponse, or the ChatResponse of a ChatAnswer."""
    sequences = view(answer.sequences)
    if sequences:
        sequences[0]["prompt_logprobs"] = view(answer.prompt_logprobs)
    start = view(answer.start)
    if isinstance(answer, tw.ChatAnswer):
        choices = [
            {"message": message_view(message), "sequence": sequence}
            for message, sequence in zip(answer.messages, sequences, strict=True)
        ]
        return {"start": start, "choices": choices}
    return {"start": start, "sequences": sequences}
