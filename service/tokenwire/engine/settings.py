"""Generation settings: what a caller overrides, what the model defaults to, and what is in force.

`resolution.resolve` makes the last of the first two.
"""

from typing import Literal

import msgspec

DEFAULT_MAX_NEW_TOKENS = 20
"""What transformers generates when neither max_new_tokens nor max_length is set."""

DEFAULT_MAX_MATCHING_NGRAM_SIZE = 2
"""transformers' longest n-gram of prompt lookup."""

DEFAULT_TOP_K = 50
"""transformers' top_k when sampling and nobody set it."""

SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "top_h",
    "epsilon_cutoff",
    "eta_cutoff",
)
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
    max_matching_ngram_size: int = DEFAULT_MAX_MATCHING_NGRAM_SIZE
    num_assistant_tokens: int = 0
    deadline_aware: bool = False
    token_healing: bool = False
    healed_token_id: int | None = None
    """The token that was taken off the prompt, whose place the first generated one takes; None where nothing is
    healed. No length counts it."""
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    processed_logprobs: bool = False
    explain: bool = False
    skip_special_tokens: bool = True

    @property
    def num_rows(self) -> int:
        """Rows of a batch that the request takes."""
        return num_rows_of(self.num_beams, self.num_return_sequences, self.guidance_scale)


ROWS_WITH_GUIDANCE = 2
"""Rows of a batch that a sequence under guidance takes, at the same time."""


def num_rows_of(num_beams: int, num_return_sequences: int, guidance_scale: float) -> int:
    """Rows of a batch that a request takes: one per sequence or beam, twice as many with guidance."""
    return max(num_beams, num_return_sequences) * (1 if guidance_scale == 1 else ROWS_WITH_GUIDANCE)
