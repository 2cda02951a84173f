"""One sequence in the engine: its tokens, its blocks, and how far it is computed."""

from typing import TYPE_CHECKING, Generic, TypeVar

from tokenwire.engine.protocol import Submit

if TYPE_CHECKING:
    from tokenwire.engine.drafts import DraftState
    from tokenwire.engine.prompt_logprobs import PromptLogprobs

GenerationT = TypeVar("GenerationT")


class Request(Generic[GenerationT]):
    """State of one accepted sequence, owned by the scheduler and the engine's one thread.

    ``generation`` holds what the sampler needs (history, random counter, detokenizer, stop matcher); it lives through
    preemptions, so that a recomputed sequence goes on where it was.
    """

    __slots__ = (
        "accepted_at",
        "block_table",
        "draft",
        "first_forward_at",
        "first_token_at",
        "generation",
        "id",
        "is_prefilling",
        "max_new_tokens",
        "num_computed",
        "num_prompt",
        "num_slots",
        "prompt_logprobs",
        "step_tokens",
        "tokens",
        "wants_logprobs",
    )

    def __init__(self, submit: Submit, generation: GenerationT, accepted_at: float) -> None:
        self.id = submit.request
        self.generation = generation
        self.tokens = submit.prompt_ids
        """Prompt and generated tokens; taken over from the command, not copied."""
        self.num_prompt = len(submit.prompt_ids)
        self.max_new_tokens = submit.settings.max_new_tokens
        self.wants_logprobs = submit.settings.logprobs is not None
        self.draft: DraftState | None = None
        """Where its tokens are to be guessed."""
        self.prompt_logprobs: PromptLogprobs | None = None
        """Where its prompt is to be scored, until they are sent."""
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

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def max_cached_tokens(self) -> int:
        """Most tokens that ever lie in the KV cache: the last one generated is never computed."""
        return self.num_prompt + self.max_new_tokens - 1
