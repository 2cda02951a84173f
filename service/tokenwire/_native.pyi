"""Text, logits, sampling and kernels of the forward pass in Rust.

Token ids cross as int64 arrays, logits as C-contiguous float32 (or bfloat16 bits in uint16) ``[rows, vocab]`` on the
CPU. Every call that works releases the GIL. No call panics across the border: a bug surfaces as ``RuntimeError``.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, Self, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "Emission",
    "Generation",
    "InvalidParametersError",
    "Linear",
    "Linear4Bit",
    "Padded",
    "RenderedChat",
    "Sampler",
    "SamplingParams",
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

@final
class SamplingParams:
    """How to turn logits into a token. Frozen; see GenerationConfig in generation.proto for ranges.

    The defaults switch every warper and penalty off, ``top_k`` included; the service has its own.
    """

    def __new__(
        cls,
        *,
        vocab_size: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: dict[int, float] | None = None,
        suppress_tokens: Iterable[int] = (),
        seed: int = 0,
        logprobs: int | None = None,
        processed_logprobs: bool = False,
    ) -> Self:
        """Raises InvalidParametersError with every violation."""

@final
class StoppingParams:
    """When a sequence ends. Frozen."""

    def __new__(
        cls,
        *,
        vocab_size: int,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        eos_token_ids: Iterable[int] = (),
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
    ) -> Self: ...
    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""

    @property
    def is_finished(self) -> bool: ...

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
    def top_logprobs(self) -> list[tuple[int, float]]:
        """(token id, log probability), best first; empty unless asked for."""

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
        self, logits: NDArray[np.float32] | NDArray[np.uint16], generations: Sequence[Generation]
    ) -> list[Emission]:
        """Choose and append one token per row.

        ``logits``: float32, or bfloat16 bits as uint16, ``[len(generations), vocab]``, C-contiguous; not changed.
        A row's result does not depend on the other rows. Raises ValueError on a shape mismatch (the columns must be the
        ``vocab_size`` of each generation's SamplingParams), on a finished generation and on one that occurs twice.
        """

    def processed_logits(
        self, logits: NDArray[np.float32] | NDArray[np.uint16], generation: Generation
    ) -> NDArray[np.float32]:
        """Logits ``[vocab]`` as the next step's draw (or greedy choice) sees them; changes nothing.

        ``logits``: one row ``[vocab]``. Tokens that a processor or warper removed are at -infinity. Raises ValueError
        on a shape mismatch and where ``step`` would give an Emission with ``error``.
        """

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
