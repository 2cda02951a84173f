"""The same seed gives the same answer: alone, in a batch of 16, after a preemption, and with other prefill chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tests.parity.engine_groups import Job, serve
from tests.parity.runner_loop import load_runner, prompts

DRAWN = {"do_sample": True, "max_new_tokens": 16}
SETTINGS: list[dict[str, Any]] = [
    {"top_k": 0},
    {"temperature": 0.7, "top_k": 40, "repetition_penalty": 1.3},
    {"top_p": 0.9, "min_p": 0.01, "frequency_penalty": 0.5},
    {"top_h": 0.8, "typical_p": 0.95, "eta_cutoff": 1e-3, "renormalize_logits": True},
]
NUM_REQUESTS = 16


@pytest.fixture(scope="module", params=("llama", "gemma3", *tiny_models.PADDED_FAMILIES))
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[Any, Any, list[Job], list[Any]]:
    """Loaded model, runner, 16 requests, and what each of them gets alone."""
    loaded, runner = load_runner(checkpoint(request.param))
    texts = prompts([5, 17, 1, 30, 9, 12, 3, 24] * 2, seed=4)
    jobs = [
        Job(text, {**DRAWN, "seed": 2**40 + number, **SETTINGS[number % len(SETTINGS)]})
        for number, text in enumerate(texts)
    ]
    assert len(jobs) == NUM_REQUESTS
    return loaded, runner, jobs, [serve(loaded, runner, [job])[0][0] for job in jobs]


@pytest.mark.parametrize(
    ("max_step_tokens", "num_blocks"),
    [(512, None), (19, None), (33, None), (64, 24)],
    ids=["one batch", "small chunks", "other chunks", "full cache"],
)
def test_the_seed_decides_the_answer(
    case: tuple[Any, Any, list[Job], list[Any]],
    max_step_tokens: int,
    num_blocks: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, runner, jobs, alone = case
    if num_blocks is not None:
        monkeypatch.setattr(runner, "num_blocks", num_blocks)
    answers, stats = serve(loaded, runner, jobs, max_running=NUM_REQUESTS, max_step_tokens=max_step_tokens)
    assert (stats.preemptions > 0) == (num_blocks is not None)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in alone]
    assert [answer.texts for answer in answers] == [answer.texts for answer in alone]


def test_another_seed_gives_another_answer(case: tuple[Any, Any, list[Job], list[Any]]) -> None:
    loaded, runner, jobs, alone = case
    others = [Job(job.prompt, {**job.settings, "seed": job.settings["seed"] + 100}) for job in jobs]
    answers, _ = serve(loaded, runner, others)
    assert sum(answer.tokens != single.tokens for answer, single in zip(answers, alone, strict=True)) > 12
