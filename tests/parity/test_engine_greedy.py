"""The whole engine (scheduler, runner, Rust sampler) gives generate's greedy tokens, whatever the scheduler does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.runner_loop import generate, load_runner, prompts
from tests.tiny_models import PADDED_FAMILIES, PAGED_FAMILIES

NEW_TOKENS = 12
LENGTHS = [1, 4, 5, 8, 13, 17, 30, 41]


@pytest.fixture(scope="module", params=PAGED_FAMILIES + PADDED_FAMILIES)
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[Any, Any, list[Any], list[Any]]:
    """Loaded model, runner, prompts and the expected continuations of one tiny model."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint(request.param)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = prompts(LENGTHS)
    loaded, runner = load_runner(folder)
    # The reference runs on after EOS.
    expected = [cut_after(generate(reference, prompt, NEW_TOKENS), loaded.eos_token_ids) for prompt in texts]
    return loaded, runner, texts, expected


def cut_after(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    """The tokens up to the first of ``ends``, which stays."""
    return tokens[: next((n for n, token in enumerate(tokens, 1) if token in ends), len(tokens))]


def serve(
    case: tuple[Any, Any, list[Any], list[Any]], *, max_running: int, max_step_tokens: int, prefill_share: float = 1.0
) -> int:
    """Serve all prompts at once and compare; returns how many sequences were preempted."""
    from tokenwire._native import Sampler, Tokenizer
    from tokenwire.engine.engine import Engine
    from tokenwire.engine.generations import generation_factory
    from tokenwire.engine.protocol import Submit
    from tokenwire.engine.settings import GenerationSettings

    loaded, runner, texts, expected = case
    tokenizer = Tokenizer.from_json(loaded.tokenizer_json)
    make_generation = generation_factory(tokenizer, loaded.vocab_size)
    engine = Engine(
        runner,
        Sampler(),
        make_generation,
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        prefill_share=prefill_share,
    )
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS, eos_token_ids=loaded.eos_token_ids)
    for request, prompt in enumerate(texts):
        engine.inbox.put((0.0, Submit(request, list(prompt), settings)))
    answers: list[list[int]] = [[] for _ in texts]
    deltas: list[str] = ["" for _ in texts]
    open_requests = len(texts)
    while open_requests:
        outputs = engine.step()
        assert not outputs.failures
        for delta in outputs.deltas:
            answers[delta.request] += delta.token_ids
            deltas[delta.request] += delta.text
            open_requests -= delta.finish is not None
    assert answers == expected
    known = [[token for token in answer if token < tokenizer.vocab_size] for answer in answers]
    assert deltas == [tokenizer.decode(answer) for answer in known]
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total
    return stats.preemptions


@pytest.mark.parametrize(("max_running", "max_step_tokens"), [(1, 512), (8, 512), (8, 16), (3, 3)])
def test_any_batch_and_any_chunk(
    case: tuple[Any, Any, list[Any], list[Any]], max_running: int, max_step_tokens: int
) -> None:
    assert serve(case, max_running=max_running, max_step_tokens=max_step_tokens) == 0


def test_with_prefill_paced(case: tuple[Any, Any, list[Any], list[Any]]) -> None:
    """Chunks are as measured times make them; prompts come beside rows that decode, since three run at once."""
    assert serve(case, max_running=3, max_step_tokens=64, prefill_share=0.2) == 0


def test_after_preemption(case: tuple[Any, Any, list[Any], list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case[1], "num_blocks", 16)
    assert serve(case, max_running=8, max_step_tokens=64) > 0
