"""A model and a sampler without torch and without Rust, made so that a mistake in the engine changes the tokens.

The fake model keeps its KV cache as the tokens themselves, written and read through block tables only: the next token
is a hash of what the table says came before. A wrong block, position, chunk or recomputation gives another token.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokenwire.engine.protocol import Submit
from tokenwire.engine.settings import GenerationSettings
from tokenwire.model.batch import ForwardBatch

VOCAB = 97
NAN_TOKEN = 96
"""A prompt that begins with it gets NaN logits."""


def next_token(tokens: Sequence[int]) -> int:
    """The token that the fake model gives after ``tokens``; never NAN_TOKEN."""
    state = 17
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return state % (VOCAB - 1)


def chosen_token(likeliest: int, settings: GenerationSettings, sequence_index: int, step: int) -> int:
    """What the fake sampler takes where the model's token is ``likeliest``: sampling, another one per sequence."""
    return (likeliest + 7 * sequence_index * (step + 1)) % (VOCAB - 1) if settings.do_sample else likeliest


def guided_token(likeliest: int, unconditional: int) -> int:
    """What the fake sampler takes for the model's token under guidance."""
    return (likeliest + 3 * unconditional) % (VOCAB - 1)


def expected_answer(
    prompt: Sequence[int],
    max_new_tokens: int,
    eos: Sequence[int] = (),
    *,
    sequence_index: int = 0,
    negative_prompt: Sequence[int] | None = None,
) -> list[int]:
    """What one sequence gives if it is served alone by a loop without an engine; sampled if it has an index."""
    tokens = list(prompt)
    twin = None if negative_prompt is None else list(negative_prompt)
    settings = GenerationSettings(max_new_tokens=max_new_tokens, do_sample=sequence_index > 0)
    for step in range(max_new_tokens):
        token = next_token(tokens)
        if twin is not None:
            token = guided_token(token, next_token(twin))
        token = chosen_token(token, settings, sequence_index, step)
        tokens.append(token)
        if twin is not None:
            twin.append(token)
        if token in eos:
            break
    return tokens[len(prompt) :]


