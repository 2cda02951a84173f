"""Decides the settings in force: request field > the model's generation_config.json > transformers' default.

The rules between fields are those of transformers' ``GenerationConfig.validate`` and ``generate``. What a request
contradicts is refused; where transformers only warns, so does this. A default of the model that merely makes things
faster gives way without a word; one that changes answers is refused like the request's own, and named as the model's.
"""

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from tokenwire.engine.settings import (
    DEFAULT_MAX_MATCHING_NGRAM_SIZE,
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_TOP_K,
    SAMPLING_FIELDS,
    GenerationOverrides,
    GenerationSettings,
)
from tokenwire.errors import Violation, spelled

NEUTRAL_SAMPLING = {
    "temperature": 1.0,
    "top_k": DEFAULT_TOP_K,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Value of each sampling field that says no more than leaving it unset."""

_PATHS = {
    "allowed_token_ids": "allowed_token_ids.ids",
    "forced_eos_token_ids": "forced_eos_token_id.ids",
}


class Note(NamedTuple):
    """Something done as asked that is probably not what was meant; the domain form of generation.proto's Warning."""

    code: str
    message: str


class Circumstances(NamedTuple):
    """What a request's settings meet with."""

    prompt_tokens: int
    """How many the prompt has, or at least has."""
    context_length: int
    """Most tokens of prompt and answer together."""
    vocab_size: int
    is_streaming: bool = False
    has_text_prompt: bool = True
    """The prompt is text, not token ids."""
    negative_prompt_field: str = ""
    """The request's field that gives a negative prompt; empty where none does."""
    has_deadline: bool = True
    """The call has one."""
    num_assistant_tokens: int = 0
    """What the server lets its draft model propose where nobody says; 0 without a draft model."""


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
    circumstances: Circumstances,
    *,
    draw_seed: Callable[[], int] = lambda: secrets.randbits(63),
) -> Resolution:
    """Decide every setting of one request, as transformers' ``generate`` would.

    ``draw_seed`` gives a seed in [0, 2^63) when the request has none. Checks the rules between fields, the prompt and
    the context, and reports all violations, under ``generation_config.``; a prompt that fills the context is a
    violation of ``prompt``. The range of each field alone is the caller's to check (``ranges.out_of_range``), and so
    are counts and sizes of lists. What belongs to the output (log probabilities, special tokens) is the caller's to
    fill in.

    Length (transformers' ``_prepare_generated_length``): max_new_tokens wins over max_length, also one from the
    model's defaults over a max_length of the request, and min_new_tokens over min_length alike; neither set:
    DEFAULT_MAX_NEW_TOKENS. A default is cut to the room that the context leaves, a value of the request that does not
    fit is a violation.

    Sampling: a sampling field in the request without do_sample implies do_sample; with do_sample false it is a
    violation.
    """
    return _Resolver(overrides, defaults, circumstances).resolve(draw_seed)


def chosen(overrides: GenerationOverrides, defaults: GenerationOverrides, name: str, fallback: Any) -> Any:
    """A setting by precedence, whatever other settings say."""
    value = getattr(overrides, name)
    if value is None:
        value = getattr(defaults, name)
    return fallback if value is None else value


