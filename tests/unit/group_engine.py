"""An engine with fakes, and what came out of it by request and sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine_fakes import FakeBeamSearch, FakeGeneration, FakeRunner, FakeSampler, make_generation, next_token

from tokenwire.engine.drafts import Ask, DraftModelLike
from tokenwire.engine.engine import Engine
from tokenwire.engine.protocol import Command, Failure, Finish, StepOutputs, Submit, TokenLogprobs
from tokenwire.engine.settings import GenerationSettings

Key = tuple[int, int]
"""Request and sequence index."""


class AlmostRightDrafts:
    """A draft model that guesses right twice and then wrong."""

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        proposals = []
        for ask in asks:
            tokens = list(ask.tokens)
            for number in range(ask.num_tokens):
                tokens.append((next_token(tokens) + (number >= 2)) % 96)
            proposals.append(tokens[len(ask.tokens) :])
        return proposals

    def release(self, sequences: Sequence[int]) -> None:
        pass

    def reset(self) -> None:
        pass


@dataclass
class GroupEngine:
    """Submits, steps, and checks that every sequence ends once and nothing comes behind an end."""

    runner: FakeRunner = field(default_factory=FakeRunner)
    max_running: int = 8
    max_step_tokens: int = 32
    prefill_share: float = 1.0
    now: float = 0.0
    step_now: float = 0.0
    """By which a step is measured; it stands still unless a test moves it."""
    draft_model: DraftModelLike | None = None
    tokens: dict[Key, list[int]] = field(default_factory=dict)
    texts: dict[Key, str] = field(default_factory=dict)
    finishes: dict[Key, Finish] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine: Engine[FakeGeneration] = Engine(
            self.runner,
            FakeSampler(),
            make_generation,
            max_running=self.max_running,
            max_step_tokens=self.max_step_tokens,
            make_beam_search=FakeBeamSearch,
            draft_model=self.draft_model or AlmostRightDrafts(),
            prefill_share=self.prefill_share,
            clock=lambda: self.now,
            step_clock=lambda: self.step_now,
        )

    def send(self, command: Command) -> None:
        self.engine.inbox.put((self.now, command))

    def submit(
        self,
        request: int,
        prompt: list[int],
        max_new_tokens: int = 6,
        *,
        sequence_index: int = 0,
        negative_prompt: list[int] | None = None,
        deadline: float | None = None,
        **settings: object,
    ) -> None:
        decided = GenerationSettings(max_new_tokens=max_new_tokens, **settings)  # type: ignore[arg-type]
        negative = None if negative_prompt is None else list(negative_prompt)
        self.send(Submit(request, list(prompt), decided, sequence_index, negative, deadline))

    def step(self) -> StepOutputs:
        outputs = self.engine.step()
        for delta in outputs.deltas:
            key = (delta.request, delta.sequence_index)
            assert key not in self.finishes, "a delta after the finish"
            assert delta.request not in self.failures, "a delta after the failure"
            if delta.prompt_logprobs is not None:
                assert delta.sequence_index == 0
                assert key not in self.tokens, "not the first delta"
                self.prompt_logprobs[delta.request] = delta.prompt_logprobs
            self.tokens.setdefault(key, []).extend(delta.token_ids)
            self.texts[key] = self.texts.get(key, "") + delta.text
            if delta.finish is not None:
                self.finishes[key] = delta.finish
        for failure in outputs.failures:
            assert failure.request not in self.failures, "two failures"
            self.failures[failure.request] = failure
        return outputs

    @property
    def is_idle(self) -> bool:
        stats = self.engine.stats()
        return not stats.running and not stats.waiting and self.engine.inbox.empty()

    def run(self) -> None:
        while not self.is_idle:
            self.step()

    def assert_nothing_held(self) -> None:
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)
        assert not self.runner.states
