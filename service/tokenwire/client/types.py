"""What the client takes and what it says of models and texts: plain frozen dataclasses, no protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Prompt = str | Sequence[int]
"""A prompt as text, or as token ids to which nothing is added."""


@dataclass(frozen=True, slots=True)
class GreenListWatermark:
    """A green-list watermark; fields and defaults of transformers' WatermarkingConfig."""

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: Literal["lefthash", "selfhash"] = "lefthash"
    context_width: int = 1


@dataclass(frozen=True, slots=True)
class SynthIdTextWatermark:
    """A SynthID watermark; fields and defaults of transformers' SynthIDTextWatermarkingConfig."""

    ngram_len: int
    keys: tuple[int, ...]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False


Watermark = GreenListWatermark | SynthIdTextWatermark
EarlyStopping = bool | Literal["never"]
SequenceBias = Mapping[tuple[int, ...], float] | Sequence[tuple[Sequence[int], float]]
"""Biases on token sequences, in either notation of transformers."""


class GenerationOptions(TypedDict, total=False):
    """How to generate; names and meanings are those of transformers' GenerationConfig. None means "not set"."""

    max_new_tokens: int | None
    """Most tokens to generate. Default: 20 when max_length is unset as well."""
    max_length: int | None
    """Most tokens of prompt and answer together."""
    min_new_tokens: int | None
    """Fewest tokens before an EOS token is allowed. Default: 0."""
    min_length: int | None
    """Fewest tokens of prompt and answer together before an EOS token is allowed. Default: 0."""
    max_time: float | None
    """Most seconds until the answer ends as it is, above 0. Default: no limit."""
    deadline_aware: bool | None
    """End the answer shortly before the call's timeout instead of losing it. Default: false."""
    do_sample: bool | None
    """Draw from the distribution. Default: false, or true when a sampling setting is given."""
    temperature: float | None
    """Divides the logits before sampling, above 0. Default: 1."""
    top_k: int | None
    """Keep the k most likely tokens; 0 is off. Default: 50 when sampling."""
    top_p: float | None
    """Keep the most likely tokens up to this mass, above 0 to 1. Default: 1."""
    min_p: float | None
    """Drop tokens less likely than min_p times the most likely one, 0 to 1. Default: 0."""
    typical_p: float | None
    """Locally typical sampling up to this mass, above 0 to 1. Default: 1."""
    top_h: float | None
    """Keep the most likely tokens up to this share of the entropy, above 0 to 1. Default: off."""
    epsilon_cutoff: float | None
    """Drop tokens less likely than this, 0 to below 1. Default: 0 (off)."""
    eta_cutoff: float | None
    """Drop unlikely tokens by entropy, 0 to below 1. Default: 0 (off)."""
    renormalize_logits: bool | None
    """Renormalize the logits after all processors. Default: false."""
    watermarking_config: Watermark | None
    """Mark the answer for a detector with the same key. Default: the model's, or none."""
    seed: int | None
    """Seed of the draws, any 64-bit integer. Default: drawn by the server and returned in the start."""
    stop_strings: str | Sequence[str] | None
    """Strings that end the answer. Default: the model's."""
    eos_token_id: int | Sequence[int] | None
    """Tokens that end a sequence. Default: the model's; empty: none."""
    stop_token_ids: Sequence[int] | None
    """Further tokens that end a sequence. Default: none."""
    include_stop_string: bool | None
    """Keep the matched stop string in the text. Default: false."""
    repetition_penalty: float | None
    """Penalty on tokens seen in prompt or answer, above 0. Default: 1 (off)."""
    presence_penalty: float | None
    """Subtracted once from tokens already generated, -2 to 2. Default: 0 (off)."""
    frequency_penalty: float | None
    """Subtracted once per time a token was generated, -2 to 2. Default: 0 (off)."""
    logit_bias: Mapping[int, float] | None
    """Added to the logits of token ids, -100 to 100. Default: empty."""
    suppress_tokens: Sequence[int] | None
    """Tokens that are never generated. Default: the model's."""
    begin_suppress_tokens: Sequence[int] | None
    """Tokens that are not generated first. Default: the model's."""
    allowed_token_ids: Sequence[int] | None
    """The only tokens that may be generated. Default: all."""
    forced_bos_token_id: int | None
    """The first generated token where the prompt is one token long. Default: the model's, or none."""
    forced_eos_token_id: int | Sequence[int] | None
    """The only tokens allowed as the last one that the length leaves room for. Default: the model's."""
    bad_words_ids: Sequence[Sequence[int]] | None
    """Sequences of tokens that are never generated. Default: the model's."""
    sequence_bias: SequenceBias | None
    """Biases on sequences of tokens. Default: the model's."""
    no_repeat_ngram_size: int | None
    """No n-gram of this many tokens occurs twice in prompt and answer. Default: 0 (off)."""
    encoder_repetition_penalty: float | None
    """Reward on tokens of the prompt, above 0. Default: 1 (off)."""
    encoder_no_repeat_ngram_size: int | None
    """No n-gram of the prompt of this many tokens occurs in the answer. Default: 0 (off)."""
    remove_invalid_values: bool | None
    """Replace NaN and infinite logits by finite ones. Default: false."""
    exponential_decay_length_penalty: tuple[int, float] | None
    """Make EOS likelier from so many tokens on, by this factor per token. Default: off."""
    guidance_scale: float | None
    """Steer away from negative_prompt, -100 to 100. Default: 1 (off)."""
    num_return_sequences: int | None
    """Sequences to return; above 1 with sampling or beams. Default: 1."""
    num_beams: int | None
    """Beams of beam search; not in streaming calls. Default: 1 (off)."""
    length_penalty: float | None
    """Scores of beams are divided by length to the power of this, -10 to 10. Default: 1."""
    early_stopping: EarlyStopping | None
    """When beam search ends: false, true or "never", as in transformers. Default: false."""
    prompt_lookup_num_tokens: int | None
    """Propose so many tokens per step from the text so far; only faster. 0 (off) to 64. Default: 0."""
    max_matching_ngram_size: int | None
    """Longest n-gram that prompt lookup matches, 1 to 16. Default: 2."""
    num_assistant_tokens: int | None
    """Tokens per step that the server's draft model proposes; only faster. Default: the server's."""
    token_healing: bool | None
    """Put the most likely token that begins with the prompt's last one in its place. Default: false."""


