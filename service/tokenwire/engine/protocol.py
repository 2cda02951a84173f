"""Frames between the front and the engine process: a closed set of commands one way, of events the other.

Each frame is a MessagePack value behind a 4-byte little-endian length (see `channel.py`). Nothing is pickled.
Request ids here are integers that the front hands out; they never leave the service.
"""

from typing import Literal

import msgspec

from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.engine.settings import GenerationOverrides, GenerationSettings

# ---- commands: front to engine -----------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True, tag="start"):
    """First command, once: load this model and run."""

    model: ModelConfig
    engine: EngineConfig


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Generate the sequences of one prompt. The front has validated everything.

    It ends in one Finish per sequence, or in one Failure or Abort for all of them.
    """

    request: int
    prompt_ids: list[int]
    settings: GenerationSettings
    sequence_index: int = 0
    """Of the first sequence; those of ``settings.num_return_sequences`` follow it."""
    negative_prompt_ids: list[int] | None = None
    """With guidance_scale; None means the last of ``prompt_ids``."""
    deadline: float | None = None
    """Monotonic seconds of this machine at which the caller's deadline passes, with deadline_aware."""


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Forget these requests before the next forward pass. Unknown and finished ones are ignored. Not answered."""

    requests: list[int]


class GetStats(msgspec.Struct, frozen=True, tag="get_stats"):
    """Answer with Stats after the current step."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the process after the current step, whatever is running. A closed socket means the same."""


Command = Start | Submit | Abort | GetStats | Stop


# ---- events: engine to front -------------------------------------------------------------------------------


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """A phase of start-up begins: importing, loading, quantizing, checking, warming."""

    phase: str


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the loaded model is; the domain form of model_service.proto's Model."""

    model_id: str
    revision: str
    architecture: str
    quantization: str
    dtype: str
    device_map: dict[str, str]
    forward_path: str
    """paged or padded."""
    forward_path_reason: str
    parameter_count: int
    context_length: int
    vocab_size: int
    """Columns of the logits: every id that can be generated or embedded is below it."""
    kv_token_capacity: int
    """Tokens that the KV cache holds, over all sequences."""
    special_tokens: dict[str, str]
    """Variables of the chat template: bos_token, eos_token and so on."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    tokenizer_json: str
    chat_templates: dict[str, str]
    """By name, in transformers' way: an only one is called default."""
    defaults: GenerationOverrides
    """From generation_config.json."""
    unapplied_defaults: tuple[str, ...]
    """Settings of generation_config.json that are not served, as name=value."""
    draft_model: str = ""
    """Id of the draft model; empty where there is none."""
    num_assistant_tokens: int = 0
    """What it proposes per step for a request that does not say; 0 where there is none."""
    max_scored_prompt_tokens: int | None = None
    """Tokens of the longest prompt for prompt_logprobs, where the model computes every prompt in one pass; otherwise
    None: any."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and a warm-up token came out."""

    info: ModelInfo


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model cannot be served; the process ends after this. One line for the operator."""

    message: str


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position."""

    logprob: float
    rank: int
    """From 1; the ranks in ``top`` follow from their order."""
    top: list[tuple[int, float]]


class TokenStanding(msgspec.Struct, frozen=True, array_like=True):
    """How a token stands in one distribution."""

    probability: float
    rank: int
    """From 1."""
    entropy: float
    """Of the distribution, in nats."""
    token_count: int
    """Tokens whose probability is above 0."""


class ProcessorEffect(msgspec.Struct, frozen=True, array_like=True):
    """What one processor or warper did, seen from the chosen token."""

    name: str
    removed_token_count: int
    before: TokenStanding | None
    """None where the logits are no distribution."""
    after: TokenStanding | None


class TokenExplanation(msgspec.Struct, frozen=True, array_like=True):
    """Why one token was chosen."""

    model: TokenStanding | None
    """In the model's own distribution; None where its logits are none."""
    effects: list[ProcessorEffect]
    outcome: TokenStanding | None
    """In the distribution that the token was chosen from."""


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """How a sequence ended, and its figures."""

    reason: str
    """eos, length, stop_string, stop_token, max_time or deadline."""
    stop_string: str | None
    stop_token_id: int | None
    prompt_token_count: int
    completion_token_count: int
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    cached_token_count: int = 0
    """Prompt tokens whose computation another sequence of the request did."""
    draft_token_count: int = 0
    accepted_draft_token_count: int = 0
    sequence_score: float | None = None
    """With beams."""
    eos_probability_max: float | None = None
    """Largest probability that any EOS token had, before processors, up to the first step where it reached 1e-6; below
    that, a bound that no step exceeded. None where there is no EOS token."""


class Delta(msgspec.Struct, array_like=True):
    """What one step gave one sequence of a request. ``finish`` on its last one."""

    request: int
    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprobs]
    """One per token when asked for, else empty."""
    finish: Finish | None
    sequence_index: int = 0
    """From 0 within the request."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """On the first delta of sequence 0, when asked for: one per prompt token from the second on."""
    explanations: list[TokenExplanation] | None = None
    """When asked for: one per token that is among the first of its sequence."""


FailureKind = Literal["row", "step", "capacity", "invalid"]
"""row: no usable logits. step: computing it raised. capacity: the prompt is empty, or can never fit with its answer.
invalid: settings that the sampler refuses. The last two are the front's to refuse, before they come here."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A request that ended without an answer."""

    request: int
    kind: FailureKind
    message: str
    """For the log where ``kind`` is row or step; otherwise for the caller."""


class StepOutputs(msgspec.Struct, tag="step"):
    """All that one step gave, in one message."""

    deltas: list[Delta]
    failures: list[Failure]


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """A look at the engine: between two steps where it was asked for, at any moment in a Beat."""

    running: int
    waiting: int
    blocks_total: int
    blocks_free: int
    steps: int
    preemptions: int
    resident_bytes: int
    draft_s: float = 0.0
    """Seconds of all steps, by what they went into (`step_times.StepTimes`)."""
    forward_s: float = 0.0
    sample_s: float = 0.0
    rest_s: float = 0.0


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """Sent every half second once the model is served, whatever the loop does meanwhile."""

    stalled_s: float
    """Seconds since the loop last got on: began a step, or came to the next layer of the model. 0 where it waits."""
    stats: Stats | None = None
    """As they were a moment ago; read by another thread than the loop's, which so has no work with them."""


Event = Loading | Ready | LoadFailed | StepOutputs | Stats | Beat
