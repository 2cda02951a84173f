"""Turns protobuf replies into the client's dataclasses. No I/O: both faces of the client share it."""

from collections.abc import Iterable
from typing import Any, cast

from tokenwire.client import errors
from tokenwire.client.types import (
    ChatAnswer,
    ChatMessage,
    Delta,
    Finish,
    FinishReason,
    Generation,
    GenerationOptions,
    GenerationWarning,
    Model,
    ModelLimits,
    PositionLogprobs,
    RenderedChat,
    SpecialToken,
    Start,
    Timings,
    Token,
    TokenLogprob,
    ToolCall,
    Usage,
)
from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2, model_service_pb2, tokenizer_service_pb2

_REASONS = {
    generation_pb2.FINISH_REASON_EOS: FinishReason.EOS,
    generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_STOP_STRING: FinishReason.STOP_STRING,
    generation_pb2.FINISH_REASON_STOP_TOKEN: FinishReason.STOP_TOKEN,
}
_FORWARD_PATHS = {model_service_pb2.FORWARD_PATH_PAGED: "paged", model_service_pb2.FORWARD_PATH_PADDED: "padded"}


def generation_options(message: generation_pb2.GenerationConfig) -> GenerationOptions:
    """The fields that are set."""
    options: dict[str, Any] = {}
    for field, value in message.ListFields():
        match field.name:
            case "stop_strings":
                options[field.name] = tuple(value.values)
            case "eos_token_id" | "suppress_tokens":
                options[field.name] = tuple(value.ids)
            case "stop_token_ids":
                options[field.name] = tuple(value)
            case "logit_bias":
                options[field.name] = dict(value)
            case _:
                options[field.name] = value
    return cast(GenerationOptions, options)


def _warnings(messages: Iterable[generation_pb2.Warning]) -> tuple[GenerationWarning, ...]:
    return tuple(GenerationWarning(each.code, each.message) for each in messages)


def _logprob(message: generation_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.text, message.logprob)


def _logprobs(messages: Iterable[generation_pb2.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    return tuple(PositionLogprobs(_logprob(each.chosen), tuple(map(_logprob, each.top))) for each in messages)


def start(message: generation_pb2.GenerationStart) -> Start:
    """A Start."""
    return Start(
        message.request_id,
        message.model,
        generation_options(message.generation_config),
        message.prompt_token_count,
        _warnings(message.warnings),
    )


def delta(message: generation_pb2.GenerationDelta) -> Delta:
    """A Delta."""
    return Delta(
        message.text,
        tuple(message.token_ids),
        _logprobs(message.logprobs),
        (message.text_range.start, message.text_range.end),
        message.sequence_index,
    )


def finish(message: generation_pb2.GenerationFinish) -> Finish:
    """A Finish."""
    return Finish(
        _REASONS.get(message.reason, FinishReason.UNSPECIFIED),
        message.stop_string if message.HasField("stop_string") else None,
        message.stop_token_id if message.HasField("stop_token_id") else None,
        Usage(message.usage.prompt_token_count, message.usage.completion_token_count),
        Timings(message.timings.queue_ms, message.timings.prefill_ms, message.timings.decode_ms),
        _warnings(message.warnings),
        message.sequence_index,
    )


Event = Start | Delta | Finish


def event(
    message: generation_service_pb2.GenerateStreamResponse | generation_service_pb2.ChatStreamResponse,
) -> Event | None:
    """The event, or None for a kind that this version of the client does not know."""
    match message.WhichOneof("event"):
        case "start":
            return start(message.start)
        case "delta":
            return delta(message.delta)
        case "finish":
            return finish(message.finish)
        case _:
            return None


def _generation(begin: Start, message: generation_pb2.GeneratedSequence) -> Generation:
    return Generation(
        message.text, tuple(message.token_ids), _logprobs(message.logprobs), begin, finish(message.finish)
    )


def generation(message: generation_service_pb2.GenerateResponse) -> Generation:
    """The first sequence, which is the only one while requests cannot ask for more."""
    return _generation(start(message.start), message.sequences[0])


def chat_message(message: chat_pb2.ChatMessage) -> ChatMessage:
    """A ChatMessage; its parts joined."""
    return ChatMessage(
        message.role,
        "".join(part.text for part in message.content),
        message.name,
        tuple(ToolCall(call.name, call.arguments_json, call.id) for call in message.tool_calls),
        message.tool_call_id,
        message.reasoning_content,
    )


def chat_answer(message: generation_service_pb2.ChatResponse) -> ChatAnswer:
    """The first choice, which is the only one while requests cannot ask for more."""
    choice = message.choices[0]
    whole = _generation(start(message.start), choice.sequence)
    return ChatAnswer(
        whole.text, whole.token_ids, whole.logprobs, whole.start, whole.finish, chat_message(choice.message)
    )


def batch(
    message: generation_service_pb2.GenerateBatchResponse, request_id: str
) -> list[Generation | errors.TokenwireError]:
    """One outcome per prompt."""
    return [
        generation(item.response)
        if item.WhichOneof("outcome") == "response"
        else errors.from_item_status(item.error.code, item.error.message, item.error.details, request_id)
        for item in message.items
    ]


def tokens(message: tokenizer_service_pb2.TokenizeResponse) -> list[Token]:
    """The tokens of a text."""
    return [Token(each.id, each.piece, (each.range.start, each.range.end)) for each in message.tokens]


def rendered_chat(message: tokenizer_service_pb2.RenderChatResponse) -> RenderedChat:
    """The prompt of a conversation."""
    return RenderedChat(message.text, tuple(message.token_ids.ids))


def model(message: model_service_pb2.Model) -> Model:
    """A Model."""
    limits = {field.name: getattr(message.limits, field.name) for field in message.limits.DESCRIPTOR.fields}
    return Model(
        id=message.id,
        revision=message.revision,
        architecture=message.architecture,
        quantization=message.quantization,
        dtype=message.dtype,
        device_map=dict(message.device_map),
        forward_path=_FORWARD_PATHS.get(message.forward_path, "unspecified"),
        forward_path_reason=message.forward_path_reason,
        parameter_count=message.parameter_count,
        context_length=message.context_length,
        vocab_size=message.vocab_size,
        special_tokens=tuple(SpecialToken(each.name, each.text, each.id) for each in message.special_tokens),
        has_chat_template=message.has_chat_template,
        default_generation_config=generation_options(message.default_generation_config),
        limits=ModelLimits(**{name: limits[name] for name in ModelLimits.__dataclass_fields__}),
        unapplied_defaults=tuple(message.unapplied_defaults),
    )
