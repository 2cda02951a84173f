"""Protobuf to domain and back: pure functions, no rules. Settings have `convert_settings`."""

from collections.abc import Callable, Sequence

from tokenwire._native import MAX_EXPLAINED_TOKENS
from tokenwire.config import LimitsConfig
from tokenwire.engine.protocol import Finish, ModelInfo, TokenExplanation, TokenLogprobs, TokenStanding
from tokenwire.engine.resolution import Note
from tokenwire.v1 import generation_pb2, model_service_pb2

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


def explanations_of(
    token_ids: Sequence[int], explanations: Sequence[TokenExplanation], text_of: Callable[[int], str]
) -> list[generation_pb2.TokenExplanation]:
    """Explanations of the first of these tokens; ``text_of`` gives a token's text alone."""
    return [
        generation_pb2.TokenExplanation(
            token_id=token_id,
            text=text_of(token_id),
            model=_standing(explanation.model),
            effects=[
                generation_pb2.ProcessorEffect(
                    name=effect.name,
                    removed_token_count=effect.removed_token_count,
                    before=_standing(effect.before),
                    after=_standing(effect.after),
                )
                for effect in explanation.effects
            ],
            outcome=_standing(explanation.outcome),
        )
        for token_id, explanation in zip(token_ids, explanations, strict=False)
    ]


def _standing(standing: TokenStanding | None) -> generation_pb2.TokenStanding | None:
    if standing is None:
        return None
    return generation_pb2.TokenStanding(
        probability=standing.probability,
        rank=standing.rank,
        entropy=standing.entropy,
        token_count=standing.token_count,
    )


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
        max_queued_token_count=limits.max_queued_tokens,
        max_batch_size=limits.max_batch_size,
        max_stop_string_count=limits.max_stop_strings,
        max_stop_string_bytes=limits.max_stop_string_bytes,
        max_token_id_count=limits.max_token_ids,
        max_logit_bias_count=limits.max_logit_bias,
        max_token_sequence_count=limits.max_token_sequences,
        max_return_sequences=limits.max_return_sequences,
        max_beams=limits.max_beams,
        max_logprobs=limits.max_logprobs,
        max_explained_token_count=MAX_EXPLAINED_TOKENS,
        max_message_count=limits.max_messages,
        max_tool_count=limits.max_tools,
        max_message_bytes=limits.max_message_bytes,
        max_document_count=limits.max_documents,
        max_template_variable_count=limits.max_template_variables,
        resume_window_ms=round(limits.resume_window * 1000),
        max_retained_stream_bytes=limits.max_retained_stream_bytes,
        max_retained_bytes=limits.max_retained_bytes,
    )


def model_of(
    info: ModelInfo,
    *,
    special_tokens: Sequence[tuple[str, str, int]],
    chat_template_names: Sequence[str],
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
        has_chat_template=bool(chat_template_names),
        chat_template_names=chat_template_names,
        default_generation_config=default_config,
        limits=limits,
        unapplied_defaults=info.unapplied_defaults,
        draft_model=info.draft_model,
    )
