"""What is probably not meant about a raw prompt, found before its first token."""

from collections.abc import Sequence

from tokenwire.engine.resolution import Note
from tokenwire.engine.settings import GenerationSettings
from tokenwire.errors import TokenwireError
from tokenwire.servicers.backend import Served
from tokenwire.servicers.text import off_loop
from tokenwire.servicers.tokenizer import render
from tokenwire.v1 import chat_pb2

_PROBE = "tokenwire-probe"
"""Content of the message that shows how a template marks what it is given."""

_WORD = "the"
"""A word that may follow any prompt: its first letter is in every vocabulary of words."""

_TAIL_CHARACTERS = 32
"""Characters of a prompt's end that decide how the border is split, give or take a rare token longer than that."""


async def _carries_markers(served: Served, prompt_ids: Sequence[int], text: str | None) -> bool:
    """Whether a prompt looks like the work of the model's chat template, or there is none to tell by."""
    markers = served.markers
    if markers.special_ids is None:
        markers.special_ids, markers.line = await _find_markers(served)
    if markers.special_ids:
        return not markers.special_ids.isdisjoint(prompt_ids)
    if not markers.line:
        return True
    if text is None:
        text = await off_loop(len(prompt_ids), lambda: served.text.decode(prompt_ids, skip_special_tokens=False))
    return markers.line in text


async def _find_markers(served: Served) -> tuple[frozenset[int], str]:
    """The special tokens around a user's message, and the last line before it; nothing without a usable template."""
    message = chat_pb2.ChatMessage(role="user", content=[chat_pb2.ContentPart(text=_PROBE)])
    try:
        rendered = await render(served, chat_pb2.Conversation(messages=[message]))
    except TokenwireError:
        return frozenset(), ""
    # Not BOS: a tokenizer puts it in front of every prompt.
    special_ids = frozenset(rendered.token_ids).intersection(served.text.special_token_ids)
    lines = rendered.text.partition(_PROBE)[0].split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return special_ids - {served.info.bos_token_id}, line


async def prompt_notes(
    served: Served, prompt_ids: Sequence[int], text: str | None, settings: GenerationSettings
) -> list[Note]:
    """``raw_prompt`` and ``prompt_ends_in_whitespace``, where they hold. ``text`` is None for a prompt of ids."""
    notes = []
    if not await _carries_markers(served, prompt_ids, text):
        message = (
            "The model has a chat template, and the prompt carries none of its markers: a chat model answers such a "
            "prompt badly; use Chat, or RenderChat to see what it expects."
        )
        notes.append(Note("raw_prompt", message))
    if text is not None and not settings.token_healing and _ends_in_split_whitespace(served, text):
        message = (
            "The prompt ends in whitespace that the tokenizer would join with the next word: the model has rarely "
            "seen it split there; leave the whitespace away, or set token_healing."
        )
        notes.append(Note("prompt_ends_in_whitespace", message))
    return notes


def _ends_in_split_whitespace(served: Served, text: str) -> bool:
    """Whether the tokens of the prompt's end are not those with which the prompt and a word behind it begin."""
    if not text[-1].isspace():
        return False
    tail = text[-_TAIL_CHARACTERS:]
    alone, followed = (
        served.text.encode(part, add_special_tokens=False, parse_special_tokens=True) for part in (tail, tail + _WORD)
    )
    return followed[: len(alone)] != alone