class _Resolver:
    """One call of ``resolve``."""

    def __init__(
        self, overrides: GenerationOverrides, defaults: GenerationOverrides, circumstances: Circumstances
    ) -> None:
        self._overrides = overrides
        self._defaults = defaults
        self._given = circumstances
        self._violations: list[Violation] = []
        self._notes: list[Note] = []

    def resolve(self, draw_seed: Callable[[], int]) -> Resolution:
        overrides, value = self._overrides, self._chosen
        max_new_tokens, length_is_default = self._length()
        min_new_tokens, min_length = self._least_length(max_new_tokens)
        do_sample = self._sampling()
        self._beams_and_sequences(do_sample)
        self._guidance()
        prompt_lookup_num_tokens, num_assistant_tokens = self._drafts()
        token_healing = self._token_healing()
        self._allowed_and_forced()
        self._without_effect(prompt_lookup_num_tokens)
        if overrides.deadline_aware and not self._given.has_deadline:
            self._note("deadline_aware_without_effect", "deadline_aware has no effect: the call has no deadline.")
        if self._violations:
            return Resolution(None, tuple(self._notes), length_is_default, tuple(self._violations))
        settings = GenerationSettings(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            min_length=min_length,
            do_sample=do_sample,
            temperature=value("temperature", 1.0),
            top_k=min(value("top_k", DEFAULT_TOP_K), self._given.vocab_size),
            top_p=value("top_p", 1.0),
            min_p=value("min_p", 0.0),
            typical_p=value("typical_p", 1.0),
            top_h=value("top_h", None),
            epsilon_cutoff=value("epsilon_cutoff", 0.0),
            eta_cutoff=value("eta_cutoff", 0.0),
            seed=draw_seed() if overrides.seed is None else overrides.seed,
            stop_strings=value("stop_strings", ()),
            eos_token_ids=value("eos_token_ids", ()),
            stop_token_ids=overrides.stop_token_ids,
            include_stop_string=value("include_stop_string", False),
            max_time=value("max_time", None),
            deadline_aware=value("deadline_aware", False),
            repetition_penalty=value("repetition_penalty", 1.0),
            encoder_repetition_penalty=value("encoder_repetition_penalty", 1.0),
            presence_penalty=value("presence_penalty", 0.0),
            frequency_penalty=value("frequency_penalty", 0.0),
            no_repeat_ngram_size=value("no_repeat_ngram_size", 0),
            encoder_no_repeat_ngram_size=value("encoder_no_repeat_ngram_size", 0),
            logit_bias=overrides.logit_bias,
            sequence_bias=value("sequence_bias", ()),
            bad_words_ids=value("bad_words_ids", ()),
            suppress_tokens=value("suppress_tokens", ()),
            begin_suppress_tokens=value("begin_suppress_tokens", ()),
            allowed_token_ids=value("allowed_token_ids", None),
            forced_bos_token_id=value("forced_bos_token_id", None),
            forced_eos_token_ids=value("forced_eos_token_ids", ()),
            exponential_decay_length_penalty=value("exponential_decay_length_penalty", None),
            remove_invalid_values=value("remove_invalid_values", False),
            renormalize_logits=value("renormalize_logits", False),
            watermark=value("watermark", None),
            guidance_scale=value("guidance_scale", 1.0),
            num_return_sequences=value("num_return_sequences", 1),
            num_beams=value("num_beams", 1),
            length_penalty=value("length_penalty", 1.0),
            early_stopping=value("early_stopping", "false"),
            prompt_lookup_num_tokens=prompt_lookup_num_tokens,
            max_matching_ngram_size=value("max_matching_ngram_size", DEFAULT_MAX_MATCHING_NGRAM_SIZE),
            num_assistant_tokens=num_assistant_tokens,
            token_healing=token_healing,
        )
        return Resolution(settings, tuple(self._notes), length_is_default, ())

    # ---- what is set ---------------------------------------------------------------------------------------

    def _chosen(self, name: str, fallback: Any) -> Any:
        return chosen(self._overrides, self._defaults, name, fallback)

    def _is_requested(self, name: str) -> bool:
        return getattr(self._overrides, name) is not None

    def _refuse(self, name: str, rule: str) -> None:
        path = _PATHS.get(name, name)
        value = getattr(self._overrides, name)
        if value is None:
            value = getattr(self._defaults, name)
            rule = f"{rule}; this is the model's default, set {path.removesuffix('.ids')}"
        self._violations.append(Violation(f"generation_config.{path}", rule, spelled(value)))

    def _note(self, code: str, message: str) -> None:
        self._notes.append(Note(code, message))

    # ---- length --------------------------------------------------------------------------------------------

    def _length(self) -> tuple[int, bool]:
        """Most new tokens, and whether nobody chose that number."""
        overrides, defaults, context_length = self._overrides, self._defaults, self._given.context_length
        prompt_tokens = self._given.prompt_tokens
        room = context_length - prompt_tokens
        if room < 1:
            rule = f"must be shorter than the context of {context_length} tokens"
            self._violations.append(Violation("prompt", rule, f"{prompt_tokens} tokens"))
            return 1, False
        if overrides.max_new_tokens is not None:
            if overrides.max_length is not None:
                self._note("max_length_ignored", "max_new_tokens is set as well and wins over max_length.")
            if overrides.max_new_tokens > room:
                rule = f"must leave room for the prompt's tokens in the context of {context_length}"
                self._refuse("max_new_tokens", rule)
            return overrides.max_new_tokens, False
        if defaults.max_new_tokens is not None:
            if overrides.max_length is not None:
                message = (
                    f"The model's default max_new_tokens, {defaults.max_new_tokens}, wins over max_length; "
                    "set max_new_tokens instead."
                )
                self._note("max_length_ignored", message)
            return min(defaults.max_new_tokens, room), False
        if overrides.max_length is not None:
            if not prompt_tokens < overrides.max_length <= context_length:
                rule = f"must be above the number of the prompt's tokens and at most the context's {context_length}"
                self._refuse("max_length", rule)
            return overrides.max_length - prompt_tokens, False
        if defaults.max_length is not None:
            if defaults.max_length <= prompt_tokens:
                rule = (
                    f"must be above the prompt's {prompt_tokens} tokens; this is the model's default, "
                    "set max_new_tokens"
                )
                self._violations.append(Violation("generation_config.max_length", rule, str(defaults.max_length)))
            return min(defaults.max_length - prompt_tokens, room), False
        return min(DEFAULT_MAX_NEW_TOKENS, room), True

    def _least_length(self, max_new_tokens: int) -> tuple[int, int]:
        """min_new_tokens and min_length, of which only one is above 0."""
        requested = self._overrides.min_new_tokens
        if requested is not None and requested > max_new_tokens >= 1:
            self._refuse("min_new_tokens", f"must be at most max_new_tokens, {max_new_tokens}")
        min_new_tokens, min_length = self._chosen("min_new_tokens", None), self._chosen("min_length", 0)
        if min_new_tokens is not None:
            if (self._overrides.min_length or 0) > 0:
                whose = "" if requested is not None else "The model's default "
                self._note(
                    "min_length_ignored", f"{whose}min_new_tokens, {min_new_tokens}, is set and wins over min_length."
                )
            return min(min_new_tokens, max_new_tokens), 0
        longest = self._given.prompt_tokens + max_new_tokens
        if min_length > longest:
            self._note(
                "min_length_out_of_reach",
                f"min_length {min_length} is beyond the {longest} tokens that prompt and answer can have together; "
                "raise max_new_tokens.",
            )
        return 0, min_length

    # ---- strategy ------------------------------------------------------------------------------------------

    def _sampling(self) -> bool:
        overrides, defaults = self._overrides, self._defaults
        requested = [name for name in SAMPLING_FIELDS if self._is_requested(name)]
        if overrides.do_sample is False:
            for name in requested:
                self._refuse(name, "must be unset when do_sample is false")
        do_sample = bool(requested or defaults.do_sample) if overrides.do_sample is None else overrides.do_sample
        if do_sample:
            if self._chosen("top_k", DEFAULT_TOP_K) == 1:
                message = "top_k 1 leaves the most likely token alone to draw from: sampling has no effect."
                self._note("sampling_without_effect", message)
            return True
        if overrides.seed is not None:
            self._note("seed_without_effect", "The seed has no effect without sampling; set do_sample.")
        if overrides.do_sample is None:
            idle = [
                name for name, neutral in NEUTRAL_SAMPLING.items() if getattr(defaults, name) not in (None, neutral)
            ]
            if idle:
                message = (
                    f"The model's defaults set {', '.join(idle)} but not do_sample: the answer is greedy and they have "
                    "no effect; set do_sample."
                )
                self._note("sampling_without_effect", message)
        return False

    def _beams_and_sequences(self, do_sample: bool) -> None:
        num_beams, num_return_sequences = self._chosen("num_beams", 1), self._chosen("num_return_sequences", 1)
        if num_beams > 1:
            if num_return_sequences > num_beams:
                self._refuse("num_return_sequences", f"must be at most num_beams, {num_beams}")
            if self._given.is_streaming:
                self._refuse("num_beams", "must be 1 in a streaming call: beams are known at their end")
            if self._chosen("guidance_scale", 1.0) != 1:
                self._refuse("guidance_scale", "must be 1 with num_beams above 1")
            return
        if num_return_sequences > 1 and not do_sample:
            self._refuse("num_return_sequences", "must be 1 without do_sample and without num_beams")
        idle = []
        if self._overrides.length_penalty not in (None, 1.0):
            idle.append("length_penalty")
        if self._overrides.early_stopping not in (None, "false"):
            idle.append("early_stopping")
        if idle:
            message = f"Without beams there is no effect of {' and '.join(idle)}; set num_beams."
            self._note("beams_without_effect", message)

    def _guidance(self) -> None:
        field = self._given.negative_prompt_field
        if field and self._chosen("guidance_scale", 1.0) == 1:
            rule = "must be unset where generation_config.guidance_scale is unset or 1"
            self._violations.append(Violation(field, rule, "a prompt"))

    def _drafts(self) -> tuple[int, int]:
        """prompt_lookup_num_tokens and num_assistant_tokens, of which one is 0."""
        alone = [name for name in ("num_beams", "num_return_sequences") if self._chosen(name, 1) > 1]
        reasons = [f"{name} above 1" for name in alone]
        if self._chosen("guidance_scale", 1.0) != 1:
            reasons.append("guidance_scale")
        lookup, assistant = self._overrides.prompt_lookup_num_tokens, self._overrides.num_assistant_tokens
        if reasons:
            for name, count in (("prompt_lookup_num_tokens", lookup), ("num_assistant_tokens", assistant)):
                if count is not None and count > 0:
                    self._refuse(name, f"must be 0 with {' and '.join(reasons)}")
            return 0, 0
        if (lookup or 0) > 0 and (assistant or 0) > 0:
            self._refuse("num_assistant_tokens", "must be 0 with prompt_lookup_num_tokens")
        if assistant is not None and assistant > 0:
            return 0, assistant
        lookup = self._chosen("prompt_lookup_num_tokens", 0)
        if lookup > 0 or assistant is not None:
            return lookup, 0
        return 0, self._given.num_assistant_tokens

    def _token_healing(self) -> bool:
        hindrances = []
        if not self._given.has_text_prompt:
            hindrances.append("a prompt of token_ids")
        if self._chosen("num_beams", 1) > 1:
            hindrances.append("num_beams above 1")
        if not self._chosen("token_healing", False):
            return False
        if hindrances and self._is_requested("token_healing"):
            self._refuse("token_healing", f"must be unset with {' and '.join(hindrances)}")
        return not hindrances

    # ---- tokens --------------------------------------------------------------------------------------------

    def _allowed_and_forced(self) -> None:
        suppressed = set(self._chosen("suppress_tokens", ()))
        begin_suppressed = set(self._chosen("begin_suppress_tokens", ()))
        allowed = self._chosen("allowed_token_ids", None)
        for name, ids in (("suppress_tokens", suppressed), ("begin_suppress_tokens", begin_suppressed)):
            if allowed and ids.issuperset(allowed):
                self._refuse("allowed_token_ids", f"must have a token that is not one of {name}")
        bos, eos = self._chosen("forced_bos_token_id", None), self._chosen("forced_eos_token_ids", ())
        if bos is not None and bos in suppressed:
            self._refuse("forced_bos_token_id", "must not be one of suppress_tokens")
        if eos and suppressed.issuperset(eos):
            self._refuse("forced_eos_token_ids", "must not all be in suppress_tokens")

    # ---- the rest ------------------------------------------------------------------------------------------

    def _without_effect(self, prompt_lookup_num_tokens: int) -> None:
        """Notes on settings of the request that only act beside others which are not set."""
        overrides = self._overrides
        size = overrides.max_matching_ngram_size
        if size not in (None, DEFAULT_MAX_MATCHING_NGRAM_SIZE) and not prompt_lookup_num_tokens:
            message = "max_matching_ngram_size has no effect without prompt lookup; set prompt_lookup_num_tokens."
            self._note("ngram_size_without_effect", message)
        if overrides.renormalize_logits and self._chosen("num_beams", 1) == 1:
            message = "Without beams renormalize_logits has no effect: only beams compare scores of different steps."
            self._note("renormalize_without_effect", message)
        if overrides.include_stop_string and not self._chosen("stop_strings", ()):
            message = "include_stop_string has no effect without stop strings; set stop_strings."
            self._note("include_stop_string_without_effect", message)
