"""Text, logits, sampling and kernels of the forward pass in Rust.

Token ids cross as int64 arrays, logits as C-contiguous float32 (or bfloat16 bits in uint16) ``[rows, vocab]`` on the
CPU. Every call that works releases the GIL. No call panics across the border: a bug surfaces as ``RuntimeError``.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, Self, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_EXPLAINED_TOKENS",
    "MAX_LENGTH_PENALTY",
    "MAX_SYNTH_ID_KEYS",
    "Aligner",
    "BeamAnswer",
    "BeamSearch",
    "BeamStep",
    "ChatTemplate",
    "Detokenizer",
    "Emission",
    "Explanation",
    "Generation",
    "InvalidParametersError",
    "Linear",
    "Linear4Bit",
    "Padded",
    "ProcessorEffect",
    "PromptLookup",
    "RenderedChat",
    "Sampler",
    "SamplingParams",
    "Standing",
    "StoppingParams",
    "TemplateError",
    "ThreadPool",
    "Tokenizer",
    "TokenizerError",
    "__version__",
    "kernel_levels",
    "pad",
]

__version__: str

MAX_EXPLAINED_TOKENS: int
"""Generated tokens of one sequence that are explained at most, the first ones."""

MAX_SYNTH_ID_KEYS: int
"""Most keys of a SynthID watermark."""

MAX_LENGTH_PENALTY: float
"""Largest amount of BeamSearch's length_penalty, either way."""

class InvalidParametersError(ValueError):
    """One or more parameters are outside their range.

    ``violations`` lists ``(field, rule, value)``: the field's name in ``GenerationConfig``, what must hold, and the
    value given, all as text.
    """

    violations: list[tuple[str, str, str]]

class TokenizerError(ValueError):
    """A tokenizer file cannot be read, or an id lies outside its vocabulary."""

class TemplateError(ValueError):
    """A chat template refuses its input (``raise_exception``), fails, or exceeds its fuel or output limit."""

@final
class Tokenizer:
    """A tokenizer.json through the tokenizers crate. Frozen, shared between threads."""

    @staticmethod
    def from_file(path: str) -> Tokenizer:
        """Read a tokenizer.json. Raises TokenizerError."""

    @staticmethod
    def from_json(json: str) -> Tokenizer:
        """Read the text of a tokenizer.json. Raises TokenizerError."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id, added tokens included."""

    @property
    def special_token_ids(self) -> list[int]:
        """Ids of the special (control) tokens, ascending."""

    def token_to_id(self, token: str) -> int | None:
        """Id of a vocabulary entry as stored."""

    def id_to_token(self, token_id: int) -> str | None:
        """Vocabulary entry as stored, for example ``Ġworld``."""

    def extensions(self, token_id: int) -> NDArray[np.int64]:
        """Tokens whose vocabulary entry begins with that of ``token_id``, itself among them, special tokens left out.

        Empty for a special token and for an id without an entry.
        """

    def is_healable(self, token_id: int) -> bool:
        """Whether another token is among the ``extensions`` of ``token_id``: it may be cut short at a prompt's end."""

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special_tokens: bool = True
    ) -> NDArray[np.int64]:
        """Token ids ``[T]``, equal to transformers' fast tokenizers. Raises TokenizerError.

        With ``parse_special_tokens=False`` no special token comes out of the text, except where the model stands in its
        unknown token for text that it cannot spell.
        """

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, parse_special_tokens: bool = True
    ) -> list[NDArray[np.int64]]:
        """Like ``encode`` for each text, in parallel. No padding."""

    def encode_with_offsets(
        self, text: str, *, add_special_tokens: bool = True, parse_special_tokens: bool = True
    ) -> tuple[NDArray[np.int64], list[str], NDArray[np.int64]]:
        """Ids ``[T]``, pieces as stored, and UTF-8 byte ranges ``[T, 2]`` in ``text`` (empty for added tokens)."""

    def encode_rendered(self, rendered: RenderedChat) -> NDArray[np.int64]:
        """Token ids ``[T]`` of a rendered chat: control tokens from the template only, no special tokens added.

        Equal to encoding ``rendered.text`` where the caller's text holds no special token. Added tokens that are not
        special (``<think>`` in Qwen) are read everywhere, as transformers does.
        """

    def decode(self, token_ids: Iterable[int] | NDArray[np.int64], *, skip_special_tokens: bool = True) -> str:
        """Text of ids; equal to transformers' ``decode`` without clean-up. Raises TokenizerError for unknown ids."""

