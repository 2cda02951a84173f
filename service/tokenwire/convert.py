"""Protobuf to domain and back: pure functions, no rules.

Unset is told from zero by presence (``HasField``): a field that the caller left out becomes None, a zero stays zero.
"""

from collections.abc import Callable, Sequence

from tokenwire.config import LimitsConfig
from tokenwire.engine.protocol import Finish, ModelInfo, TokenLogprobs
from tokenwire.engine.settings import SAMPLING_FIELDS, GenerationOverrides, GenerationSettings, Note
from tokenwire.v1 import generation_pb2, model_service_pb2

OPTIONAL_SCALARS = (
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "seed",
    "include_stop_string",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
"""Fields of GenerationConfig that have the same name and type in GenerationOverrides."""

FINISH_REASONS = {
    "eos": generation_pb2.FINISH_REASON_EOS,
    "length": generation_pb2.FINISH_REASON_LENGTH,
    "stop_string": generation_pb2.FINISH_REASON_STOP_STRING,
    "stop_token": generation_pb2.FINISH_REASON_STOP_TOKEN,
}

FORWARD_PATHS = {
    "paged": model_service_pb2.FORWARD_PATH_PAGED,
    "padded": model_service_pb2.FORWARD_PATH_PADDED,
}


def overrides_of(config: generation_pb2.GenerationConfig) -> GenerationOverrides:
    """What the caller set. Values are taken as they are; `validation` judges them."""
    scalars = {name: getattr(config, name) for name in OPTIONAL_SCALARS if config.HasField(name)}
    return GenerationOverrides(
        **scalars,
        stop_strings=tuple(config.stop_strings.values) if config.HasField("stop_strings") else None,
        eos_token_ids=tuple(config.eos_token_id.ids) if config.HasField("eos_token_id") else None,
        stop_token_ids=tuple(config.stop_token_ids),
        logit_bias=dict(config.logit_bias),
        suppress_tokens=tuple(config.suppress_tokens.ids) if config.HasField("suppress_tokens") else None,
    )


def config_of(settings: GenerationSettings, *, with_seed: bool) -> generation_pb2.GenerationConfig:
    """The settings in force as a request would write them, so that sending them back means the same.

    ``with_seed`` is false where nothing is drawn. Greedy settings name no sampling field: it would contradict them.
    """
    left_out = {"seed"} if settings.do_sample else {"seed", *SAMPLING_FIELDS}
    scalars = {
        name: getattr(settings, name) for name in OPTIONAL_SCALARS if name not in left_out and hasattr(settings, name)
    }
    config = generation_pb2.GenerationConfig(
        **scalars,
        stop_strings=generation_pb2.StringList(values=settings.stop_strings),
        eos_token_id=generation_pb2.TokenIds(ids=settings.eos_token_ids),
        stop_token_ids=settings.stop_token_ids,
        logit_bias=settings.logit_bias,
        suppress_tokens=generation_pb2.TokenIds(ids=settings.suppress_tokens),
    )
    if with_seed:
        config.seed = settings.seed
    return config


def position_logprobs_of(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], text_of: Callable[[int], str]
) -> list[generation_pb2.PositionLogprobs]:
    """Log probabilities of each position; ``text_of`` gives a token's text alone."""
    return [
        generation_pb2.PositionLogprobs(
            chosen=_token_logprob(token_id, position.logprob, text_of),
            top=[_token_logprob(top_id, logprob, text_of) for top_id, logprob in position.top],
        )
        for token_id, position in zip(token_ids, logprobs, strict=True)
    ]


def _token_logprob(token_id: int, logprob: float, text_of: Callable[[int], str]) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(token_id=token_id, text=text_of(token_id), logprob=logprob)


def finish_of(finish: Finish, warnings: Sequence[generation_pb2.Warning] = ()) -> generation_pb2.GenerationFinish:
    """How sequence 0 ended."""
    return generation_pb2.GenerationFinish(
        reason=FINISH_REASONS[finish.reason],
        stop_string=finish.stop_string,
        stop_token_id=finish.stop_token_id,
        usage=generation_pb2.Usage(
            prompt_token_count=finish.prompt_token_count, completion_token_count=finish.completion_token_count
        ),
        timings=generation_pb2.Timings(
            queue_ms=finish.queue_ms, prefill_ms=finish.prefill_ms, decode_ms=finish.decode_ms
        ),
        warnings=warnings,
    )


def length_warnings(finish: Finish, *, length_is_default: bool) -> list[generation_pb2.Warning]:
    """``default_length_cut`` where an answer ended at a length that nobody chose."""
    if finish.reason != "length" or not length_is_default:
        return []
    message = f"The answer was cut at {finish.completion_token_count} tokens, the default; set max_new_tokens."
    return [generation_pb2.Warning(code="default_length_cut", message=message)]


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
        max_logprobs=limits.max_logprobs,
        max_message_count=limits.max_messages,
        max_tool_count=limits.max_tools,
        max_message_bytes=limits.max_message_bytes,
        max_document_count=limits.max_documents,
        max_template_variable_count=limits.max_template_variables,
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
    )
