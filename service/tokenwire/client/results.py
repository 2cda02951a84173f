"""Answers as the client returns them: plain frozen dataclasses, no protobuf."""

from dataclasses import dataclass
from enum import StrEnum

from tokenwire.client.types import ChatMessage, GenerationOptions


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
    MAX_TIME = "max_time"
    """max_time was over."""
    DEADLINE = "deadline"
    """The call's deadline was near, with deadline_aware."""


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
    """Tokens generated, the ending one included, a healed one not."""
    cached_token_count: int = 0
    """Tokens of the prompt whose computation was shared with another sequence."""
    draft_token_count: int = 0
    """Tokens that prompt lookup or the draft model proposed."""
    accepted_draft_token_count: int = 0
    """Proposed tokens that became part of the answer."""


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
    rank: int = 0
    """Place among all tokens by probability, from 1; 0 where the server does not say."""


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log probabilities at one position."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    """The most likely tokens, best first."""


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """One generated token, in detail."""

    id: int
    piece: str
    """The vocabulary entry as the tokenizer stores it."""
    bytes: bytes
    """The bytes it stands for; they need not be whole characters."""
    text_range: tuple[int, int]
    """Half-open range of UTF-8 bytes of the final text that it is part of."""


@dataclass(frozen=True, slots=True)
class TokenStanding:
    """How a token stands in one distribution."""

    probability: float
    rank: int
    """Place of the token by probability, from 1."""
    entropy: float
    """Of the distribution, in nats."""
    token_count: int
    """Tokens whose probability is above 0."""


@dataclass(frozen=True, slots=True)
class ProcessorEffect:
    """What one processor or warper between the model's logits and the choice did, seen from the chosen token."""

    name: str
    """The setting that switches it on, for example repetition_penalty or top_k."""
    removed_token_count: int
    """Tokens that it forbade."""
    before: TokenStanding | None
    """None where the logits are no distribution: they hold NaN, or forbid every token."""
    after: TokenStanding | None


@dataclass(frozen=True, slots=True)
class TokenExplanation:
    """Why a token was chosen."""

    token_id: int
    text: str
    model: TokenStanding | None
    """In the model's own distribution; None where its logits are none."""
    effects: tuple[ProcessorEffect, ...]
    """The steps that changed something, in order."""
    outcome: TokenStanding | None
    """In the distribution that the token was chosen from."""


@dataclass(frozen=True, slots=True)
class Start:
    """First event of a stream: what the server is about to do."""

    request_id: str
    model: str
    generation_config: GenerationOptions
    """The settings in force, the seed included."""
    prompt_token_count: int
    warnings: tuple[GenerationWarning, ...]

    @property
    def num_sequences(self) -> int:
        """Sequences that the answer has."""
        return self.generation_config.get("num_return_sequences") or 1


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one sequence of an answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    text_range: tuple[int, int]
    """Half-open range of UTF-8 bytes in the final text."""
    sequence_index: int = 0
    tokens: tuple[TokenDetail, ...] = ()
    """One per token when token_details was asked for, else empty."""
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    """Of the prompt's tokens from the second on, when asked for; only in the first delta of sequence 0."""
    explanations: tuple[TokenExplanation, ...] = ()
    """With explain one for the healed token, if any, and each of the first ``max_explained_token_count``."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Last event of a sequence: how it ended."""

    reason: FinishReason
    stop_string: str | None
    stop_token_id: int | None
    usage: Usage
    timings: Timings
    warnings: tuple[GenerationWarning, ...]
    sequence_index: int = 0
    sequence_score: float | None = None
    """With beams: the summed log probability over length to the power of length_penalty."""


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """One sequence of an answer."""

    text: str
    token_ids: tuple[int, ...]
    """Tokens generated, the ending one included; with token_healing the healed one is the first."""
    logprobs: tuple[PositionLogprobs, ...]
    """One per token when asked for, else empty."""
    finish: Finish
    tokens: tuple[TokenDetail, ...] = ()
    """One per token when token_details was asked for, else empty."""
    explanations: tuple[TokenExplanation, ...] = ()
    """With explain one for the healed token, if any, and each of the first ``max_explained_token_count``."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer to a prompt. Where it has several sequences, what is said of one is said of the first."""

    start: Start
    sequences: tuple[GeneratedSequence, ...]
    """At least one; with beams the best first."""
    prompt_logprobs: tuple[PositionLogprobs, ...]
    """Of the prompt's tokens from the second on, when asked for, else empty."""

    @property
    def text(self) -> str:
        """The text."""
        return self.sequences[0].text

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of all sequences."""
        return tuple(sequence.text for sequence in self.sequences)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Tokens generated, the ending one included; with token_healing the healed one is the first."""
        return self.sequences[0].token_ids

    @property
    def logprobs(self) -> tuple[PositionLogprobs, ...]:
        """One per token when asked for, else empty."""
        return self.sequences[0].logprobs

    @property
    def tokens(self) -> tuple[TokenDetail, ...]:
        """One per token when token_details was asked for, else empty."""
        return self.sequences[0].tokens

    @property
    def explanations(self) -> tuple[TokenExplanation, ...]:
        """With explain one for the healed token, if any, and each of the first ``max_explained_token_count``."""
        return self.sequences[0].explanations

    @property
    def finish(self) -> Finish:
        """How it ended."""
        return self.sequences[0].finish

    @property
    def finishes(self) -> tuple[Finish, ...]:
        """How each sequence ended."""
        return tuple(sequence.finish for sequence in self.sequences)

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
        """What is worth knowing about the request and the endings of all sequences, nothing twice."""
        endings = (warning for finish in self.finishes for warning in finish.warnings)
        return tuple(dict.fromkeys((*self.start.warnings, *endings)))

    @property
    def request_id(self) -> str:
        """Id of the request in the server's log."""
        return self.start.request_id


@dataclass(frozen=True, slots=True)
class ChatAnswer(Generation):
    """A whole answer to a conversation."""

    messages: tuple[ChatMessage, ...]
    """One per sequence, each of which can be appended to the conversation."""

    @property
    def message(self) -> ChatMessage:
        """The first answer as a message."""
        return self.messages[0]
