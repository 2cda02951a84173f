"""Generation settings: what a caller overrides, what the model defaults to, and what is in force.

Precedence (transformers' own): request field > the model's generation_config.json > transformers' default.
"""

import secrets
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from tokenwire.errors import Violation

DEFAULT_MAX_NEW_TOKENS = 20
"""What transformers generates when neither max_new_tokens nor max_length is set."""

DEFAULT_TOP_K = 50
"""transformers' top_k when sampling and nobody set it."""

SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Fields with an effect only when sampling. Not the seed: it chooses among draws, not that there are any."""


class GreenListWatermark(msgspec.Struct, frozen=True, kw_only=True, tag="green_list"):
    """transformers' WatermarkingConfig."""

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: int = 1


class SynthIdTextWatermark(msgspec.Struct, frozen=True, kw_only=True, tag="synth_id_text"):
    """transformers' SynthIDTextWatermarkingConfig."""

    ngram_len: int
    keys: tuple[int, ...]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False


Watermark = GreenListWatermark | SynthIdTextWatermark
EarlyStopping = Literal["false", "true", "never"]


class GenerationOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of a request's GenerationConfig, or of a model's generation_config.json; None is "not set"."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    stop_strings: tuple[str, ...] | None = None
    eos_token_ids: tuple[int, ...] | None = None
    stop_token_ids: tuple[int, ...] = ()
    include_stop_string: bool | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    suppress_tokens: tuple[int, ...] | None = None
    max_time: float | None = None
    min_length: int | None = None
    deadline_aware: bool | None = None
    top_h: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    renormalize_logits: bool | None = None
    watermark: Watermark | None = None
    no_repeat_ngram_size: int | None = None
    encoder_repetition_penalty: float | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] | None = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    guidance_scale: float | None = None
    num_return_sequences: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    num_assistant_tokens: int | None = None
    token_healing: bool | None = None


class GenerationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings in force for one sequence: every value decided."""

    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = DEFAULT_TOP_K
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_string: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    suppress_tokens: tuple[int, ...] = ()
    max_time: float | None = None
    """Seconds from acceptance."""
    min_length: int = 0
    top_h: float | None = None
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    renormalize_logits: bool = False
    watermark: Watermark | None = None
    no_repeat_ngram_size: int = 0
    encoder_repetition_penalty: float = 1.0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    begin_suppress_tokens: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    guidance_scale: float = 1.0
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = "false"
    prompt_lookup_num_tokens: int = 0
    max_matching_ngram_size: int = 2
    num_assistant_tokens: int = 0
    deadline_aware: bool = False
    token_healing: bool = False
    healed_prefix: str = ""
    """Vocabulary entry of the token that was taken off the prompt, which the first generated token must begin with;
    empty where nothing is healed."""
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    processed_logprobs: bool = False
    skip_special_tokens: bool = True


class Note(NamedTuple):
    """Something done as asked that is probably not what was meant; the domain form of generation.proto's Warning."""

    code: str
    message: str


class Resolution(NamedTuple):
    """What ``resolve`` decided. With violations ``settings`` is None."""

    settings: GenerationSettings | None
    notes: tuple[Note, ...]
    """Known before the first token."""
    length_is_default: bool
    """Nobody set a length: an answer that ends with reason length was cut at DEFAULT_MAX_NEW_TOKENS, or where the
    context ended before."""
    violations: tuple[Violation, ...]


