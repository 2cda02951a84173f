"""A pass that runs out of memory becomes smaller ones: no request fails for it, and no token changes."""

from typing import Any

import pytest
import torch
from engine_fakes import FakeBeamSearch, FakeRunner, FakeSampler, expected_answer, expected_beams, make_generation
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.engine.engine import Engine
from tokenwire.engine.protocol import Failure, Stats, Submit
from tokenwire.engine.settings import GenerationSettings
from tokenwire.model.batch import ForwardBatch


class SmallMemory:
    """A forward of more than ``limit`` tokens raises torch's own error, as CUDA's allocator does."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sizes: list[int] = []
        self.num_raised = 0

    def __call__(self, batch: ForwardBatch) -> None:
        self.sizes.append(sum(map(len, batch.token_ids)))
        if self.sizes[-1] > self.limit:
            self.num_raised += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


def serve(
    runner: FakeRunner, submits: list[Submit], *, max_running: int = 8, max_step_tokens: int = 32
) -> tuple[dict[tuple[int, int], list[int]], list[Failure], Stats]:
    """Tokens by request and sequence, failures, and what is held at the end."""
    engine: Engine[Any] = Engine(
        runner,
        FakeSampler(),
        make_generation,
        make_beam_search=FakeBeamSearch,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
    )
    for submit in submits:
        engine.inbox.put((0.0, submit))
    tokens: dict[tuple[int, int], list[int]] = {}
    failures: list[Failure] = []
    while not engine.inbox.empty() or engine.stats().running or engine.stats().waiting:
        outputs = engine.step()
        for delta in outputs.deltas:
            tokens.setdefault((delta.request, delta.sequence_index), []).extend(delta.token_ids)
        failures += outputs.failures
    return tokens, failures, engine.stats()


def plain(request: int, prompt: list[int], max_new_tokens: int = 12, **settings: Any) -> Submit:
    return Submit(request, list(prompt), GenerationSettings(max_new_tokens=max_new_tokens, **settings))


@given(
    st.lists(st.lists(st.integers(0, 95), min_size=1, max_size=25), min_size=1, max_size=8),
    st.integers(2, 30),
    st.booleans(),
    st.sampled_from([0, 3]),
)
def test_no_request_fails_and_no_token_changes(
    prompts: list[list[int]], limit: int, shares_blocks: bool, lookup: int
) -> None:
    memory = SmallMemory(limit)
    runner = FakeRunner(num_blocks=200, on_forward=memory, shares_blocks=shares_blocks, supports_drafts=shares_blocks)
    submits = [plain(number, prompt, prompt_lookup_num_tokens=lookup) for number, prompt in enumerate(prompts)]
    tokens, failures, stats = serve(runner, submits)
    assert not failures
    assert tokens == {(number, 0): expected_answer(prompt, 12) for number, prompt in enumerate(prompts)}
    assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)


@pytest.mark.parametrize("shares_blocks", [True, False])
def test_requests_of_several_rows(shares_blocks: bool) -> None:
    memory = SmallMemory(6)
    runner = FakeRunner(num_blocks=400, on_forward=memory, shares_blocks=shares_blocks)
    submits = [
        plain(0, [1] * 9),
        plain(1, [2] * 11, do_sample=True, num_return_sequences=3),
        plain(2, [3] * 7, guidance_scale=2.0),
        plain(3, [4] * 13),
    ]
    tokens, failures, stats = serve(runner, submits)
    assert memory.num_raised
    assert not failures
    assert tokens[0, 0] == expected_answer([1] * 9, 12)
    assert [tokens[1, index] for index in range(3)] == [
        expected_answer([2] * 11, 12, sequence_index=index) if index else tokens[1, 0] for index in range(3)
    ]
    assert tokens[2, 0] == expected_answer([3] * 7, 12, negative_prompt=[3])
    assert tokens[3, 0] == expected_answer([4] * 13, 12)
    assert stats.blocks_free == stats.blocks_total


def test_a_beam_search_keeps_its_beams_and_the_others_make_room() -> None:
    memory = SmallMemory(6)
    runner = FakeRunner(num_blocks=400, on_forward=memory)
    submits = [plain(0, [1] * 9), plain(1, [2] * 9, num_beams=4, num_return_sequences=4), plain(2, [3] * 9)]
    tokens, failures, stats = serve(runner, submits)
    assert memory.num_raised
    assert not failures
    assert tokens[0, 0] == expected_answer([1] * 9, 12)
    assert [tokens[1, index] for index in range(4)] == expected_beams([2] * 9, 4, 12)
    assert tokens[2, 0] == expected_answer([3] * 9, 12)
    assert stats.blocks_free == stats.blocks_total


def test_a_beam_search_fails_alone_where_its_state_cannot_be_restored() -> None:
    memory = SmallMemory(6)
    runner = FakeRunner(num_blocks=400, on_forward=memory, shares_blocks=False)
    tokens, failures, stats = serve(runner, [plain(0, [1] * 3), plain(1, [2] * 3, num_beams=6), plain(2, [3] * 3)])
    assert [failure.request for failure in failures] == [1]
    assert tokens == {(0, 0): expected_answer([1] * 3, 12), (2, 0): expected_answer([3] * 3, 12)}
    assert stats.blocks_free == stats.blocks_total


def test_what_is_too_large_alone_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt that cannot be cut, too large for the memory: the others are served."""
    memory = SmallMemory(20)
    runner = FakeRunner(num_blocks=200, on_forward=memory, supports_chunked_prefill=False, shares_blocks=False)
    submits = [plain(0, [1] * 9), plain(1, [2] * 25), plain(2, [3] * 9)]
    tokens, failures, stats = serve(runner, submits)
    assert [(failure.request, failure.kind) for failure in failures] == [(1, "step")]
    assert tokens == {(0, 0): expected_answer([1] * 9, 12), (2, 0): expected_answer([3] * 9, 12)}
    assert stats.blocks_free == stats.blocks_total
    assert "out of memory in a pass of" in capsys.readouterr().err


def test_passes_grow_again_after_a_while() -> None:
    memory = SmallMemory(20)

    def relieve(batch: ForwardBatch) -> None:
        if memory.num_raised:
            memory.limit = 1000
        memory(batch)

    runner = FakeRunner(num_blocks=200, on_forward=relieve)
    prompts = [[number] * 300 for number in range(30)]
    tokens, failures, _ = serve(runner, [plain(n, prompt, 2) for n, prompt in enumerate(prompts)], max_running=1)
    assert memory.num_raised == 1
    assert not failures
    assert tokens == {(number, 0): expected_answer(prompt, 2) for number, prompt in enumerate(prompts)}
    assert max(memory.sizes[1:250]) == 16
    assert max(memory.sizes[270:]) == 32