class OutputOptions(TypedDict, total=False):
    """What an answer carries beside its text."""

    logprobs: int | None
    """Log probabilities of the chosen token and of this many most likely ones. Default: none."""
    processed_logprobs: bool | None
    """Take them after penalties, filters and temperature. Default: false."""
    skip_special_tokens: bool | None
    """Leave special tokens out of the text. Default: true."""
    prompt_logprobs: int | None
    """Log probabilities of the prompt's tokens and of this many most likely ones. Default: none."""
    echo: bool | None
    """Put the prompt's text in front of the answer. Default: false."""
    token_details: bool | None
    """Each token's piece, bytes and place in the text. Default: false."""
    explain: bool | None
    """What every setting did to the distribution of each of the first 256 tokens. Not with beams. Default: false."""


class ResumeOptions(TypedDict, total=False):
    """How any call is made."""

    timeout: float | None
    """Seconds until the call is given up. Default: the client's."""
    metadata: Mapping[str, str]
    """Further metadata of the call; keys in lower case."""


class CallOptions(ResumeOptions, total=False):
    """How a call that begins something is made."""

    model: str
    """Model id. Default: the served model."""
    request_id: str
    """Id under which the server logs the call. Default: one that the server makes."""


class SpecialTokenOptions(TypedDict, total=False):
    """How the tokenizer treats special tokens. Prompts of token ids are left as they are."""

    add_special_tokens: bool | None
    """Let the tokenizer add its own, BOS and the like. Default: true."""
    parse_special_tokens: bool | None
    """Read those written in the text as such; turn off for text from strangers. Default: true."""


class ConversationOptions(TypedDict, total=False):
    """How the model's chat template renders a conversation."""

    tools: Sequence[Mapping[str, Any]] | None
    """Tools offered to the model, in the form of OpenAI and transformers. Default: none."""
    documents: Sequence[Mapping[str, str] | str] | None
    """Documents for templates that read them: texts, or a title and a text each. Default: none."""
    template_variables: Mapping[str, str | float | bool] | None
    """Variables of the template, for example enable_thinking. Default: none."""
    template_name: str | None
    """Which of the model's templates. Default: tool_use with tools, where there is one; otherwise default."""
    add_generation_prompt: bool | None
    """Append the marker that opens the assistant's turn. Default: true, or false with continue_final_message."""
    continue_final_message: bool | None
    """Leave the last message open, so that the answer continues it. Default: false."""


Priority = Literal["low", "normal", "high"]