@dataclass
class FakeRunner:
    """Implements `tokenwire.model.batch.Runner`, and checks what the contract promises to it."""

    num_blocks: int = 64
    block_size: int = 4
    context_length: int = 4096
    supports_chunked_prefill: bool = True
    supports_drafts: bool = True
    shares_blocks: bool = True
    vocab_size: int = VOCAB
    on_forward: Callable[[ForwardBatch], None] | None = None
    batches: list[ForwardBatch] = field(default_factory=list)
    released: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = [[-1] * self.block_size for _ in range(self.num_blocks)]
        self.states: dict[int, list[int]] = {}
        """Where blocks are not shared: the tokens of each sequence."""
        self.num_copies = 0

    def forward(self, batch: ForwardBatch) -> NDArray[np.float32]:
        self.batches.append(batch)
        if self.on_forward is not None:
            self.on_forward(batch)
        holders = Counter(block for table in batch.block_tables for block in table)
        assert len(set(batch.sequence_ids)) == len(batch.sequence_ids)
        assert self.shares_blocks or all(count == 1 for count in holders.values()), "two sequences share a block"
        rows = []
        for sequence, tokens, start, table, wanted in zip(
            batch.sequence_ids,
            batch.token_ids,
            batch.num_computed_tokens,
            batch.block_tables,
            batch.num_logits,
            strict=True,
        ):
            assert tokens
            assert len(table) * self.block_size >= start + len(tokens)
            assert 0 <= wanted <= len(tokens)
            seen = self._write(sequence, tokens, start, table, holders)
            rows += [(seen[0], next_token(seen[:end])) for end in range(len(seen) - wanted + 1, len(seen) + 1)]
        logits = np.zeros((len(rows), self.vocab_size), np.float32)
        for row, (first, token) in enumerate(rows):
            logits[row, token] = np.nan if first == NAN_TOKEN else 1.0
        return logits

    def _write(
        self, sequence: int, tokens: list[int], start: int, table: list[int], holders: Counter[int]
    ) -> list[int]:
        """Put the tokens into the cache; what the sequence has there then."""
        if not self.shares_blocks:
            state = self.states.setdefault(sequence, []) if start == 0 else self.states[sequence]
            assert len(state) == start, "the state is not where the batch says"
            state.extend(tokens)
            return state
        for position, token in enumerate(tokens, start):
            block = table[position // self.block_size]
            assert holders[block] == 1, "a shared block is written"
            self.cache[block][position % self.block_size] = token
        return [
            self.cache[table[position // self.block_size]][position % self.block_size]
            for position in range(start + len(tokens))
        ]

    def copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        assert self.shares_blocks
        assert len(set(targets)) == len(targets)
        self.num_copies += len(targets)
        contents = [self.cache[source].copy() for source in sources]
        for target, content in zip(targets, contents, strict=True):
            self.cache[target] = content

    def copy_sequences(self, sources: list[int], targets: list[int]) -> None:
        assert not self.shares_blocks
        assert len(set(targets)) == len(targets)
        self.num_copies += len(targets)
        self.states |= {target: self.states[source].copy() for source, target in zip(sources, targets, strict=True)}

    def release(self, sequence_ids: list[int]) -> None:
        self.released.extend(sequence_ids)
        for sequence in sequence_ids:
            self.states.pop(sequence, None)


@dataclass
class FakeGeneration:
    settings: GenerationSettings
    sequence_index: int = 0
    num_generated: int = 0
    held: str = ""
    """Text of the newest token, until the next one comes or the sequence ends."""
    eos_probability_max: float | None = None

    def end(self) -> "FakeEmission":
        text, self.held = self.held, ""
        return FakeEmission(-1, text)


@dataclass
class FakeEmission:
    token_id: int
    text: str = ""
    finish_reason: str | None = None
    stop_string: str | None = None
    stop_token_id: int | None = None
    logprob: float | None = None
    rank: int | None = None
    top_logprobs: list[tuple[int, float]] = field(default_factory=list)
    explanation: None = None
    error: str | None = None


PANIC = 13.0
"""A temperature at which building the generation fails as a panic of Rust does."""


def make_generation(submit: Submit) -> FakeGeneration:
    if submit.settings.temperature == PANIC:
        raise RuntimeError("a panic")
    if submit.settings.temperature < 0:
        raise ValueError("temperature: must be above 0")
    return FakeGeneration(submit.settings, submit.sequence_index)


class FakeSampler:
    """Takes `chosen_token`; the text of token 5 is ``5.``, held back until the next token or the end."""

    def verify(
        self, logits: NDArray[np.float32], generations: Sequence[FakeGeneration], drafts: Sequence[Sequence[int]]
    ) -> list[list[FakeEmission]]:
        """The same, row behind row as long as drafts come true."""
        assert len(logits) == sum(len(draft) + 1 for draft in drafts)
        emissions, end = [], 0
        for generation, draft in zip(generations, drafts, strict=True):
            start, end = end, end + len(draft) + 1
            row: list[FakeEmission] = []
            for place in range(len(draft) + 1):
                row += self.step(logits[start + place : start + place + 1], [generation])
                if row[-1].finish_reason is not None or [row[-1].token_id] != draft[place : place + 1]:
                    break
            emissions.append(row)
        return emissions

    def logprobs_of(
        self,
        logits: NDArray[np.float32],
        token_ids: Sequence[int],
        count: int,
        *,
        remove_invalid_values: bool = False,
    ) -> list[tuple[float, int, list[tuple[int, float]]]]:
        """The token and the greedy one, in place of probabilities."""
        assert len(logits) == len(token_ids)
        if np.isnan(logits).any() and not remove_invalid_values:
            raise ValueError("the logits hold NaN")
        return [
            (-float(token), 1, [(int(row.argmax()), 0.0)] * count) for token, row in zip(token_ids, logits, strict=True)
        ]

    def step(
        self, logits: NDArray[np.float32], generations: Sequence[FakeGeneration], *, guidance: Sequence[int] = ()
    ) -> list[FakeEmission]:
        assert logits.shape == (len(generations) + sum(twin >= 0 for twin in guidance), VOCAB)
        assert all(twin == -1 or twin >= len(generations) for twin in guidance)
        emissions = []
        for number, generation in enumerate(generations):
            row = logits[number]
            if np.isnan(row).any() and generation.settings.remove_invalid_values:
                row = np.zeros_like(row)
            if np.isnan(row).any():
                emissions.append(FakeEmission(-1, error="the logits hold NaN"))
                continue
            token = int(row.argmax())
            if guidance and guidance[number] >= 0:
                token = guided_token(token, int(logits[guidance[number]].argmax()))
            token = chosen_token(token, generation.settings, generation.sequence_index, generation.num_generated)
            generation.num_generated += 1
            emission = FakeEmission(token, generation.held)
            generation.held = f"{token}."
            if token in generation.settings.eos_token_ids:
                emission.finish_reason, emission.stop_token_id = "eos", token
            elif generation.num_generated == generation.settings.max_new_tokens:
                emission.finish_reason = "length"
            if emission.finish_reason is not None:
                emission.text += generation.held
            if generation.settings.logprobs is not None:
                emission.logprob, emission.rank, emission.top_logprobs = -0.5, 1, [(token, -0.5)]
            emissions.append(emission)
        return emissions


@dataclass
class FakeBeamAnswer:
    token_ids: list[int]
    text: str
    finish_reason: str | None
    score: float
    stop_string: str | None = None
    stop_token_id: int | None = None


@dataclass
class FakeBeamStep:
    parents: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    answers: list[FakeBeamAnswer] = field(default_factory=list)
    error: str | None = None


def fake_parents(num_beams: int, step: int) -> list[int]:
    """Which beams go on after a step: some twice, some not at all, in another order each time."""
    return [(3 * beam * beam + step * (beam + 1)) % num_beams for beam in range(num_beams)]


def fake_beam_token(likeliest: int, beam: int) -> int:
    return (likeliest + beam) % (VOCAB - 1)


class FakeBeamSearch:
    """Beams that move as `fake_parents` says and end at the length limit; beam j takes the j-th after the likeliest."""

    def __init__(self, submit: Submit) -> None:
        self.settings = submit.settings
        self.histories: list[list[int]] = [[] for _ in range(submit.settings.num_beams)]

    def step(self, logits: NDArray[np.float32], *, is_last: bool = False) -> FakeBeamStep:
        num_beams = self.settings.num_beams
        step = len(self.histories[0])
        assert logits.shape == (num_beams if step else 1, VOCAB)
        if np.isnan(logits).any():
            return FakeBeamStep(error="the logits hold NaN")
        parents = fake_parents(num_beams, step) if step else [0] * num_beams
        tokens = [fake_beam_token(int(logits[parent].argmax()), beam) for beam, parent in enumerate(parents)]
        self.histories = [[*self.histories[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        if not is_last and step + 1 < self.settings.max_new_tokens:
            return FakeBeamStep(parents, tokens)
        reason = "length" if step + 1 == self.settings.max_new_tokens else None
        return FakeBeamStep(
            answers=[
                FakeBeamAnswer(history, "".join(f"{token}." for token in history), reason, -float(beam))
                for beam, history in enumerate(self.histories[: self.settings.num_return_sequences])
            ]
        )


def expected_beams(prompt: Sequence[int], num_beams: int, max_new_tokens: int) -> list[list[int]]:
    """What the fake beam search ends with if it is served alone by a loop without an engine."""
    histories: list[list[int]] = [[] for _ in range(num_beams)]
    for step in range(max_new_tokens):
        parents = fake_parents(num_beams, step) if step else [0] * num_beams
        histories = [
            [*histories[parent], fake_beam_token(next_token([*prompt, *histories[parent]]), beam)]
            for beam, parent in enumerate(parents)
        ]
    return histories
