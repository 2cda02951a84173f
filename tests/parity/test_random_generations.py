"""Requests with settings at random give generate's ids, in each strategy and architecture, batched with other requests.

Each test serves 16 of them in one engine: eight architectures and four engines are 512.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from random_settings import draw, generate_options

from tests import tiny_models
from tests.parity.engine_groups import Answers, Job, beams, serve
from tests.parity.runner_loop import load_runner, prompts

STRATEGIES = ("greedy", "beams", "lookup", "assisted")
PER_STRATEGY = 4

ENGINES = {
    "whole": {"max_running": 64, "max_step_tokens": 512, "num_blocks": None},
    "chunks": {"max_running": 32, "max_step_tokens": 24, "num_blocks": None},
    "few rows": {"max_running": 8, "max_step_tokens": 64, "num_blocks": None},
    "full cache": {"max_running": 32, "max_step_tokens": 64, "num_blocks": 80},
}


@dataclass(frozen=True)
class Models:
    """A served model and what drafts for it, and both in transformers."""

    loaded: Any
    runner: Any
    draft_runner: Any
    reference: Any
    assistant: Any
    others: list[Job]
    alone: list[Answers]
    """What each of the others gets without batch mates."""


def save_near(model: Any, source: Path, folder: Path) -> Path:
    """A checkpoint like ``source`` whose weights are those of ``model`` with some noise: its drafts are often right."""
    import torch
    from transformers import AutoTokenizer

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def unrelated() -> list[Job]:
    """Drawn answers of one and several sequences, guidance, beams that sample, and plain ones."""
    drawn = {"do_sample": True, "max_new_tokens": 10, "temperature": 0.8}
    kinds: list[dict[str, Any]] = [
        {"max_new_tokens": 20},
        {**drawn, "seed": 1, "top_p": 0.9, "logprobs": 3},
        {**drawn, "seed": 2, "num_return_sequences": 3, "min_p": 0.01},
        {**drawn, "seed": 3, "guidance_scale": 1.5, "typical_p": 0.9},
        {**drawn, "seed": 4, "num_beams": 2, "top_k": 20},
        {**drawn, "seed": 5, "num_assistant_tokens": 3, "frequency_penalty": 1.0},
    ]
    return [Job(prompts([3 * number + 1], seed=number)[0], kind) for number, kind in enumerate(kinds)]


@pytest.fixture(scope="module", params=tiny_models.PAGED_FAMILIES + tiny_models.PADDED_FAMILIES)
def models(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Models:
    import torch
    from transformers import AutoModelForCausalLM

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    folder = checkpoint(request.param)
    # A draft model needs the paged path; another architecture may draft as well.
    drafts = folder if request.param in tiny_models.PAGED_FAMILIES else checkpoint("llama")
    near = save_near(load(drafts), drafts, tmp_path_factory.mktemp("near"))
    loaded, runner = load_runner(folder)
    others = unrelated()
    alone = [serve(loaded, runner, [job])[0][0] for job in others]
    return Models(loaded, runner, load_runner(near)[1], load(folder), load(near), others, alone)


def random_job(strategy: str, rng: random.Random) -> Job:
    """A prompt in which n-grams may come again, with settings of processors and those of the strategy."""
    length = rng.randint(5, 14)
    settings = {
        "max_new_tokens": length,
        "eos_token_ids": tuple(rng.sample(range(tiny_models.MODEL_VOCAB_SIZE), 20)),
        **draw(rng, length),
    }
    phrase = prompts([rng.choice([1, 4, 9])], seed=rng.randrange(1000))[0]
    prompt = phrase * rng.randint(1, 3)
    negative = rng.choice([None, prompts([3], seed=rng.randrange(1000))[0]])
    if strategy == "greedy":
        return Job(prompt, settings, negative_prompt=negative)
    settings.pop("guidance_scale", None)
    if strategy == "beams":
        settings["num_beams"] = rng.randint(2, 5)
        settings["num_return_sequences"] = rng.randint(1, settings["num_beams"])
        settings["length_penalty"] = rng.choice([0.0, 1.0, 2.0, -1.0])
        settings["early_stopping"] = rng.choice(["false", "true", "never"])
        return Job(prompt, settings)
    if strategy == "lookup":
        # Few tokens to choose from, so that n-grams come again; and no processor that would forbid them all.
        settings["allowed_token_ids"] = tuple(rng.sample(range(tiny_models.MODEL_VOCAB_SIZE), 8))
        settings.pop("begin_suppress_tokens", None)
        if settings.get("no_repeat_ngram_size") == 1:
            settings["no_repeat_ngram_size"] = 2
        settings |= {"prompt_lookup_num_tokens": rng.randint(1, 8), "max_matching_ngram_size": rng.randint(1, 3)}
        return Job(prompt, settings)
    settings["num_assistant_tokens"] = rng.randint(1, 6)
    return Job(prompt, settings)


def expected(models: Models, job: Job, strategy: str) -> list[list[int]]:
    """The generated ids of transformers."""
    import torch

    if strategy == "beams":
        return beams(models.reference, job)[0]
    options = generate_options(job.settings, job.negative_prompt)
    if strategy == "assisted":
        models.assistant.generation_config.update(
            num_assistant_tokens=options.pop("num_assistant_tokens"),
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        options["assistant_model"] = models.assistant
    ids = torch.tensor([job.prompt])
    output = models.reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return [output[0, len(job.prompt) :].tolist()]


def answered(models: Models, strategy: str, rng: random.Random) -> tuple[Job, list[list[int]]]:
    """A random request, and what transformers answers."""
    while True:
        job = random_job(strategy, rng)
        try:
            return job, expected(models, job, strategy)
        except IndexError:
            # transformers fails where no token is on its green list.
            assert job.settings["watermark"].seeding_scheme == "selfhash"


def ids_of(answer: Answers) -> list[list[int]]:
    return [answer.tokens[index] for index in sorted(answer.tokens)]


@pytest.mark.parametrize("engine", ENGINES)
def test_any_settings_in_one_batch_give_the_ids_of_generate(
    models: Models, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(f"{models.reference.config.model_type} {engine}")
    jobs, wanted, strategies = [], [], []
    for strategy in STRATEGIES * PER_STRATEGY:
        job, tokens = answered(models, strategy, rng)
        jobs.append(job)
        strategies.append(strategy)
        wanted.append(tokens)
    limits = dict(ENGINES[engine])
    num_blocks = limits.pop("num_blocks")
    if num_blocks is not None:
        monkeypatch.setattr(models.runner, "num_blocks", num_blocks)
    mixed = [*jobs, *models.others]
    order = rng.sample(range(len(mixed)), len(mixed))
    served, _ = serve(
        models.loaded, models.runner, [mixed[i] for i in order], draft_runner=models.draft_runner, **limits
    )
    answers = [answer for _, answer in sorted(zip(order, served, strict=True), key=lambda pair: pair[0])]
    for strategy, job, answer, tokens in zip(strategies, jobs, answers, wanted, strict=False):
        assert ids_of(answer) == tokens, (strategy, job)
    for job, answer, single in zip(models.others, answers[len(jobs) :], models.alone, strict=True):
        assert answer.tokens == single.tokens, job
    # Beside beams and guidance nothing is drafted: once more without them.
    plain = [job for job in models.others if job.settings.get("num_beams", 1) == job.settings.get("guidance_scale", 1)]
    chosen = [number for number, strategy in enumerate(strategies) if strategy in ("lookup", "assisted")]
    served, _ = serve(
        models.loaded, models.runner, [*(jobs[n] for n in chosen), *plain], draft_runner=models.draft_runner, **limits
    )
    for number, answer in zip(chosen, served, strict=False):
        assert ids_of(answer) == wanted[number], (strategies[number], jobs[number])
    drafts = [answer.finishes[0].draft_token_count for answer in served[: len(chosen)]]
    assert (sum(drafts) > 0) == (models.runner.forward_path == "paged")
