"""A model and a sampler without torch and without Rust, made so that a mistake in the engine changes the tokens.

The fake model keeps its KV cache as the tokens themselves, written and read through block tables only: the next token
is a hash of what the table says came before. A wrong block, position, chunk or recomputation gives another token.
"""

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


def expected_answer(prompt: Sequence[int], max_new_tokens: int, eos: Sequence[int] = ()) -> list[int]:
    """What one sequence gives if it is served alone by a loop without an engine."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(next_token(tokens))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


@dataclass
class FakeRunner:
    """Implements `tokenwire.model.batch.Runner`, and checks what the contract promises to it."""

    num_blocks: int = 64
    block_size: int = 4
    context_length: int = 4096
    max_prefill_rows: int | None = None
    supports_chunked_prefill: bool = True
    supports_drafts: bool = True
    vocab_size: int = VOCAB
    on_forward: Callable[[ForwardBatch], None] | None = None
    batches: list[ForwardBatch] = field(default_factory=list)
    released: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = [[-1] * self.block_size for _ in range(self.num_blocks)]

    def forward(self, batch: ForwardBatch) -> NDArray[np.float32]:
        held = [block for table in batch.block_tables for block in table]
        assert len(held) == len(set(held)), "two sequences share a block"
        self.batches.append(batch)
        if self.on_forward is not None:
            self.on_forward(batch)
        rows = []
        for tokens, start, table, wanted in zip(
            batch.token_ids, batch.num_computed_tokens, batch.block_tables, batch.num_logits, strict=True
        ):
            assert tokens
            for position, token in enumerate(tokens, start):
                self.cache[table[position // self.block_size]][position % self.block_size] = token
            assert 0 <= wanted <= len(tokens)
            seen = [
                self.cache[table[position // self.block_size]][position % self.block_size]
                for position in range(start + len(tokens))
            ]
            rows += [(seen[0], next_token(seen[:end])) for end in range(len(seen) - wanted + 1, len(seen) + 1)]
        logits = np.zeros((len(rows), self.vocab_size), np.float32)
        for row, (first, token) in enumerate(rows):
            logits[row, token] = np.nan if first == NAN_TOKEN else 1.0
        return logits

    def release(self, sequence_ids: list[int]) -> None:
        self.released.extend(sequence_ids)


@dataclass
class FakeGeneration:
    settings: GenerationSettings
    num_generated: int = 0


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
    error: str | None = None


PANIC = 13.0
"""A temperature at which building the generation fails as a panic of Rust does."""


def make_generation(submit: Submit) -> FakeGeneration:
    if submit.settings.temperature == PANIC:
        raise RuntimeError("a panic")
    if submit.settings.temperature < 0:
        raise ValueError("temperature: must be above 0")
    return FakeGeneration(submit.settings)


class FakeSampler:
    """Greedy; the text of token 5 is ``5.``."""

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
        self, logits: NDArray[np.float32], token_ids: Sequence[int], count: int
    ) -> list[tuple[float, int, list[tuple[int, float]]]]:
        """The token and the greedy one, in place of probabilities."""
        assert len(logits) == len(token_ids)
        if np.isnan(logits).any():
            raise ValueError("the logits hold NaN")
        return [
            (-float(token), 1, [(int(row.argmax()), 0.0)] * count) for token, row in zip(token_ids, logits, strict=True)
        ]

    def step(self, logits: NDArray[np.float32], generations: Sequence[FakeGeneration]) -> list[FakeEmission]:
        assert logits.shape == (len(generations), VOCAB)
        emissions = []
        for row, generation in zip(logits, generations, strict=True):
            if np.isnan(row).any():
                emissions.append(FakeEmission(-1, error="the logits hold NaN"))
                continue
            token = int(row.argmax())
            generation.num_generated += 1
            emission = FakeEmission(token, f"{token}.")
            if token in generation.settings.eos_token_ids:
                emission.finish_reason, emission.stop_token_id = "eos", token
            elif generation.num_generated == generation.settings.max_new_tokens:
                emission.finish_reason = "length"
            if generation.settings.logprobs is not None:
                emission.logprob, emission.rank, emission.top_logprobs = -0.5, 1, [(token, -0.5)]
            emissions.append(emission)
        return emissions
