"""One value per call: its method, its request and how its reply is read. No I/O: both faces of the client share it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tokenwire.client import requests, responses
from tokenwire.client.errors import TokenwireError
from tokenwire.client.types import ChatAnswer, Generation, Messages, Model, Prompt, RenderedChat, Token
from tokenwire.v1 import generation_service_pb2, model_service_pb2, tokenizer_service_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[T]):
    """A call with one reply."""

    method: str
    request: Any
    parse: Callable[[Any], T]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StreamCall:
    """A call with a stream of events."""

    method: str
    request: Any
    options: Mapping[str, Any]


def _generate_request(
    prompt: Prompt, options: Mapping[str, Any], **special_tokens: bool | None
) -> generation_service_pb2.GenerateRequest:
    requests.check_option_names(options)
    return generation_service_pb2.GenerateRequest(
        model=options.get("model", ""),
        prompt=requests.prompt_message(prompt, "prompt", **special_tokens),
        generation_config=requests.generation_config(options),
        output=requests.output_options(options),
    )


def _chat_request(
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
    **rendering: bool | None,
) -> generation_service_pb2.ChatRequest:
    requests.check_option_names(options)
    return generation_service_pb2.ChatRequest(
        model=options.get("model", ""),
        conversation=requests.conversation(messages, tools, **rendering),
        generation_config=requests.generation_config(options),
        output=requests.output_options(options),
    )


def generate(prompt: Prompt, options: Mapping[str, Any], **special_tokens: bool | None) -> UnaryCall[Generation]:
    """Generate."""
    return UnaryCall("Generate", _generate_request(prompt, options, **special_tokens), responses.generation, options)


def stream(prompt: Prompt, options: Mapping[str, Any], **special_tokens: bool | None) -> StreamCall:
    """GenerateStream."""
    return StreamCall("GenerateStream", _generate_request(prompt, options, **special_tokens), options)


def generate_batch(
    prompts: Sequence[Prompt], options: Mapping[str, Any], **special_tokens: bool | None
) -> UnaryCall[list[Generation | TokenwireError]]:
    """GenerateBatch."""
    requests.check_option_names(options)
    request = generation_service_pb2.GenerateBatchRequest(
        model=options.get("model", ""),
        prompts=[
            requests.prompt_message(prompt, f"prompts[{index}]", **special_tokens)
            for index, prompt in enumerate(prompts)
        ],
        generation_config=requests.generation_config(options),
        output=requests.output_options(options),
    )
    request_id = options.get("request_id", "")
    return UnaryCall("GenerateBatch", request, lambda reply: responses.batch(reply, request_id), options)


def chat(
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
    **rendering: bool | None,
) -> UnaryCall[ChatAnswer]:
    """Chat."""
    return UnaryCall("Chat", _chat_request(messages, tools, options, **rendering), responses.chat_answer, options)


def chat_stream(
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
    **rendering: bool | None,
) -> StreamCall:
    """ChatStream."""
    return StreamCall("ChatStream", _chat_request(messages, tools, options, **rendering), options)


def tokenize(
    text: str, options: Mapping[str, Any], *, add_special_tokens: bool | None, parse_special_tokens: bool | None
) -> UnaryCall[list[Token]]:
    """Tokenize."""
    request = tokenizer_service_pb2.TokenizeRequest(
        model=options.get("model", ""),
        text=text,
        add_special_tokens=add_special_tokens,
        parse_special_tokens=parse_special_tokens,
    )
    return UnaryCall("Tokenize", request, responses.tokens, options)


def detokenize(
    token_ids: Sequence[int], options: Mapping[str, Any], *, skip_special_tokens: bool | None
) -> UnaryCall[str]:
    """Detokenize."""
    request = tokenizer_service_pb2.DetokenizeRequest(
        model=options.get("model", ""),
        token_ids=requests.token_ids(token_ids),
        skip_special_tokens=skip_special_tokens,
    )
    return UnaryCall("Detokenize", request, lambda reply: str(reply.text), options)


def render_chat(
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
    **rendering: bool | None,
) -> UnaryCall[RenderedChat]:
    """RenderChat."""
    request = tokenizer_service_pb2.RenderChatRequest(
        model=options.get("model", ""), conversation=requests.conversation(messages, tools, **rendering)
    )
    return UnaryCall("RenderChat", request, responses.rendered_chat, options)


def model(options: Mapping[str, Any]) -> UnaryCall[Model]:
    """GetModel."""
    request = model_service_pb2.GetModelRequest(model=options.get("model", ""))
    return UnaryCall("GetModel", request, lambda reply: responses.model(reply.model), options)
