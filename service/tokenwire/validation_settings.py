"""Every rule about generation settings and output options, checked before any work.

Ranges live in Rust and beside the engine (asked by ``engine.ranges``), the rules between settings in
``engine.resolution``; this module adds sizes, counts, and what only the message or the operator's limits can tell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from tokenwire._native import MAX_SYNTH_ID_KEYS
from tokenwire.config import LimitsConfig
from tokenwire.convert_settings import EARLY_STOPPING, SEEDING_SCHEMES, overrides_of
from tokenwire.engine.protocol import ModelInfo
from tokenwire.engine.ranges import out_of_range
from tokenwire.engine.resolution import Circumstances, Note, Resolution, chosen, resolve
from tokenwire.engine.settings import ROWS_WITH_GUIDANCE, GenerationOverrides, GenerationSettings, num_rows_of
from tokenwire.errors import InvalidRequestError, UnsupportedError, Violation
from tokenwire.v1 import generation_pb2
from tokenwire.validation import Bounds, Verbatim, Violations, flag, shorten, within

_CONFIG = "generation_config"
_LIST_PATHS = {
    "eos_token_id": "eos_token_id.ids",
    "suppress_tokens": "suppress_tokens.ids",
    "begin_suppress_tokens": "begin_suppress_tokens.ids",
    "forced_eos_token_id": "forced_eos_token_id.ids",
    "allowed_token_ids": "allowed_token_ids.ids",
    "stop_strings": "stop_strings.values",
    "bad_words_ids": "bad_words_ids.sequences",
    "sequence_bias": "sequence_bias.entries",
}
"""Where the elements of a list lie in the message, by the name that ranges give the list."""

_CONTEXT_FIELDS = ("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size")
"""Numbers of tokens that no text of this model can have more of."""


@dataclass(frozen=True, slots=True)
class Output:
    """OutputOptions with defaults filled in."""

    logprobs: int | None = None
    processed_logprobs: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = None
    echo: bool = False
    token_details: bool = False
    explain: bool = False


class Shape(NamedTuple):
    """What of a call, beside its settings, decides what they may say."""

    prompt_tokens: int = 1
    """How many the prompt has, or at least has."""
    is_streaming: bool = False
    has_text_prompt: bool = True
    negative_prompt_field: str = ""
    has_deadline: bool = True


class Resolved(NamedTuple):
    """Settings in force for one request, and what is to be said about them."""

    settings: GenerationSettings
    notes: tuple[Note, ...]
    length_is_default: bool


def output_of(output: generation_pb2.OutputOptions) -> Output:
    """The options with their defaults."""
    return Output(
        logprobs=output.logprobs if output.HasField("logprobs") else None,
        processed_logprobs=output.processed_logprobs,
        skip_special_tokens=flag(output, "skip_special_tokens"),
        prompt_logprobs=output.prompt_logprobs if output.HasField("prompt_logprobs") else None,
        echo=output.echo,
        token_details=output.token_details,
        explain=output.explain,
    )


def checked_overrides(
    config: generation_pb2.GenerationConfig,
    output: Output,
    bounds: Bounds,
    violations: Violations,
    shape: Shape,
) -> GenerationOverrides:
    """What a request sets, judged; only to be used where nothing is violated.

    Sizes come first: what is too long is not even copied.
    """
    _check_output(output, bounds.limits, violations)
    _check_enums(config, violations)
    if not check_sizes(config, bounds.limits, violations):
        return GenerationOverrides()
    overrides = overrides_of(config)
    check_generation(overrides, bounds, violations, shape)
    if chosen(overrides, bounds.info.defaults, "num_beams", 1) > 1:
        # A beam's tokens come from several rows of several steps, whose logits are gone when it is known to be one.
        if output.logprobs is not None:
            violations.add("output.logprobs", "must be unset with num_beams above 1", output.logprobs)
        if output.explain:
            violations.add("output.explain", "must be false with num_beams above 1", True)
    return overrides


def _check_output(output: Output, limits: LimitsConfig, violations: Violations) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(output, name)
        if count is not None and not 0 <= count <= limits.max_logprobs:
            violations.add(f"output.{name}", f"must be in [0, {limits.max_logprobs}]", count)


def _check_enums(config: generation_pb2.GenerationConfig, violations: Violations) -> None:
    if config.early_stopping not in EARLY_STOPPING:
        violations.add(f"{_CONFIG}.early_stopping", "must be a value that this server knows", config.early_stopping)
    if config.HasField("watermarking_config"):
        watermark = config.watermarking_config
        if watermark.WhichOneof("scheme") is None:
            violations.add(f"{_CONFIG}.watermarking_config", "must have a scheme", Verbatim("none"))
        elif watermark.green_list.seeding_scheme not in SEEDING_SCHEMES:
            path = f"{_CONFIG}.watermarking_config.green_list.seeding_scheme"
            violations.add(path, "must be a value that this server knows", watermark.green_list.seeding_scheme)


def check_sizes(config: generation_pb2.GenerationConfig, limits: LimitsConfig, violations: Violations) -> bool:
    """Check counts and lengths, on the message. False where something is too long to be copied and looked into."""
    stop_strings = config.stop_strings.values
    path = f"{_CONFIG}.stop_strings.values"
    fits = within(stop_strings, limits.max_stop_strings, violations, path, "strings")
    if fits:
        for index, text in enumerate(stop_strings):
            size = len(text.encode())
            if size > limits.max_stop_string_bytes:
                rule = f"must be at most {limits.max_stop_string_bytes} bytes"
                violations.add(f"{path}[{index}]", rule, Verbatim(f"{size} bytes"))
                fits = False
    for ids, name in (
        (config.eos_token_id.ids, "eos_token_id.ids"),
        (config.stop_token_ids, "stop_token_ids"),
        (config.suppress_tokens.ids, "suppress_tokens.ids"),
        (config.begin_suppress_tokens.ids, "begin_suppress_tokens.ids"),
        (config.forced_eos_token_id.ids, "forced_eos_token_id.ids"),
        (config.allowed_token_ids.ids, "allowed_token_ids.ids"),
    ):
        fits = within(ids, limits.max_token_ids, violations, f"{_CONFIG}.{name}", "ids") and fits
    bias = config.logit_bias
    fits = within(bias, limits.max_logit_bias, violations, f"{_CONFIG}.logit_bias", "entries") and fits
    for sequences, name in (
        (config.bad_words_ids.sequences, "bad_words_ids.sequences"),
        (config.sequence_bias.entries, "sequence_bias.entries"),
    ):
        path = f"{_CONFIG}.{name}"
        if not within(sequences, limits.max_token_sequences, violations, path, "sequences"):
            fits = False
            continue
        total = sum(len(sequence.ids) for sequence in sequences)
        if total > limits.max_token_ids:
            violations.add(path, f"must have at most {limits.max_token_ids} ids together", Verbatim(f"{total} ids"))
            fits = False
    keys = config.watermarking_config.synth_id_text.keys
    path = f"{_CONFIG}.watermarking_config.synth_id_text.keys"
    return within(keys, MAX_SYNTH_ID_KEYS, violations, path, "keys") and fits


def check_generation(overrides: GenerationOverrides, bounds: Bounds, violations: Violations, shape: Shape) -> None:
    """Check the settings of a request that passed ``check_sizes``: ranges, and the rules between them."""
    info = bounds.info
    violations.extend(_range_violations(overrides, info))
    _check_context_fields(overrides, info.context_length, violations)
    suppressed = overrides.suppress_tokens or ()
    if len(suppressed) >= info.vocab_size and len(set(suppressed)) >= info.vocab_size:
        violations.add(f"{_CONFIG}.suppress_tokens.ids", "must leave a token to generate", Verbatim("the vocabulary"))
    shape = shape._replace(prompt_tokens=min(shape.prompt_tokens, bounds.max_sequence_tokens - 1))
    resolution = _resolve(overrides, bounds, shape)
    violations.extend(resolution.violations)
    if resolution.settings is not None:
        _check_rows(resolution.settings, bounds, violations)


def _check_context_fields(overrides: GenerationOverrides, context_length: int, violations: Violations) -> None:
    rule = f"must be from 0 to the context's {context_length}"
    for name in _CONTEXT_FIELDS:
        value = getattr(overrides, name)
        if value is not None and not 0 <= value <= context_length:
            violations.add(f"{_CONFIG}.{name}", rule, value)
    if overrides.exponential_decay_length_penalty is not None:
        start_index = overrides.exponential_decay_length_penalty[0]
        if not 0 <= start_index <= context_length:
            violations.add(f"{_CONFIG}.exponential_decay_length_penalty.start_index", rule, start_index)


def _check_rows(settings: GenerationSettings, bounds: Bounds, violations: Violations) -> None:
    # On what is in force: the model's defaults must not ask for more than the operator allows either.
    limits = bounds.limits
    for name, limit in (("num_return_sequences", limits.max_return_sequences), ("num_beams", limits.max_beams)):
        value = getattr(settings, name)
        if value > limit:
            violations.add(f"{_CONFIG}.{name}", f"must be from 1 to {limit}", value)
    if settings.guidance_scale != 1 and bounds.max_running < ROWS_WITH_GUIDANCE:
        rule = f"must be 1: guidance takes {ROWS_WITH_GUIDANCE} rows at once, and max_running is {bounds.max_running}"
        violations.add(f"{_CONFIG}.guidance_scale", rule, settings.guidance_scale)


def check_supported(overrides: GenerationOverrides, info: ModelInfo) -> None:
    """Raise UnsupportedError for a strategy that needs what this server does not have."""
    if (overrides.num_assistant_tokens or 0) > 0 and not info.draft_model:
        raise UnsupportedError(
            "NO_DRAFT_MODEL", "num_assistant_tokens needs a draft model, and this server runs without one"
        )


def resolve_settings(overrides: GenerationOverrides, output: Output, bounds: Bounds, shape: Shape) -> Resolved:
    """The settings in force for a prompt of this length. Raises InvalidRequestError."""
    resolution = _resolve(overrides, bounds, shape)
    if resolution.settings is None:
        raise InvalidRequestError(list(resolution.violations))
    limit = bounds.info.max_scored_prompt_tokens
    if output.prompt_logprobs is not None and limit is not None and shape.prompt_tokens > limit:
        rule = f"must be unset for a prompt above {limit} tokens: this model computes a prompt in one pass"
        raise InvalidRequestError([Violation("output.prompt_logprobs", rule, f"{shape.prompt_tokens} tokens")])
    settings = msgspec.structs.replace(
        resolution.settings,
        logprobs=output.logprobs,
        prompt_logprobs=output.prompt_logprobs,
        processed_logprobs=output.processed_logprobs,
        explain=output.explain,
        skip_special_tokens=output.skip_special_tokens,
    )
    notes = resolution.notes
    if output.processed_logprobs and output.logprobs is None:
        message = "processed_logprobs has no effect without logprobs; set output.logprobs."
        notes = (*notes, Note("processed_logprobs_without_effect", message))
    return Resolved(settings, notes, resolution.length_is_default)


def num_rows_for(overrides: GenerationOverrides, defaults: GenerationOverrides) -> int:
    """Rows of a batch that a request with these valid settings takes, before its prompt is known."""
    names = ("num_beams", "num_return_sequences", "guidance_scale")
    return num_rows_of(*(chosen(overrides, defaults, name, 1) for name in names))


def circumstances_of(bounds: Bounds, shape: Shape) -> Circumstances:
    """What settings meet with on this server."""
    return Circumstances(
        context_length=bounds.max_sequence_tokens,
        vocab_size=bounds.info.vocab_size,
        num_assistant_tokens=bounds.info.num_assistant_tokens,
        **shape._asdict(),
    )


def _resolve(overrides: GenerationOverrides, bounds: Bounds, shape: Shape) -> Resolution:
    return resolve(overrides, bounds.info.defaults, circumstances_of(bounds, shape))


def _range_violations(overrides: GenerationOverrides, info: ModelInfo) -> Iterator[Violation]:
    # A length that follows from the prompt is judged once the prompt is tokenized.
    for violation in out_of_range(overrides, vocab_size=info.vocab_size, max_new_tokens=info.context_length):
        yield Violation(path_of(violation.field), violation.rule, shorten(Verbatim(violation.value)))


def path_of(field: str) -> str:
    """Path in the request of what ranges call ``field``: ``bad_words_ids[1][0]`` is the first id of a sequence."""
    name, bracket, index = field.partition("[")
    index = index.replace("][", "].ids[")
    return f"{_CONFIG}.{_LIST_PATHS.get(name, name)}{bracket}{index}"
