"""Protobuf to domain and back: pure functions, no rules. Settings have `convert_settings`."""

from collections.abc import Callable, Sequence

import msgspec

from tokenwire.config import LimitsConfig
from tokenwire.engine.protocol import Finish, ModelInfo, TokenLogprobs
from tokenwire.engine.resolution import Note
from tokenwire.v1 import chat_pb2, generation_pb2, model_service_pb2

FINISH_REASONS = {
    "eos": generation_pb2.FINISH_REASON_EOS,
    "length": generation_pb2.FINISH_REASON_LENGTH,
    "stop_string": generation_pb2.FINISH_REASON_STOP_STRING,
    "stop_token": generation_pb2.FINISH_REASON_STOP_TOKEN,
    "max_time": generation_pb2.FINISH_REASON_MAX_TIME,
    "deadline": generation_pb2.FINISH_REASON_DEADLINE,
}

FORWARD_PATHS = {
    "paged": model_service_pb2.FORWARD_PATH_PAGED,
    "padded": model_service_pb2.FORWARD_PATH_PADDED,
}

EMPTY_PARAMETERS: dict[str, object] = {"type": "object", "properties": {}}
"""JSON schema of a tool that declares no parameters."""


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


def turn_of(conversation: chat_pb2.Conversation) -> tuple[bool, bool]:
    """``(add_generation_prompt, continue_final_message)`` with the defaults filled in."""
    continues = conversation.continue_final_message
    opens = conversation.add_generation_prompt if conversation.HasField("add_generation_prompt") else not continues
    return opens, continues


def position_logprobs_of(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], text_of: Callable[[int], str]
) -> list[generation_pb2.PositionLogprobs]:
    """Log probabilities of each position; ``text_of`` gives a token's text alone."""
    return [
        generation_pb2.PositionLogprobs(
            chosen=_token_logprob(token_id, position.logprob, position.rank, text_of),
            top=[
                _token_logprob(top_id, logprob, rank, text_of)
                for rank, (top_id, logprob) in enumerate(position.top, start=1)
            ],
        )
        for token_id, position in zip(token_ids, logprobs, strict=True)
    ]


def _token_logprob(
    token_id: int, logprob: float, rank: int, text_of: Callable[[int], str]
) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(token_id=token_id, text=text_of(token_id), logprob=logprob, rank=rank)


def finish_of(
    finish: Finish, sequence_index: int = 0, warnings: Sequence[generation_pb2.Warning] = ()
) -> generation_pb2.GenerationFinish:
    """How a sequence ended. ``sequence_index``: from 0 within the request."""
    return generation_pb2.GenerationFinish(
        sequence_index=sequence_index,
        reason=FINISH_REASONS[finish.reason],
        stop_string=finish.stop_string,
        stop_token_id=finish.stop_token_id,
        usage=generation_pb2.Usage(
            prompt_token_count=finish.prompt_token_count,
            completion_token_count=finish.completion_token_count,
            cached_token_count=finish.cached_token_count,
            draft_token_count=finish.draft_token_count,
            accepted_draft_token_count=finish.accepted_draft_token_count,
        ),
        timings=generation_pb2.Timings(
            queue_ms=finish.queue_ms, prefill_ms=finish.prefill_ms, decode_ms=finish.decode_ms
        ),
        warnings=warnings,
        sequence_score=finish.sequence_score,
    )


NEVER_LIKELY = 1e-6
"""Below this probability at every step, an EOS token counts as one that the model never learned to use."""


def finish_warnings(finish: Finish, *, length_is_default: bool) -> list[generation_pb2.Warning]:
    """What is worth knowing about an answer that its length ended.

    ``default_length_cut`` where nobody chose that length, ``eos_never_likely`` where the model never came near an end.
    """
    if finish.reason != "length":
        return []
    warnings = []
    if length_is_default:
        message = f"The answer was cut at {finish.completion_token_count} tokens, the default; set max_new_tokens."
        warnings.append(generation_pb2.Warning(code="default_length_cut", message=message))
    if finish.eos_probability_max is not None and finish.eos_probability_max < NEVER_LIKELY:
        message = (
            f"No end-of-sequence token was ever likelier than {NEVER_LIKELY:g}: the model may not know how to end an "
            "answer of this kind; check the prompt's format and eos_token_id, or set stop_strings."
        )
        warnings.append(generation_pb2.Warning(code="eos_never_likely", message=message))
    return warnings


def warning_of(note: Note) -> generation_pb2.Warning:
    """A note of ``resolve`` as a warning."""
    return generation_pb2.Warning(code=note.code, message=note.message)


def limits_of(limits: LimitsConfig, *, max_sequence_tokens: int, max_running: int) -> model_service_pb2.ModelLimits:
    """The bounds of requests as GetModel reports them."""
    return model_service_pb2.ModelLimits(
        max_sequence_tokens=max_sequence_tokens,
        max_running_count=max_running,
        max_queued_count=limits.max_queued,
        max_batch_size=limits.max_batch_size,
        max_stop_string_count=limits.max_stop_strings,
        max_stop_string_bytes=limits.max_stop_string_bytes,
        max_token_id_count=limits.max_token_ids,
        max_logit_bias_count=limits.max_logit_bias,
        max_token_sequence_count=limits.max_token_sequences,
        max_return_sequences=limits.max_return_sequences,
        max_beams=limits.max_beams,
        max_logprobs=limits.max_logprobs,
        max_message_count=limits.max_messages,
        max_tool_count=limits.max_tools,
        max_message_bytes=limits.max_message_bytes,
    )


def model_of(
    info: ModelInfo,
    *,
    special_tokens: Sequence[tuple[str, str, int]],
    has_chat_template: bool,
    default_config: generation_pb2.GenerationConfig,
    limits: model_service_pb2.ModelLimits,
) -> model_service_pb2.Model:
    """The served model as GetModel describes it. ``special_tokens`` are (name, text, id)."""
    return model_service_pb2.Model(
        id=info.model_id,
        revision=info.revision,
        architecture=info.architecture,
        quantization=info.quantization,
        dtype=info.dtype,
        device_map=info.device_map,
        forward_path=FORWARD_PATHS[info.forward_path],
        forward_path_reason=info.forward_path_reason,
        parameter_count=info.parameter_count,
        context_length=info.context_length,
        vocab_size=info.vocab_size,
        special_tokens=[
            model_service_pb2.SpecialToken(name=name, text=text, id=token_id) for name, text, token_id in special_tokens
        ],
        has_chat_template=has_chat_template,
        default_generation_config=default_config,
        limits=limits,
        unapplied_defaults=info.unapplied_defaults,
        draft_model=info.draft_model,
    )
