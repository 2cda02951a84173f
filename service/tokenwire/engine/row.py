"""One row of the batch: a sequence's tokens, its blocks, and how far it is computed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from tokenwire.engine.protocol import Submit

if TYPE_CHECKING:
    from tokenwire.engine.beams import BeamGroup
    from tokenwire.engine.drafts import DraftState
    from tokenwire.engine.prompt_logprobs import PromptLogprobs

GenerationT = TypeVar("GenerationT")


class TimeLimits(NamedTuple):
    """Monotonic seconds after which an answer ends as it is; infinity for none."""

    max_time_at: float
    """max_time is over. The token of the step in which it passes counts, and the first one comes in any case."""
    deadline: float
    """The caller stops listening: the answer ends shortly before, also an empty one."""


class Row(Generic[GenerationT]):
    """State of one sequence, owned by the scheduler and the engine's one thread.

    A request has one row, or several:

    - its further sequences (num_return_sequences) are ``forks`` of the first until the prompt is computed, and rows
      like any other from then on;
    - a row under guidance has a *mate*, the twin that is fed the same tokens behind the negative prompt;
    - the other beams of a beam search are *mates* of the first.

    A row and its mates are scheduled, computed and preempted together.

    ``generation`` holds what the sampler needs (history, random counter, detokenizer, stop matcher); it lives through
    preemptions, so that a recomputed sequence goes on where it was. Mates have that of their row; beams have none.
    """

    __slots__ = (
        "accepted_at",
        "beams",
        "block_table",
        "draft",
        "first_forward_at",
        "first_token_at",
        "forks",
        "generation",
        "id",
        "index",
        "is_mate",
        "is_prefilling",
        "limits",
        "mates",
        "max_new_tokens",
        "num_cached_tokens",
        "num_computed",
        "num_prompt",
        "num_slots",
        "prompt_logprobs",
        "request",
        "step_tokens",
        "tokens",
        "wants_details",
        "width",
    )

    def __init__(
        self, number: int, submit: Submit, prompt_ids: list[int], generation: GenerationT, accepted_at: float
    ) -> None:
        self.id = number
        """Among all rows of the engine."""
        self.request = submit.request
        self.index = 0
        """Among the sequences of the request."""
        self.generation = generation
        self.tokens = prompt_ids
        """Prompt and generated tokens; taken over, not copied."""
        self.num_prompt = len(prompt_ids) + (submit.settings.healed_token_id is not None)
        """Tokens of the prompt. Where its last one is to be healed, the token that takes its place comes out of the
        first step and counts here."""
        self.max_new_tokens = submit.settings.max_new_tokens
        self.wants_details = submit.settings.logprobs is not None or submit.settings.explain
        """Whether more than its text is to be said of each token."""
        self.num_computed = 0
        """Tokens whose keys and values are in the KV cache."""
        self.block_table: list[int] = []
        self.num_slots = 0
        """Tokens that ``block_table`` has room for."""
        self.step_tokens: list[int] = []
        """What the next forward pass computes: the last token, perhaps with drafts, or a chunk of the prefill."""
        self.is_prefilling = True
        """Whether tokens before the last one are still to be computed."""
        self.accepted_at = accepted_at
        self.first_forward_at = 0.0
        self.first_token_at = 0.0
        """Monotonic seconds; 0 before it happened."""
        self.limits: TimeLimits | None = None
        self.draft: DraftState | None = None
        """Where its tokens are to be guessed."""
        self.prompt_logprobs: PromptLogprobs | None = None
        """Where its prompt is to be scored, until they are sent."""
        self.num_cached_tokens = 0
        """Prompt tokens whose computation another sequence of the request did."""
        self.mates: Sequence[Row[GenerationT]] = ()
        self.is_mate = False
        self.forks: list[Row[GenerationT]] = []
        """Sequences that start from this row's prompt as soon as it is computed."""
        self.beams: BeamGroup[GenerationT] | None = None
        """On the first row of a beam search."""
        self.width = 1
        """Rows of a pass that are set aside for this one, its mates and its forks."""

    @property
    def num_generated(self) -> int:
        """Tokens generated so far; a healed one is none of them."""
        return max(0, len(self.tokens) - self.num_prompt)

    @property
    def max_cached_tokens(self) -> int:
        """Most tokens that ever lie in the KV cache: the last one generated is never computed."""
        return self.num_prompt + self.max_new_tokens - 1

    def follow(self, token_id: int) -> None:
        """Take a token that another row's logits gave, all before it being computed."""
        self.num_computed = len(self.tokens)
        self.is_prefilling = False
        self.tokens.append(token_id)
        self.step_tokens = [token_id]
