"""Text to tokens and back for the served model: what servicers need of ``_native``, behind one small interface."""

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenwire import _native
from tokenwire.engine.protocol import ModelInfo
from tokenwire.errors import InvalidRequestError, UnsupportedError, Violation
from tokenwire.servicers.losslessness import MAX_CHARACTER_BYTES, keeps_all_text

R = TypeVar("R")

INLINE_CHARACTERS = 256
"""Texts up to this length are tokenized on the event loop: 80 us, where a thread's round trip costs 100 to 150 more."""

_TOKEN_TEXT_CACHE = 65_536


class Pieces(NamedTuple):
    """Ids ``[T]``, vocabulary entries, and UTF-8 byte ranges ``[T, 2]`` in the text."""

    token_ids: list[int]
    pieces: list[str]
    ranges: list[tuple[int, int]]


class Rendered(NamedTuple):
    """A rendered conversation: the prompt and its tokens."""

    text: str
    token_ids: list[int]


class AlignedToken(NamedTuple):
    """A token and what it became: its vocabulary entry, its bytes, and its byte range in the text of all tokens."""

    token_id: int
    piece: str
    data: bytes
    start: int
    end: int


class Aligner(Protocol):
    """Says of each token which bytes of the text it gave, once that is certain."""

    def push(self, token_id: int) -> list[AlignedToken]:
        """Take the next token; return those that became certain."""

    def finish(self) -> list[AlignedToken]:
        """Return the rest. Nothing may be pushed afterwards."""


class ChatInput(NamedTuple):
    """A conversation for one of the model's chat templates."""

    template_name: str
    messages_json: str
    tools_json: str | None
    documents_json: str | None
    variables_json: str | None
    add_generation_prompt: bool
    continue_final_message: bool


class Text(Protocol):
    """Tokenizer and chat templates of the served model. Calls block; safe from any thread."""

    @property
    def chat_template_names(self) -> list[str]:
        """Names of the templates with which ``render`` works, sorted."""

    @property
    def max_bytes_per_token(self) -> int | None:
        """UTF-8 bytes of text that one token stands for at most; None where there is no such bound."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id that ``decode`` knows."""

    @property
    def special_token_ids(self) -> Sequence[int]:
        """Ids of the special (control) tokens."""

    def aligner(self, *, skip_special_tokens: bool) -> Aligner:
        """An Aligner at the beginning of a text."""

    def encode(self, text: str, *, add_special_tokens: bool, parse_special_tokens: bool) -> list[int]:
        """Token ids of a text."""

    def encode_pieces(self, text: str, *, add_special_tokens: bool, parse_special_tokens: bool) -> Pieces:
        """Token ids of a text, with where they come from."""

    def decode(self, token_ids: Sequence[int] | NDArray[np.int64], *, skip_special_tokens: bool) -> str:
        """Text of token ids. Raises InvalidRequestError for an id without a vocabulary entry."""

    def token_text(self, token_id: int) -> str:
        """The token decoded alone; empty for an id that has no entry."""

    def token_id(self, token: str) -> int | None:
        """Id of a vocabulary entry as stored."""

    def is_healable(self, token_id: int) -> bool:
        """Whether other tokens begin with the token's vocabulary entry; a special token's never counts."""

    def check_chat_template(self) -> None:
        """Raises UnsupportedError without a usable chat template."""

    def render(self, chat: ChatInput) -> Rendered:
        """Raises UnsupportedError where the template is not usable, InvalidRequestError where it refuses."""


