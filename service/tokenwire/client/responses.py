"""Turns protobuf replies into the client's dataclasses. No I/O: both faces of the client share it."""

from collections.abc import Iterable
from typing import Any, cast

from tokenwire.client import errors, results, types
from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2, model_service_pb2, tokenizer_service_pb2

_REASONS = {
    generation_pb2.FINISH_REASON_EOS: results.FinishReason.EOS,
    generation_pb2.FINISH_REASON_LENGTH: results.FinishReason.LENGTH,
    generation_pb2.FINISH_REASON_STOP_STRING: results.FinishReason.STOP_STRING,
    generation_pb2.FINISH_REASON_STOP_TOKEN: results.FinishReason.STOP_TOKEN,
    generation_pb2.FINISH_REASON_MAX_TIME: results.FinishReason.MAX_TIME,
    generation_pb2.FINISH_REASON_DEADLINE: results.FinishReason.DEADLINE,
}
_EARLY_STOPPING: dict[int, types.EarlyStopping] = {
    generation_pb2.EARLY_STOPPING_FALSE: False,
    generation_pb2.EARLY_STOPPING_TRUE: True,
    generation_pb2.EARLY_STOPPING_NEVER: "never",
}
_FORWARD_PATHS = {model_service_pb2.FORWARD_PATH_PAGED: "paged", model_service_pb2.FORWARD_PATH_PADDED: "padded"}


def generation_options(message: generation_pb2.GenerationConfig) -> types.GenerationOptions:
    """The fields that are set."""
    options: dict[str, Any] = {}
    for field, value in message.ListFields():
        match field.name:
            case "stop_strings":
                options[field.name] = tuple(value.values)
            case (
                "eos_token_id"
                | "suppress_tokens"
                | "begin_suppress_tokens"
                | "forced_eos_token_id"
                | "allowed_token_ids"
            ):
                options[field.name] = tuple(value.ids)
            case "bad_words_ids":
                options[field.name] = tuple(tuple(sequence.ids) for sequence in value.sequences)
            case "sequence_bias":
                options[field.name] = tuple((tuple(entry.ids), entry.bias) for entry in value.entries)
            case "exponential_decay_length_penalty":
                options[field.name] = (value.start_index, value.decay_factor)
            case "early_stopping":
                options[field.name] = _EARLY_STOPPING.get(value)
            case "watermarking_config":
                options[field.name] = _watermark(value)
            case "stop_token_ids":
                options[field.name] = tuple(value)
            case "logit_bias":
                options[field.name] = dict(value)
            case _:
                options[field.name] = value
    return cast(types.GenerationOptions, options)


def _watermark(message: generation_pb2.WatermarkingConfig) -> types.Watermark | None:
    """The watermark, or None for a scheme that this version of the client does not know."""
    kind = message.WhichOneof("scheme")
    if kind is None:
        return None
    scheme = getattr(message, kind)
    fields = {field.name: getattr(scheme, field.name) for field, _ in scheme.ListFields()}
    if kind == "synth_id_text":
        fields["keys"] = tuple(scheme.keys)
        return types.SynthIdTextWatermark(**({"ngram_len": 0} | fields))
    is_self_hash = scheme.seeding_scheme == generation_pb2.GreenListWatermark.SEEDING_SCHEME_SELF_HASH
    fields["seeding_scheme"] = "selfhash" if is_self_hash else "lefthash"
    return types.GreenListWatermark(**fields)


def _warnings(messages: Iterable[generation_pb2.Warning]) -> tuple[results.GenerationWarning, ...]:
    return tuple(results.GenerationWarning(each.code, each.message) for each in messages)


def _logprob(message: generation_pb2.TokenLogprob) -> results.TokenLogprob:
    return results.TokenLogprob(message.token_id, message.text, message.logprob, message.rank)


def _logprobs(messages: Iterable[generation_pb2.PositionLogprobs]) -> tuple[results.PositionLogprobs, ...]:
    return tuple(results.PositionLogprobs(_logprob(each.chosen), tuple(map(_logprob, each.top))) for each in messages)


def _tokens(messages: Iterable[generation_pb2.TokenDetail]) -> tuple[results.TokenDetail, ...]:
    return tuple(
        results.TokenDetail(each.id, each.piece, each.bytes, (each.text_range.start, each.text_range.end))
        for each in messages
    )


def _explanations(
    messages: Iterable[generation_pb2.TokenExplanation],
) -> tuple[results.TokenExplanation, ...]:
    return tuple(
        results.TokenExplanation(
            each.token_id,
            each.text,
            _standing(each, "model"),
            tuple(
                results.ProcessorEffect(
                    effect.name, effect.removed_token_count, _standing(effect, "before"), _standing(effect, "after")
                )
                for effect in each.effects
            ),
            _standing(each, "outcome"),
        )
        for each in messages
    )


def _standing(
    message: generation_pb2.TokenExplanation | generation_pb2.ProcessorEffect, name: Any
) -> results.TokenStanding | None:
    if not message.HasField(name):
        return None
    standing = getattr(message, name)
    return results.TokenStanding(standing.probability, standing.rank, standing.entropy, standing.token_count)


def start(message: generation_pb2.GenerationStart) -> results.Start:
    """A Start."""
    return results.Start(
        message.request_id,
        message.model,
        generation_options(message.generation_config),
        message.prompt_token_count,
        _warnings(message.warnings),
    )


def delta(message: generation_pb2.GenerationDelta) -> results.Delta:
    """A Delta."""
    return results.Delta(
        message.text,
        tuple(message.token_ids),
        _logprobs(message.logprobs),
        (message.text_range.start, message.text_range.end),
        message.sequence_index,
        _tokens(message.tokens),
        _logprobs(message.prompt_logprobs),
        _explanations(message.explanations),
    )


def finish(message: generation_pb2.GenerationFinish) -> results.Finish:
    """A Finish."""
    return results.Finish(
        _REASONS.get(message.reason, results.FinishReason.UNSPECIFIED),
        message.stop_string if message.HasField("stop_string") else None,
        message.stop_token_id if message.HasField("stop_token_id") else None,
        results.Usage(**{name: getattr(message.usage, name) for name in results.Usage.__dataclass_fields__}),
        results.Timings(message.timings.queue_ms, message.timings.prefill_ms, message.timings.decode_ms),
        _warnings(message.warnings),
        message.sequence_index,
        message.sequence_score if message.HasField("sequence_score") else None,
    )


Event = results.Start | results.Delta | results.Finish


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


def _sequence(message: generation_pb2.GeneratedSequence) -> results.GeneratedSequence:
    return results.GeneratedSequence(
        message.text,
        tuple(message.token_ids),
        _logprobs(message.logprobs),
        finish(message.finish),
        _tokens(message.tokens),
        _explanations(message.explanations),
    )


def generation(message: generation_service_pb2.GenerateResponse) -> results.Generation:
    """A whole answer."""
    sequences = message.sequences
    return results.Generation(
        start(message.start), tuple(map(_sequence, sequences)), _logprobs(sequences[0].prompt_logprobs)
    )


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


def chat_answer(message: generation_service_pb2.ChatResponse) -> results.ChatAnswer:
    """A whole answer to a conversation."""
    choices = message.choices
    return results.ChatAnswer(
        start(message.start),
        tuple(_sequence(choice.sequence) for choice in choices),
        _logprobs(choices[0].sequence.prompt_logprobs),
        tuple(chat_message(choice.message) for choice in choices),
    )


def batch(
    message: generation_service_pb2.GenerateBatchResponse, request_id: str
) -> list[results.Generation | errors.TokenwireError]:
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
        draft_model=message.draft_model,
    )
