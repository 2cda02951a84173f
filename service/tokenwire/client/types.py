"""What the client takes and returns: plain frozen dataclasses, no protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypedDict


class FinishReason(StrEnum):
    """Why a sequence ended."""

    UNSPECIFIED = "unspecified"
    """A reason that this version of the client does not know."""
    EOS = "eos"
    """An end-of-sequence token."""
    LENGTH = "length"
    """max_new_tokens, max_length or the context length was reached."""
    STOP_STRING = "stop_string"
    """One of stop_strings appeared."""
    STOP_TOKEN = "stop_token"  # noqa: S105  no password
    """One of stop_token_ids was generated."""


class GenerationOptions(TypedDict, total=False):
    """How to generate; names and meanings are those of transformers' GenerationConfig. None means "not set"."""

    max_new_tokens: int | None
    """Most tokens to generate. Default: 20 when max_length is unset as well."""
    max_length: int | None
    """Most tokens of prompt and answer together."""
    min_new_tokens: int | None
    """Fewest tokens before an EOS token is allowed. Default: 0."""
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


class OutputOptions(TypedDict, total=False):
    """What an answer carries beside its text."""

    logprobs: int | None
    """Log probabilities of the chosen token and of this many most likely ones. Default: none."""
    processed_logprobs: bool | None
    """Take them after penalties, filters and temperature. Default: false."""
    skip_special_tokens: bool | None
    """Leave special tokens out of the text. Default: true."""


class CallOptions(TypedDict, total=False):
    """How a call is made."""

    model: str
    """Model id. Default: the served model."""
    timeout: float | None
    """Seconds until the call is given up. Default: the client's."""
    request_id: str
    """Id under which the server logs the call. Default: one that the server makes."""
    metadata: Mapping[str, str]
    """Further metadata of the call; keys in lower case."""


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


class RequestOptions(GenerationOptions, OutputOptions, CallOptions, total=False):
    """Options that every generating call has."""


class PromptOptions(RequestOptions, SpecialTokenOptions, total=False):
    """Options of the calls that continue a prompt."""


class ChatOptions(RequestOptions, ConversationOptions, total=False):
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
Prompt = str | Sequence[int]
"""A prompt as text, or as token ids to which nothing is added."""


@dataclass(frozen=True, slots=True)
class GenerationWarning:
    """Something that was done as asked but is probably not what was meant."""

    code: str
    """Stable identifier in lower_snake_case."""
    message: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used."""

    prompt_token_count: int
    completion_token_count: int
    """Tokens generated, the ending one included."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went on the server, in milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of the probability of one token."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log probabilities at one generated position."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    """The most likely tokens, best first."""


@dataclass(frozen=True, slots=True)
class Start:
    """First event of a stream: what the server is about to do."""

    request_id: str
    model: str
    generation_config: GenerationOptions
    """The settings in force, the seed included."""
    prompt_token_count: int
    warnings: tuple[GenerationWarning, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    text_range: tuple[int, int]
    """Half-open range of UTF-8 bytes in the final text."""
    sequence_index: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """Last event of a stream: how the answer ended."""

    reason: FinishReason
    stop_string: str | None
    stop_token_id: int | None
    usage: Usage
    timings: Timings
    warnings: tuple[GenerationWarning, ...]
    sequence_index: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer to a prompt."""

    text: str
    token_ids: tuple[int, ...]
    """Tokens generated, the ending one included."""
    logprobs: tuple[PositionLogprobs, ...]
    """One per token when asked for, else empty."""
    start: Start
    finish: Finish

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        return self.finish.reason

    @property
    def usage(self) -> Usage:
        """Tokens used."""
        return self.finish.usage

    @property
    def timings(self) -> Timings:
        """Time used on the server."""
        return self.finish.timings

    @property
    def warnings(self) -> tuple[GenerationWarning, ...]:
        """What is worth knowing about the request and its ending."""
        return self.start.warnings + self.finish.warnings

    @property
    def request_id(self) -> str:
        """Id of the request in the server's log."""
        return self.start.request_id


@dataclass(frozen=True, slots=True)
class ChatAnswer(Generation):
    """A whole answer to a conversation."""

    message: ChatMessage
    """The answer as a message that can be appended to the conversation."""


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
class ModelLimits:
    """Bounds that requests are checked against; see model_service.proto."""

    max_sequence_tokens: int
    max_running_count: int
    max_queued_count: int
    max_batch_size: int
    max_stop_string_count: int
    max_stop_string_bytes: int
    max_token_id_count: int
    max_logit_bias_count: int
    max_logprobs: int
    max_message_count: int
    max_tool_count: int
    max_document_count: int
    max_template_variable_count: int
    max_message_bytes: int


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

    @property
    def device(self) -> str:
        """The devices it lies on, for example cpu, or cuda:0, cuda:1."""
        return ", ".join(sorted(set(self.device_map.values())))
