"""Turns protobuf replies into the client's dataclasses. No I/O: both faces of the client share it."""

from collections.abc import Iterable
from typing import Any, cast

from tokenwire.client import errors, types
from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2, model_service_pb2, tokenizer_service_pb2

_REASONS = {
    generation_pb2.FINISH_REASON_EOS: types.FinishReason.EOS,
    generation_pb2.FINISH_REASON_LENGTH: types.FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_STOP_STRING: types.FinishReason.STOP_STRING,
    generation_pb2.FINISH_REASON_STOP_TOKEN: types.FinishReason.STOP_TOKEN,
}
_FORWARD_PATHS = {model_service_pb2.FORWARD_PATH_PAGED: "paged", model_service_pb2.FORWARD_PATH_PADDED: "padded"}


def generation_options(message: generation_pb2.GenerationConfig) -> types.GenerationOptions:
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
    return cast(types.GenerationOptions, options)


def _warnings(messages: Iterable[generation_pb2.Warning]) -> tuple[types.GenerationWarning, ...]:
    return tuple(types.GenerationWarning(each.code, each.message) for each in messages)


def _logprob(message: generation_pb2.TokenLogprob) -> types.TokenLogprob:
    return types.TokenLogprob(message.token_id, message.text, message.logprob)


def _logprobs(messages: Iterable[generation_pb2.PositionLogprobs]) -> tuple[types.PositionLogprobs, ...]:
    return tuple(types.PositionLogprobs(_logprob(each.chosen), tuple(map(_logprob, each.top))) for each in messages)


def start(message: generation_pb2.GenerationStart) -> types.Start:
    """A Start."""
    return types.Start(
        message.request_id,
        message.model,
        generation_options(message.generation_config),
        message.prompt_token_count,
        _warnings(message.warnings),
    )


def delta(message: generation_pb2.GenerationDelta) -> types.Delta:
    """A Delta."""
    return types.Delta(
        message.text,
        tuple(message.token_ids),
        _logprobs(message.logprobs),
        (message.text_range.start, message.text_range.end),
        message.sequence_index,
    )


def finish(message: generation_pb2.GenerationFinish) -> types.Finish:
    """A Finish."""
    return types.Finish(
        _REASONS.get(message.reason, types.FinishReason.UNSPECIFIED),
        message.stop_string if message.HasField("stop_string") else None,
        message.stop_token_id if message.HasField("stop_token_id") else None,
        types.Usage(message.usage.prompt_token_count, message.usage.completion_token_count),
        types.Timings(message.timings.queue_ms, message.timings.prefill_ms, message.timings.decode_ms),
        _warnings(message.warnings),
        message.sequence_index,
    )


Event = types.Start | types.Delta | types.Finish


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


def _generation(begin: types.Start, message: generation_pb2.GeneratedSequence) -> types.Generation:
    return types.Generation(
        message.text, tuple(message.token_ids), _logprobs(message.logprobs), begin, finish(message.finish)
    )


def generation(message: generation_service_pb2.GenerateResponse) -> types.Generation:
    """The first sequence, which is the only one while requests cannot ask for more."""
    return _generation(start(message.start), message.sequences[0])


def chat_message(message: chat_pb2.ChatMessage) -> types.ChatMessage:
    """A ChatMessage; its parts joined."""
    return types.ChatMessage(
        message.role,
        "".join(part.text for part in message.content),
        message.name,
        tuple(types.ToolCall(call.name, call.arguments_json, call.id) for call in message.tool_calls),
        message.tool_call_id,
        message.reasoning_content,
    )


def chat_answer(message: generation_service_pb2.ChatResponse) -> types.ChatAnswer:
    """The first choice, which is the only one while requests cannot ask for more."""
    choice = message.choices[0]
    whole = _generation(start(message.start), choice.sequence)
    return types.ChatAnswer(
        whole.text, whole.token_ids, whole.logprobs, whole.start, whole.finish, chat_message(choice.message)
    )


def batch(
    message: generation_service_pb2.GenerateBatchResponse, request_id: str
) -> list[types.Generation | errors.TokenwireError]:
    """One outcome per prompt."""
    return [
        generation(item.response)
        if item.WhichOneof("outcome") == "response"
        else errors.from_item_status(item.error.code, item.error.message, item.error.details, request_id)
        for item in message.items
    ]


def tokens(message: tokenizer_service_pb2.TokenizeResponse) -> list[types.Token]:
    """The tokens of a text."""
    return [types.Token(each.id, each.piece, (each.range.start, each.range.end)) for each in message.tokens]


def rendered_chat(message: tokenizer_service_pb2.RenderChatResponse) -> types.RenderedChat:
    """The prompt of a conversation."""
    return types.RenderedChat(message.text, tuple(message.token_ids.ids))


def model(message: model_service_pb2.Model) -> types.Model:
    """A Model."""
    limits = {field.name: getattr(message.limits, field.name) for field in message.limits.DESCRIPTOR.fields}
    return types.Model(
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
        special_tokens=tuple(types.SpecialToken(each.name, each.text, each.id) for each in message.special_tokens),
        has_chat_template=message.has_chat_template,
        chat_template_names=tuple(message.chat_template_names),
        default_generation_config=generation_options(message.default_generation_config),
        limits=types.ModelLimits(**{name: limits[name] for name in types.ModelLimits.__dataclass_fields__}),
        unapplied_defaults=tuple(message.unapplied_defaults),
    )
