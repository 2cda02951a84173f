"""Token healing: where a prompt's text ends inside a word, the model may finish the last token in its own way.

transformers' ``heal_tokens``, with these differences: the prompt is not stripped first; tokens are compared by their
vocabulary entries, so that those with a space or other characters than ASCII are found as well; only tokens that begin
with the dropped one are allowed, where transformers prefers them by 10; special tokens are never among them; the first
token is chosen as the request's settings say, where transformers takes the most likely.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from tokenwire.engine.settings import GenerationSettings
from tokenwire.servicers.text import Text


class Healed(NamedTuple):
    """What is to be generated from."""

    prompt_ids: list[int]
    settings: GenerationSettings
    given_text: str
    """Text of the dropped token, which the first generated token repeats; the engine leaves it out of the answer."""


async def heal(text: Text, prompt_ids: Sequence[int], settings: GenerationSettings) -> Healed:
    """What is to be generated so that the border between prompt and answer falls where the tokenizer would put it.

    With ``token_healing`` the prompt's last token is dropped and the first generated token has to begin with it; that
    token counts to the prompt, so lengths are one more. Nothing changes where there is nothing to heal: a prompt of
    one token, a special token at its end, or one that no other token begins with.
    """
    prompt = list(prompt_ids)
    if not settings.token_healing or len(prompt) < 2:
        return Healed(prompt, settings, "")
    # The first time, the vocabulary is sorted.
    entry = await asyncio.to_thread(text.healable_entry, prompt[-1])
    if entry is None:
        return Healed(prompt, settings, "")
    decay = settings.exponential_decay_length_penalty
    healed = msgspec.structs.replace(
        settings,
        healed_prefix=entry,
        max_new_tokens=settings.max_new_tokens + 1,
        min_new_tokens=settings.min_new_tokens + 1 if settings.min_new_tokens else 0,
        exponential_decay_length_penalty=None if decay is None else (decay[0] + 1, decay[1]),
    )
    return Healed(prompt[:-1], healed, text.decode(prompt[-1:], skip_special_tokens=False))
