"""One value per call: its method, its request and how its reply is read. No I/O: both faces of the client share it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from tokenwire.client import requests, responses, results, types
from tokenwire.client.errors import TokenwireError
from tokenwire.v1 import chat_pb2, generation_service_pb2, model_service_pb2, tokenizer_service_pb2

T = TypeVar("T")

_SPECIAL_TOKENS = types.SpecialTokenOptions.__optional_keys__
_CONVERSATION = types.ConversationOptions.__optional_keys__


@dataclass(frozen=True, slots=True)
class Call:
    """A call with a stream of events, or what every call has."""

    method: str
    request: Any
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UnaryCall(Call, Generic[T]):
    """A call with one reply."""

    parse: Callable[[Any], T]


def _generating(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every generating request has."""
    return {
        "model": options.get("model", ""),
        "generation_config": requests.generation_config(options),
        "output": requests.output_options(options),
        "priority": requests.priority(options),
    }


def _negative_prompt(options: types.GuidanceOptions, **special_tokens: Any) -> generation_service_pb2.Prompt | None:
    negative_prompt = options.get("negative_prompt")
    if negative_prompt is None:
        return None
    return requests.prompt_message(negative_prompt, "negative_prompt", **special_tokens)


def _conversation(messages: types.Messages, options: Mapping[str, Any]) -> chat_pb2.Conversation:
    return requests.conversation(messages, **requests.given(options, _CONVERSATION))


def _generate_request(prompt: types.Prompt, options: types.PromptOptions) -> generation_service_pb2.GenerateRequest:
    requests.check_option_names(options, types.PromptOptions.__optional_keys__)
    special_tokens = requests.given(options, _SPECIAL_TOKENS)
    message = requests.prompt_message(prompt, "prompt", **special_tokens)
    return generation_service_pb2.GenerateRequest(
        prompt=message,
        negative_prompt=_negative_prompt(options, **special_tokens),
        resumable=options.get("resumable", False),
        **_generating(options),
    )


def _chat_request(messages: types.Messages, options: types.ChatOptions) -> generation_service_pb2.ChatRequest:
    requests.check_option_names(options, types.ChatOptions.__optional_keys__)
    return generation_service_pb2.ChatRequest(
        conversation=_conversation(messages, options),
        negative_prompt=_negative_prompt(options),
        resumable=options.get("resumable", False),
        **_generating(options),
    )


def generate(prompt: types.Prompt, options: types.PromptOptions) -> UnaryCall[results.Generation]:
    """Generate."""
    return UnaryCall("Generate", _generate_request(prompt, options), options, responses.generation)


def stream(prompt: types.Prompt, options: types.PromptOptions) -> Call:
    """GenerateStream."""
    return Call("GenerateStream", _generate_request(prompt, options), options)


def generate_batch(
    prompts: Sequence[types.Prompt], options: types.BatchOptions
) -> UnaryCall[list[results.Generation | TokenwireError]]:
    """GenerateBatch."""
    requests.check_option_names(options, types.BatchOptions.__optional_keys__)
    special_tokens = requests.given(options, _SPECIAL_TOKENS)

    def messages(prompts: Sequence[types.Prompt], path: str) -> list[generation_service_pb2.Prompt]:
        return [
            requests.prompt_message(prompt, f"{path}[{index}]", **special_tokens)
            for index, prompt in enumerate(prompts)
        ]

    request = generation_service_pb2.GenerateBatchRequest(
        prompts=messages(prompts, "prompts"),
        negative_prompts=messages(options.get("negative_prompts") or (), "negative_prompts"),
        **_generating(options),
    )
    request_id = options.get("request_id", "")
    return UnaryCall("GenerateBatch", request, options, lambda reply: responses.batch(reply, request_id))


def chat(messages: types.Messages, options: types.ChatOptions) -> UnaryCall[results.ChatAnswer]:
    """Chat."""
    return UnaryCall("Chat", _chat_request(messages, options), options, responses.chat_answer)


def chat_stream(messages: types.Messages, options: types.ChatOptions) -> Call:
    """ChatStream."""
    return Call("ChatStream", _chat_request(messages, options), options)


def resume(request_id: str, positions: Iterable[types.StreamPosition], options: Mapping[str, Any]) -> Call:
    """ResumeStream. Besides ResumeOptions, a request id to log it under."""
    requests.check_option_names(options, types.ResumeOptions.__optional_keys__ | {"request_id"})
    request = generation_service_pb2.ResumeStreamRequest(
        request_id=request_id,
        positions=[generation_service_pb2.StreamPosition(**asdict(position)) for position in positions],
    )
    return Call("ResumeStream", request, {"resumable": True, **options})


def cancel(request_id: str, options: Mapping[str, Any]) -> Call:
    """CancelStream."""
    return Call("CancelStream", generation_service_pb2.CancelStreamRequest(request_id=request_id), options)


def tokenize(text: str, options: types.TokenizeOptions) -> UnaryCall[list[types.Token]]:
    """Tokenize."""
    requests.check_option_names(options, types.TokenizeOptions.__optional_keys__)
    request = tokenizer_service_pb2.TokenizeRequest(
        model=options.get("model", ""), text=text, **requests.given(options, _SPECIAL_TOKENS)
    )
    return UnaryCall("Tokenize", request, options, responses.tokens)


def detokenize(token_ids: Sequence[int], options: types.DetokenizeOptions) -> UnaryCall[str]:
    """Detokenize."""
    requests.check_option_names(options, types.DetokenizeOptions.__optional_keys__)
    request = tokenizer_service_pb2.DetokenizeRequest(
        model=options.get("model", ""),
        token_ids=requests.token_ids(token_ids),
        skip_special_tokens=options.get("skip_special_tokens"),
    )
    return UnaryCall("Detokenize", request, options, lambda reply: str(reply.text))


def render_chat(messages: types.Messages, options: types.RenderOptions) -> UnaryCall[types.RenderedChat]:
    """RenderChat."""
    requests.check_option_names(options, types.RenderOptions.__optional_keys__)
    request = tokenizer_service_pb2.RenderChatRequest(
        model=options.get("model", ""), conversation=_conversation(messages, options)
    )
    return UnaryCall("RenderChat", request, options, responses.rendered_chat)


def model(options: types.CallOptions) -> UnaryCall[types.Model]:
    """GetModel."""
    requests.check_option_names(options, types.CallOptions.__optional_keys__)
    request = model_service_pb2.GetModelRequest(model=options.get("model", ""))
    return UnaryCall("GetModel", request, options, lambda reply: responses.model(reply.model))