class RequestOptions(GenerationOptions, OutputOptions, CallOptions, total=False):
    """Options that every generating call has."""

    priority: Priority | None
    """Where the request waits; at most the caller's own, which is the default."""


class StreamingOptions(TypedDict, total=False):
    """What only streams can be asked for."""

    resumable: bool
    """Let the server keep the answer, so that the stream goes on by itself when its connection breaks, and can be
    resumed by its request id. Where the server keeps none: FailedPrecondition. Default: false."""


class GuidanceOptions(TypedDict, total=False):
    """What an answer is steered away from."""

    negative_prompt: Prompt | None
    """The prompt that guidance_scale steers away from, as text or token ids. Default: the prompt's last token, or
    the one before it where that is healed."""


class BatchOptions(RequestOptions, SpecialTokenOptions, total=False):
    """Options of the call that continues many prompts."""

    negative_prompts: Sequence[Prompt] | None
    """What guidance_scale steers away from, one for each prompt. Default: the last token of each prompt."""


class PromptOptions(RequestOptions, SpecialTokenOptions, GuidanceOptions, StreamingOptions, total=False):
    """Options of the calls that continue a prompt."""


class ChatOptions(RequestOptions, ConversationOptions, GuidanceOptions, StreamingOptions, total=False):
    """Options of the calls that answer a conversation."""


class TokenizeOptions(CallOptions, SpecialTokenOptions, total=False):
    """Options of ``tokenize``."""


class DetokenizeOptions(CallOptions, total=False):
    """Options of ``detokenize``."""

    skip_special_tokens: bool | None
    """Leave special tokens out of the text. Default: true."""


class RenderOptions(CallOptions, ConversationOptions, total=False):
    """Options of ``render_chat``."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the assistant made."""

    name: str
    arguments: Mapping[str, Any] | str = "{}"
    """The arguments, or their JSON text."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    """system, developer, user, assistant or tool."""
    content: str = ""
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """Which call a message of role tool answers."""
    reasoning_content: str = ""


Message = ChatMessage | Mapping[str, Any]
"""A message, or the same as a dict in the form of OpenAI and transformers: role, content, name, tool_calls, …"""
Messages = str | Sequence[Message]
"""A conversation, oldest message first; a string is one message of the user."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text."""

    id: int
    piece: str
    """The vocabulary entry as the tokenizer stores it."""
    range: tuple[int, int]
    """Half-open range of UTF-8 bytes of the text; empty for tokens that were added."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation as the prompt that the model sees."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token with a role."""

    name: str
    text: str
    id: int


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """How much of a sequence has arrived."""

    sequence_index: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of its text."""
    token_count: int | None = None
    """Default: the tokens of that text; those without any text behind it are sent again."""
    is_finished: bool = False
    """Whether its finish has arrived."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Bounds that requests are checked against; see model_service.proto."""

    max_sequence_tokens: int
    max_running_count: int
    max_queued_count: int
    max_queued_token_count: int
    max_batch_size: int
    max_stop_string_count: int
    max_stop_string_bytes: int
    max_token_id_count: int
    max_logit_bias_count: int
    max_logprobs: int
    max_explained_token_count: int
    max_token_sequence_count: int
    max_return_sequences: int
    max_beams: int
    max_message_count: int
    max_tool_count: int
    max_document_count: int
    max_template_variable_count: int
    max_message_bytes: int
    resume_window_ms: int
    """How long a resumable stream is kept; 0 where none are."""
    max_retained_stream_bytes: int
    max_retained_bytes: int


@dataclass(frozen=True, slots=True)
class Model:
    """A served model."""

    id: str
    revision: str
    architecture: str
    quantization: str
    """none, nf4, fp4 or int8."""
    dtype: str
    device_map: Mapping[str, str]
    """Module name to device."""
    forward_path: str
    """paged or padded."""
    forward_path_reason: str
    parameter_count: int
    context_length: int
    vocab_size: int
    special_tokens: tuple[SpecialToken, ...]
    has_chat_template: bool
    chat_template_names: tuple[str, ...]
    """Names of the chat templates; a single one is called default."""
    default_generation_config: GenerationOptions
    limits: ModelLimits
    unapplied_defaults: tuple[str, ...]
    draft_model: str = ""
    """Id of the draft model that proposes tokens; empty where there is none."""

    @property
    def device(self) -> str:
        """The devices it lies on, for example cpu, or cuda:0, cuda:1."""
        return ", ".join(sorted(set(self.device_map.values())))