def resolve(
    overrides: GenerationOverrides,
    defaults: GenerationOverrides,
    *,
    prompt_tokens: int,
    context_length: int,
    vocab_size: int,
    logprobs: int | None = None,
    processed_logprobs: bool = False,
    skip_special_tokens: bool = True,
    draw_seed: Callable[[], int] = lambda: secrets.randbits(63),
) -> Resolution:
    """Decide every setting of one sequence, as transformers' ``generate`` would.

    ``context_length`` is the most tokens of prompt and answer together; ``draw_seed`` gives a seed in [0, 2^63) when
    the request has none. Checks the rules between fields, the prompt and the context, and reports all violations,
    under ``generation_config.``; a prompt that fills the context is a violation of ``prompt``. The range of each field
    alone is the caller's to check (``ranges.out_of_range``), and so are counts and sizes of lists.

    Length (transformers' ``_prepare_generated_length``): max_new_tokens wins over max_length, also one from the
    model's defaults over a max_length of the request; neither set: DEFAULT_MAX_NEW_TOKENS. A default is cut to the
    room that the context leaves, a value of the request that does not fit is a violation.

    Sampling: a sampling field in the request without do_sample implies do_sample; with do_sample false it is a
    violation.
    """
    violations: list[Violation] = []
    notes: list[Note] = []
    sampling_fields = [name for name in SAMPLING_FIELDS if getattr(overrides, name) is not None]

    max_new_tokens, length_is_default = _resolve_length(
        overrides, defaults, prompt_tokens, context_length, violations, notes
    )
    if overrides.min_new_tokens is not None and overrides.min_new_tokens > max_new_tokens >= 1:
        violations.append(_violation("min_new_tokens", f"must be at most max_new_tokens, {max_new_tokens}", overrides))
    if overrides.do_sample is False:
        violations.extend(
            _violation(name, "must be unset when do_sample is false", overrides) for name in sampling_fields
        )
    do_sample = bool(sampling_fields or defaults.do_sample) if overrides.do_sample is None else overrides.do_sample
    if not do_sample and overrides.seed is not None:
        notes.append(Note("seed_without_effect", "The seed has no effect without sampling; set do_sample."))
    if violations:
        return Resolution(None, tuple(notes), length_is_default, tuple(violations))

    def chosen(name: str, fallback: Any) -> Any:
        value = getattr(overrides, name)
        if value is None:
            value = getattr(defaults, name)
        return fallback if value is None else value

    settings = GenerationSettings(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min(chosen("min_new_tokens", 0), max_new_tokens),
        do_sample=do_sample,
        temperature=chosen("temperature", 1.0),
        top_k=min(chosen("top_k", DEFAULT_TOP_K), vocab_size),
        top_p=chosen("top_p", 1.0),
        min_p=chosen("min_p", 0.0),
        typical_p=chosen("typical_p", 1.0),
        seed=draw_seed() if overrides.seed is None else overrides.seed,
        stop_strings=chosen("stop_strings", ()),
        eos_token_ids=chosen("eos_token_ids", ()),
        stop_token_ids=overrides.stop_token_ids,
        include_stop_string=chosen("include_stop_string", False),
        repetition_penalty=chosen("repetition_penalty", 1.0),
        presence_penalty=chosen("presence_penalty", 0.0),
        frequency_penalty=chosen("frequency_penalty", 0.0),
        logit_bias=overrides.logit_bias,
        suppress_tokens=chosen("suppress_tokens", ()),
        logprobs=logprobs,
        processed_logprobs=processed_logprobs,
        skip_special_tokens=skip_special_tokens,
    )
    return Resolution(settings, tuple(notes), length_is_default, ())


def _resolve_length(
    overrides: GenerationOverrides,
    defaults: GenerationOverrides,
    prompt_tokens: int,
    context_length: int,
    violations: list[Violation],
    notes: list[Note],
) -> tuple[int, bool]:
    """Most new tokens, and whether nobody chose that number. Appends to ``violations`` and ``notes``."""
    room = context_length - prompt_tokens
    if room < 1:
        rule = f"must be shorter than the context of {context_length} tokens"
        violations.append(Violation("prompt", rule, f"{prompt_tokens} tokens"))
        return 1, False
    if overrides.max_new_tokens is not None:
        if overrides.max_length is not None:
            notes.append(Note("max_length_ignored", "max_new_tokens is set as well and wins over max_length."))
        if overrides.max_new_tokens > room:
            rule = f"must leave room for the prompt's tokens in the context of {context_length}"
            violations.append(_violation("max_new_tokens", rule, overrides))
        return overrides.max_new_tokens, False
    if defaults.max_new_tokens is not None:
        if overrides.max_length is not None:
            message = (
                f"The model's default max_new_tokens, {defaults.max_new_tokens}, wins over max_length; "
                "set max_new_tokens instead."
            )
            notes.append(Note("max_length_ignored", message))
        return min(defaults.max_new_tokens, room), False
    if overrides.max_length is not None:
        if not prompt_tokens < overrides.max_length <= context_length:
            rule = f"must be above the number of the prompt's tokens and at most the context's {context_length}"
            violations.append(_violation("max_length", rule, overrides))
        return overrides.max_length - prompt_tokens, False
    if defaults.max_length is not None:
        if defaults.max_length <= prompt_tokens:
            rule = f"must be above the prompt's {prompt_tokens} tokens; this is the model's default, set max_new_tokens"
            violations.append(Violation("generation_config.max_length", rule, str(defaults.max_length)))
        return min(defaults.max_length - prompt_tokens, room), False
    return min(DEFAULT_MAX_NEW_TOKENS, room), True


def _violation(field: str, rule: str, overrides: GenerationOverrides) -> Violation:
    return Violation(f"generation_config.{field}", rule, repr(getattr(overrides, field)))