class NativeAligner:
    """Aligner over the extension."""

    def __init__(self, tokenizer: _native.Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._aligner = _native.Aligner(tokenizer, skip_special_tokens=skip_special_tokens)

    def push(self, token_id: int) -> list[AlignedToken]:
        """Take the next token; return those that became certain."""
        return self._named(self._aligner.push(token_id))

    def finish(self) -> list[AlignedToken]:
        """Return the rest."""
        return self._named(self._aligner.finish())

    def _named(self, tokens: Sequence[tuple[int, bytes, int, int]]) -> list[AlignedToken]:
        piece_of = self._tokenizer.id_to_token
        return [
            AlignedToken(token_id, piece_of(token_id) or "", data, start, end) for token_id, data, start, end in tokens
        ]


class NativeText:
    """Text over the extension."""

    def __init__(self, info: ModelInfo) -> None:
        self._tokenizer = _native.Tokenizer.from_json(info.tokenizer_json)
        self._templates: dict[str, _native.ChatTemplate] = {}
        self._template_errors: dict[str, str] = {}
        for name, source in info.chat_templates.items():
            try:
                self._templates[name] = _native.ChatTemplate(
                    source, tokenizer=self._tokenizer, special_tokens=info.special_tokens
                )
            except _native.TemplateError as error:
                self._template_errors[name] = str(error)
        self.vocab_size = self._tokenizer.vocab_size
        self.special_token_ids: Sequence[int] = self._tokenizer.special_token_ids
        self.max_bytes_per_token: int | None = None
        if keeps_all_text(info.tokenizer_json, lambda token: self.token_id(token) is not None):
            entries = (self._tokenizer.id_to_token(token_id) for token_id in range(self.vocab_size))
            self.max_bytes_per_token = max(MAX_CHARACTER_BYTES, *(len((entry or "").encode()) for entry in entries))
        self.token_text: Callable[[int], str] = lru_cache(_TOKEN_TEXT_CACHE)(self._token_text)

    @property
    def chat_template_names(self) -> list[str]:
        """Names of the templates with which ``render`` works, sorted."""
        return sorted(self._templates)

    @property
    def template_errors(self) -> dict[str, str]:
        """Why templates of the model cannot be used, by name, for the log."""
        return self._template_errors

    def aligner(self, *, skip_special_tokens: bool) -> Aligner:
        """An Aligner at the beginning of a text."""
        return NativeAligner(self._tokenizer, skip_special_tokens=skip_special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool, parse_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ids = self._tokenizer.encode(
            text, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
        )
        return _as_list(ids)

    def encode_pieces(self, text: str, *, add_special_tokens: bool, parse_special_tokens: bool) -> Pieces:
        """Token ids of a text, with where they come from."""
        ids, pieces, ranges = self._tokenizer.encode_with_offsets(
            text, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
        )
        return Pieces(_as_list(ids), pieces, [(start, end) for start, end in ranges.tolist()])

    def decode(self, token_ids: Sequence[int] | NDArray[np.int64], *, skip_special_tokens: bool) -> str:
        """Text of token ids. Raises InvalidRequestError for an id without a vocabulary entry."""
        ids = np.asarray(token_ids, dtype=np.int64)
        # Models often have more columns than their tokenizer has entries; such ids are no text when generated either.
        ids = ids[ids < self._tokenizer.vocab_size]
        try:
            return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        except _native.TokenizerError as error:
            raise InvalidRequestError([Violation("token_ids.ids", str(error), "an id that is none of them")]) from None

    def _token_text(self, token_id: int) -> str:
        if self._tokenizer.id_to_token(token_id) is None:
            return ""
        return self.decode([token_id], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """Id of a vocabulary entry."""
        return self._tokenizer.token_to_id(token)

    def is_healable(self, token_id: int) -> bool:
        """Whether other tokens begin with the token's vocabulary entry."""
        return self._tokenizer.is_healable(token_id)

    def check_chat_template(self) -> None:
        """Raises UnsupportedError without a usable chat template."""
        if self._templates:
            return
        if self._template_errors:
            raise UnsupportedError("CHAT_TEMPLATE_UNUSABLE", "the model's chat template cannot be compiled")
        raise UnsupportedError("NO_CHAT_TEMPLATE", "the model has no chat template; use Generate")

    def render(self, chat: ChatInput) -> Rendered:
        """The prompt of a conversation and its tokens."""
        template = self._templates.get(chat.template_name)
        if template is None:
            self.check_chat_template()
            raise UnsupportedError("CHAT_TEMPLATE_UNUSABLE", "this chat template of the model cannot be compiled")
        try:
            rendered = template.render(
                chat.messages_json,
                tools_json=chat.tools_json,
                documents_json=chat.documents_json,
                variables_json=chat.variables_json,
                add_generation_prompt=chat.add_generation_prompt,
                continue_final_message=chat.continue_final_message,
            )
        except _native.TemplateError as error:
            rule = f"must be what the model's chat template takes: {error}"
            raise InvalidRequestError([Violation("conversation", rule, "a conversation that it refuses")]) from None
        return Rendered(rendered.text, _as_list(self._tokenizer.encode_rendered(rendered)))


def _as_list(ids: NDArray[np.int64]) -> list[int]:
    values: list[int] = ids.tolist()
    return values


async def off_loop(size: int, work: Callable[[], R]) -> R:
    """Run ``work`` on a text of ``size`` characters, or as many ids: in a thread, or at once where it is short."""
    return work() if size <= INLINE_CHARACTERS else await asyncio.to_thread(work)
