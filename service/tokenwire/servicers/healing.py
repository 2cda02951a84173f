"""Token healing: where a prompt's text ends inside a word, the model may finish the last token in its own way.

transformers' ``heal_tokens``: the most likely of the tokens that begin with the prompt's last one takes its place, and
from then on it is a token of the prompt like any other. So prompt and answer have the lengths that they have without
healing, and no setting of the request acts on that token but ``remove_invalid_values``, and a stop string in its text.
With these differences: the prompt is not stripped first; tokens are compared by their vocabulary entries, so that those
with a space or other characters than ASCII are found as well; only tokens that begin with the dropped one are allowed,
where transformers prefers them by 10; special tokens are never among them; and guidance without a negative prompt goes
on from the token before it, because the healed one is not known yet when that begins.
"""

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


def heal(text: Text, prompt_ids: Sequence[int], settings: GenerationSettings) -> Healed:
    """What is to be generated so that the border between prompt and answer falls where the tokenizer would put it.

    With ``token_healing`` the prompt's last token is dropped and the first step gives one that begins with it, in its
    place. Nothing changes where there is nothing to heal: a prompt of one token, a special token at its end, or one
    that no other token begins with.
    """
    prompt = list(prompt_ids)
    if not settings.token_healing or len(prompt) < 2:
        return Healed(prompt, settings, "")
    dropped = prompt[-1]
    if not text.is_healable(dropped):
        return Healed(prompt, settings, "")
    healed = msgspec.structs.replace(settings, healed_token_id=dropped)
    return Healed(prompt[:-1], healed, text.decode([dropped], skip_special_tokens=False))
