"""Generation settings: what a caller overrides, what the model defaults to, and what is in force.

Precedence (transformers' own): request field > the model's generation_config.json > transformers' default.
"""

import msgspec

DEFAULT_MAX_NEW_TOKENS = 20
"""What transformers generates when neither max_new_tokens nor max_length is set."""

DEFAULT_TOP_K = 50
"""transformers' top_k when sampling and nobody set it."""


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
    logprobs: int | None = None
    processed_logprobs: bool = False
    skip_special_tokens: bool = True