@final
class Detokenizer:
    """Text of one sequence, token by token, as Generation streams it. All text joined equals ``Tokenizer.decode``."""

    def __new__(cls, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> Self: ...
    def push(self, token_id: int) -> str:
        """The text that became certain; may be empty. Ids outside the vocabulary give none."""

    def finish(self) -> str:
        """What is held back. Nothing may be pushed afterwards."""

@final
class Aligner:
    """Which bytes of a sequence's text each of its tokens gave.

    The ranges follow one another without gap or overlap and cover ``Tokenizer.decode`` of all ids. Tokens that share a
    character divide it by their bytes; U+FFFD belongs to the token that began what it stands for.
    """

    def __new__(cls, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> Self: ...
    def push(self, token_id: int) -> list[tuple[int, bytes, int, int]]:
        """Take the next token. Those whose end became certain: id, bytes, and half-open byte range in the text.

        A token that is skipped, or unknown, has no bytes and an empty range.
        """

    def finish(self) -> list[tuple[int, bytes, int, int]]:
        """The rest. Nothing may be pushed afterwards."""

@final
class RenderedChat:
    """What a chat template produced, with the places of the caller's text marked. Frozen."""

    @property
    def text(self) -> str:
        """The prompt, equal to ``apply_chat_template(tokenize=False)``."""

@final
class ChatTemplate:
    """A chat template, sandboxed, with limits on fuel and output. Frozen, shared between threads."""

    def __new__(cls, source: str, *, tokenizer: Tokenizer, special_tokens: dict[str, str]) -> Self:
        """Compile ``source``; ``special_tokens`` are its variables, such as ``bos_token``. Raises TemplateError."""

    def render(
        self,
        messages_json: str,
        *,
        tools_json: str | None = None,
        documents_json: str | None = None,
        variables_json: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        now: float | None = None,
    ) -> RenderedChat:
        """Render a conversation, given as JSON in the shape that ``apply_chat_template`` takes.

        ``now`` (seconds since the epoch) is what ``strftime_now`` sees in the local time zone; None is the clock.
        Raises TemplateError.
        """

@final
class Padded:
    """Rows made rectangular: three int64 arrays ``[B, T]``."""

    @property
    def input_ids(self) -> NDArray[np.int64]: ...
    @property
    def attention_mask(self) -> NDArray[np.int64]:
        """1 for tokens, 0 for padding."""

    @property
    def position_ids(self) -> NDArray[np.int64]:
        """Position of each token in its row from 0; padding holds 0."""

def pad(
    rows: Sequence[NDArray[np.int64]],
    *,
    pad_token_id: int,
    side: Literal["left", "right"],
    multiple_of: int = 1,
) -> Padded:
    """Pad rows to the longest one, rounded up to ``multiple_of``. Raises InvalidParametersError."""

class _GreenListWatermark(Protocol):
    @property
    def greenlist_ratio(self) -> float: ...
    @property
    def bias(self) -> float: ...
    @property
    def hashing_key(self) -> int: ...
    @property
    def seeding_scheme(self) -> str: ...
    @property
    def context_width(self) -> int: ...

class _SynthIdTextWatermark(Protocol):
    @property
    def ngram_len(self) -> int: ...
    @property
    def keys(self) -> Iterable[int]: ...
    @property
    def context_history_size(self) -> int: ...
    @property
    def sampling_table_seed(self) -> int: ...
    @property
    def sampling_table_size(self) -> int: ...
    @property
    def skip_first_ngram_calls(self) -> bool: ...
    @property
    def debug_mode(self) -> bool: ...

@final
class SamplingParams:
    """How to turn logits into a token. Frozen; see GenerationConfig in generation.proto for ranges.

    The names are those of ``GenerationSettings``. The defaults switch every processor and warper off, ``top_k``
    included; the service has its own. ``min_tokens_to_keep`` is what top-k and the filters after it leave at least.
    """

    def __new__(
        cls,
        *,
        vocab_size: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_h: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        epsilon_cutoff: float = 0.0,
        eta_cutoff: float = 0.0,
        min_tokens_to_keep: int = 1,
        watermark: _GreenListWatermark | _SynthIdTextWatermark | None = None,
        renormalize_logits: bool = False,
        repetition_penalty: float = 1.0,
        encoder_repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        no_repeat_ngram_size: int = 0,
        encoder_no_repeat_ngram_size: int = 0,
        logit_bias: dict[int, float] | None = None,
        sequence_bias: Iterable[tuple[Iterable[int], float]] = (),
        bad_words_ids: Iterable[Iterable[int]] = (),
        suppress_tokens: Iterable[int] = (),
        begin_suppress_tokens: Iterable[int] = (),
        allowed_token_ids: Iterable[int] | None = None,
        forced_bos_token_id: int | None = None,
        remove_invalid_values: bool = False,
        guidance_scale: float = 1.0,
        seed: int = 0,
        logprobs: int | None = None,
        processed_logprobs: bool = False,
        explain: bool = False,
    ) -> Self:
        """Raises InvalidParametersError with every violation."""

@final
class StoppingParams:
    """When a sequence ends. Frozen. The names are those of ``GenerationSettings``."""

    def __new__(
        cls,
        *,
        vocab_size: int,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        min_length: int = 0,
        eos_token_ids: Iterable[int] = (),
        forced_eos_token_ids: Iterable[int] = (),
        exponential_decay_length_penalty: tuple[int, float] | None = None,
        stop_token_ids: Iterable[int] = (),
        stop_strings: Sequence[str] = (),
        include_stop_string: bool = False,
    ) -> Self:
        """Raises InvalidParametersError with every violation."""

@final
class Generation:
    """The state of one sequence: history, random counter, detokenizer, stop matcher."""

    def __new__(
        cls,
        tokenizer: Tokenizer,
        prompt_ids: Iterable[int] | NDArray[np.int64],
        sampling: SamplingParams,
        stopping: StoppingParams,
        *,
        sequence_index: int = 0,
        skip_special_tokens: bool = True,
        healed_token_id: int | None = None,
    ) -> Self:
        """Start a sequence behind ``prompt_ids``. Raises InvalidParametersError for ids outside the vocabulary.

        ``healed_token_id``: the token that was taken off the prompt's end. The first token is the most likely one of
        its ``Tokenizer.extensions``; the text of ``healed_token_id`` is left out of the answer. It belongs to the
        prompt: of all settings ``remove_invalid_values`` alone acts on it, no length counts it, and of the stops only a
        stop string ends the sequence with it. Nothing changes where it is not ``Tokenizer.is_healable``.
        """

    @property
    def num_generated(self) -> int:
        """Tokens generated so far, a healed one not counted."""

    @property
    def is_finished(self) -> bool: ...
    def end(self) -> Emission:
        """End the sequence before its next token.

        The emission has no token, all text that was held back, and ``stop_string`` as its reason where that text
        completes one. Raises ValueError when the generation is finished.
        """

    @property
    def eos_probability_max(self) -> float | None:
        """Largest probability of an EOS token in the raw logits of any step, up to the first that reached 1e-6.

        Below 1e-6 it is an upper bound that is below it too: then no step had an EOS token as likely as that. None
        without EOS tokens.
        """

@final
class Standing:
    """How a token stands in a distribution. Frozen."""

    @property
    def probability(self) -> float:
        """Of the token, 0 to 1."""

    @property
    def rank(self) -> int:
        """Its place by probability, from 1; among equals the lower id comes first."""

    @property
    def entropy(self) -> float:
        """Of the distribution, in nats."""

    @property
    def token_count(self) -> int:
        """Tokens whose probability is above 0 in float32: those that a draw can give."""

@final
class ProcessorEffect:
    """What one processor or warper did, seen from the chosen token. Frozen."""

    @property
    def name(self) -> str:
        """The setting that switches it on; ``presence_and_frequency_penalty`` for the processor of the two."""

    @property
    def removed_token_count(self) -> int:
        """Tokens that were not at -infinity before it and are behind it."""

    @property
    def before(self) -> Standing | None:
        """None where the logits are no distribution: they hold NaN, or nothing above -infinity."""

    @property
    def after(self) -> Standing | None:
        """As ``before``, behind it."""

@final
class Explanation:
    """How a token came to be chosen. Frozen."""

    @property
    def model(self) -> Standing | None:
        """In the model's own distribution; None where its logits are none."""

    @property
    def effects(self) -> list[ProcessorEffect]:
        """The processors and warpers that changed any logit, in the order in which they ran."""

    @property
    def outcome(self) -> Standing | None:
        """In the distribution that the choice was made from; never None in an Emission."""

@final
class Emission:
    """What one step gave one sequence. Frozen."""

    @property
    def token_id(self) -> int:
        """The chosen token; -1 with ``error``."""

    @property
    def text(self) -> str:
        """Text that became certain; may be empty. On the last step it holds everything still held back."""

    @property
    def finish_reason(self) -> Literal["eos", "length", "stop_string", "stop_token"] | None: ...
    @property
    def stop_string(self) -> str | None: ...
    @property
    def stop_token_id(self) -> int | None: ...
    @property
    def logprob(self) -> float | None:
        """Natural log probability of the chosen token, when asked for."""

    @property
    def rank(self) -> int | None:
        """Place of the chosen token by probability, from 1, when log probabilities are asked for.

        Among equals the lower id comes first.
        """

    @property
    def top_logprobs(self) -> list[tuple[int, float]]:
        """(token id, log probability), best first; empty unless asked for."""

    @property
    def explanation(self) -> Explanation | None:
        """Why the token was chosen, when asked for; of the first 256 tokens of a sequence."""

    @property
    def error(self) -> str | None:
        """Why this row alone failed: its logits hold NaN, no token is allowed, or a bug. The sequence is finished."""

@final
class Sampler:
    """Processors, choice, detokenization and stop checks for a whole batch."""

    def __new__(cls, *, threads: int = 1) -> Self:
        """``threads``: most threads of one step, the caller's included. Raises InvalidParametersError below 1.

        Rows are spread over them only where a batch is large enough to gain by it.
        """
    def step(
        self,
        logits: NDArray[np.float32] | NDArray[np.uint16],
        generations: Sequence[Generation],
        *,
        guidance: Sequence[int] | None = None,
    ) -> list[Emission]:
        """Choose and append one token per generation.

        ``logits``: float32, or bfloat16 bits as uint16, ``[len(generations), vocab]``, C-contiguous; not changed.
        ``guidance``: for each generation the row of ``logits`` that the model gives without its prompt, -1 for none;
        such rows stand behind the generations' own. Exactly those with a guidance_scale other than 1 have one.

        A row's result does not depend on the other rows. Raises ValueError on a shape mismatch (the columns must be the
        ``vocab_size`` of each generation's SamplingParams), on a finished generation and on one that occurs twice.
        """

    def verify(
        self,
        logits: NDArray[np.float32] | NDArray[np.uint16],
        generations: Sequence[Generation],
        drafts: Sequence[Sequence[int]],
    ) -> list[list[Emission]]:
        """Like ``step`` for sequences that bring guesses of their next tokens; several tokens where these come true.

        ``drafts``: as many as generations, each perhaps empty. ``logits``: as for ``step``, but with a row behind each
        sequence's last token and one behind each of its guesses, ``[sum of len(draft) + 1, vocab]``. Returns for each
        sequence its emissions, from 1 to ``len(draft) + 1``: every token is chosen exactly as ``step`` would choose it,
        so the answer is the same with guesses and without, greedy or drawn with the same seed (a coupling, and so also
        exact in distribution, as rejection sampling is: a guess d is accepted with probability p(d)). The turn ends
        with the first token that is not the guess, and with the sequence.
        """

    def logprobs_of(
        self,
        logits: NDArray[np.float32] | NDArray[np.uint16],
        token_ids: Iterable[int] | NDArray[np.int64],
        count: int,
        *,
        remove_invalid_values: bool = False,
    ) -> list[tuple[float, int, list[tuple[int, float]]]]:
        """Log probabilities of tokens that were given, not chosen, from the logits as they are.

        For each row of ``logits`` ``[len(token_ids), vocab]`` that of the token that followed it, its rank from 1, and
        the ``count`` most likely tokens with theirs, best first.

        Raises ValueError on a shape mismatch, on a token outside the vocabulary, and where a row holds NaN or nothing
        above -infinity; with ``remove_invalid_values`` such values are replaced first, as SamplingParams' would be.
        """

    def processed_logits(
        self,
        logits: NDArray[np.float32] | NDArray[np.uint16],
        generation: Generation,
        *,
        unconditional: NDArray[np.float32] | NDArray[np.uint16] | None = None,
    ) -> NDArray[np.float32]:
        """Logits ``[vocab]`` as the next step's draw (or greedy choice) sees them; changes nothing.

        ``logits``: one row ``[vocab]``; ``unconditional``: the one without the prompt, with a guidance_scale other than
        1. Tokens that a processor or warper removed are at -infinity. Raises ValueError on a shape mismatch and where
        ``step`` would give an Emission with ``error``.
        """

@final
class PromptLookup:
    """Guesses of a sequence's next tokens: what followed the same n-gram earlier in it.

    An index, kept up to date: a guess costs the same however long the sequence is.
    """

    def __new__(cls, token_ids: Iterable[int] | NDArray[np.int64], *, max_ngram: int) -> Self:
        """Start behind ``token_ids``. ``max_ngram``: longest n-gram that is looked for.

        Raises InvalidParametersError below 1.
        """

    def extend(self, token_ids: Iterable[int] | NDArray[np.int64]) -> None:
        """Append tokens."""

    def guess(self, count: int, *, ends: Iterable[int] = ()) -> list[int]:
        """At most ``count`` tokens that came next before, up to the first of ``ends``; empty where nothing matches.

        They followed the first occurrence of the longest n-gram that ends the sequence and occurred earlier in it.
        Equal to transformers' ``PromptLookupCandidateGenerator`` without logits processors.
        """

    def __len__(self) -> int: ...

def kernel_levels() -> list[str]:
    """Names of the levels of vector instructions that this CPU has, from the least to the best."""

@final
class ThreadPool:
    """Threads that the kernels share, for many short calls one after another. Frozen.

    A thread that finds no call looks out for the next one for a fraction of a millisecond, then sleeps.
    """

    def __new__(cls, *, threads: int) -> Self:
        """``threads``: of one call, the caller's included. Raises InvalidParametersError below 1."""

    @property
    def threads(self) -> int:
        """Threads of one call; fewer than asked for where the system refused some."""

@final
class Linear4Bit:
    """A linear layer with NF4 or FP4 weights, repacked for the CPU. Frozen; computes in float32.

    A row's result is the same bits whichever rows it is computed with.
    """

    def __new__(
        cls,
        packed: NDArray[np.uint8],
        absmax: NDArray[np.float32],
        code: NDArray[np.float32],
        *,
        block_size: int,
        in_features: int,
        out_features: int,
        pool: ThreadPool,
        bias: NDArray[np.float32] | None = None,
        level: str | None = None,
    ) -> Self:
        """Copy weights as bitsandbytes stores them. Arrays are one-dimensional and C-contiguous.

        ``packed``: two codes a byte, the first in the high half, of the flattened ``[out_features, in_features]``.
        ``absmax``: one scale for each ``block_size`` codes of it. ``code``: the numbers of the 16 codes. ``level``: one
        of ``kernel_levels()``, default the best. ``in_features`` and ``block_size`` are multiples of 64. Raises
        ValueError.
        """

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def level(self) -> str: ...
    def forward(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write ``x W^T + bias`` to ``out``: C-contiguous ``[rows, in_features]`` and ``[rows, out_features]``.

        They do not overlap. Raises ValueError on a shape mismatch.
        """

@final
class Linear:
    """A linear layer with float32 weights, in an order for few rows. Frozen.

    A row's result is the same bits whichever rows it is computed with.
    """

    def __new__(
        cls,
        weight: NDArray[np.float32],
        *,
        pool: ThreadPool,
        bias: NDArray[np.float32] | None = None,
        level: str | None = None,
    ) -> Self:
        """Copy ``weight`` ``[out_features, in_features]``, C-contiguous, with ``in_features`` a multiple of 64.

        ``level``: one of ``kernel_levels()``, default the best. Raises ValueError.
        """

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def level(self) -> str: ...
    def forward(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Write ``x W^T + bias`` to ``out``: C-contiguous ``[rows, in_features]`` and ``[rows, out_features]``.

        They do not overlap. Raises ValueError on a shape mismatch.
        """

@final
class BeamSearch:
    """The state of one beam search or, with ``do_sample``, of one beam sampling, equal to transformers'."""

    def __new__(
        cls,
        tokenizer: Tokenizer,
        prompt_ids: Iterable[int] | NDArray[np.int64],
        sampling: SamplingParams,
        stopping: StoppingParams,
        *,
        num_beams: int,
        num_return_sequences: int = 1,
        length_penalty: float = 1.0,
        early_stopping: Literal["false", "true", "never"] = "false",
        sequence_index: int = 0,
        skip_special_tokens: bool = True,
    ) -> Self:
        """``num_beams``: at least 2. Raises InvalidParametersError with every violation."""

    @property
    def is_over(self) -> bool:
        """Whether the last step was taken."""

    def step(self, logits: NDArray[np.float32] | NDArray[np.uint16], *, is_last: bool = False) -> BeamStep:
        """Take the logits behind all beams, as ``Sampler.step`` takes them.

        ``[1, vocab]`` behind the prompt, ``[num_beams, vocab]`` from then on. With ``is_last`` the search ends with
        this step, whose tokens count. Raises ValueError on a shape mismatch and when the search is over.
        """

@final
class BeamStep:
    """What one step gave a beam search: parents and tokens, or answers, or an error. Frozen."""

    @property
    def parents(self) -> list[int]:
        """For each next beam the beam that it continues (0 behind the prompt); empty when the search is over."""

    @property
    def token_ids(self) -> list[int]:
        """For each next beam its new token."""

    @property
    def answers(self) -> list[BeamAnswer]:
        """The returned sequences, best first, when the search is over."""

    @property
    def error(self) -> str | None:
        """Why the search failed: NaN in the logits, no token allowed, or a bug. It is over."""

@final
class BeamAnswer:
    """One returned sequence of a beam search. Frozen."""

    @property
    def token_ids(self) -> list[int]:
        """Generated tokens, the ending one included."""

    @property
    def text(self) -> str:
        """Their text, up to the stop string that matched."""

    @property
    def finish_reason(self) -> Literal["eos", "length", "stop_string", "stop_token"] | None:
        """None: because of ``is_last``."""

    @property
    def stop_string(self) -> str | None: ...
    @property
    def stop_token_id(self) -> int | None: ...
    @property
    def score(self) -> float:
        """Summed log probability over length ** length_penalty: transformers' ``sequences_scores``."""
