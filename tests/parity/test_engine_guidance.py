"""Classifier-free guidance: the engine gives the tokens of generate(guidance_scale=..., negative_prompt_ids=...)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.engine_groups import Job, serve
from tests.parity.runner_loop import load_runner, prompts

FAMILIES = ("llama", "gemma3", "bloom")
NEW_TOKENS = 12
SCALES = [1.5, 3.0, 0.0, -0.5]
NEGATIVE_LENGTHS: list[int | None] = [None, 4, 1, 23, 11]


def guided(model: Any, prompt: list[int], scale: float, negative: list[int] | None) -> list[int]:
    """transformers' own greedy continuation under guidance."""
    import torch

    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        guidance_scale=scale,
        negative_prompt_ids=None if negative is None else torch.tensor([negative]),
    )
    return output[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[Any, Any, Any]:
    """A transformers model, and a loaded model and its runner of the same checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint(request.param)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return reference, *load_runner(folder)


def make_jobs(scale: float) -> list[Job]:
    texts = prompts([6, 17, 1, 9, 30])
    negatives = [
        None if length is None else prompts([length], seed=number + 1)[0]
        for number, length in enumerate(NEGATIVE_LENGTHS)
    ]
    settings = {"max_new_tokens": NEW_TOKENS, "guidance_scale": scale}
    return [Job(text, settings, negative_prompt=negative) for text, negative in zip(texts, negatives, strict=True)]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("max_step_tokens", "num_blocks"), [(512, None), (16, None), (24, 26)], ids=["whole", "chunks", "full cache"]
)
def test_guided_tokens_equal_transformers(
    case: tuple[Any, Any, Any],
    scale: float,
    max_step_tokens: int,
    num_blocks: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside requests without guidance, in one batch."""
    reference, loaded, runner = case
    if num_blocks is not None:
        monkeypatch.setattr(runner, "num_blocks", num_blocks)
    guided_jobs = make_jobs(scale)
    plain = [Job(text, {"max_new_tokens": NEW_TOKENS}) for text in prompts([3, 12, 7], seed=9)]
    jobs = [guided_jobs[0], plain[0], *guided_jobs[1:3], plain[1], *guided_jobs[3:], plain[2]]
    answers, stats = serve(loaded, runner, jobs, max_running=16, max_step_tokens=max_step_tokens)
    assert (stats.preemptions > 0) == (num_blocks is not None)
    for job, answer in zip(jobs, answers, strict=True):
        assert answer.tokens[0] == guided(
            reference, job.prompt, job.settings.get("guidance_scale", 1.0), job.negative_prompt
        )


def test_sequences_under_guidance_share_both_prompts(case: tuple[Any, Any, Any]) -> None:
    _, loaded, runner = case
    (prompt, negative) = prompts([10, 7])
    settings = {"max_new_tokens": 10, "guidance_scale": 2.0, "do_sample": True, "seed": 3, "top_k": 0}
    (together,), _ = serve(
        loaded, runner, [Job(prompt, {**settings, "num_return_sequences": 3}, negative_prompt=negative)]
    )
    for index in range(3):
        (alone,), _ = serve(loaded, runner, [Job(prompt, settings, index, negative_prompt=negative)])
        assert together.tokens[index] == alone.tokens[0]
    assert len({tuple(tokens) for tokens in together.tokens.values()}) == 3
