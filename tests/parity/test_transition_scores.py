"""Log probabilities are those of ``compute_transition_scores``: greedy, drawn and of beams, raw and processed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from random_settings import generate_options

from tests import tiny_models
from tests.parity.engine_groups import Job, serve
from tests.parity.runner_loop import load_runner, prompts

Case = tuple[Any, Any, Any]
LENGTHS = [1, 6, 13, 22]
PROCESSED: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "suppress_tokens": (9, 10, 11)},
    {"min_new_tokens": 6, "exponential_decay_length_penalty": (3, 1.2), "allowed_token_ids": tuple(range(2, 512, 3))},
]
DRAWN: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_k": 0},
    {"temperature": 1.3, "top_k": 60, "top_p": 0.95, "repetition_penalty": 1.2},
    {"top_k": 0, "min_p": 0.001, "typical_p": 0.9, "renormalize_logits": True},
]


@pytest.fixture(scope="module", params=tiny_models.PAGED_FAMILIES + tiny_models.PADDED_FAMILIES)
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Case:
    """A transformers model, and a loaded model and its runner of the same checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = checkpoint(request.param)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return reference, *load_runner(folder)


def transition_scores(reference: Any, job: Job, tokens: list[int]) -> tuple[list[float], list[float]]:
    """Of ``generate`` that draws ``tokens``: from its processed scores, and from its logits."""
    import torch

    settings = {name: value for name, value in job.settings.items() if "logprobs" not in name}
    replayed = iter(tokens)
    ids = torch.tensor([job.prompt])
    with patch("torch.multinomial", lambda *_, **__: torch.tensor([[next(replayed)]])):
        output = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **generate_options(settings),
        )
    assert output.sequences[0, len(job.prompt) :].tolist() == tokens
    processed, raw = (
        reference.compute_transition_scores(output.sequences, scores, normalize_logits=True)[0].tolist()
        for scores in (output.scores, output.logits)
    )
    return processed, raw


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "drawn"])
def test_log_probabilities_are_the_transition_scores(case: Case, sampled: bool) -> None:
    reference, loaded, runner = case
    jobs = []
    for number, settings in enumerate(DRAWN if sampled else PROCESSED):
        chosen = {"max_new_tokens": 10, "eos_token_ids": (2, 77), "do_sample": sampled, "seed": number, **settings}
        for text in prompts(LENGTHS, seed=number):
            jobs += [Job(text, {**chosen, "logprobs": 4, "processed_logprobs": which}) for which in (False, True)]
    answers, _ = serve(loaded, runner, jobs)
    for job, answer in zip(jobs, answers, strict=True):
        processed, raw = transition_scores(reference, job, answer.tokens[0])
        wanted = processed if job.settings["processed_logprobs"] else raw
        assert [entry.logprob for entry in answer.logprobs[0]] == pytest.approx(wanted, abs=1e-4), job


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0])
def test_scores_of_beams_are_their_transition_scores(case: Case, length_penalty: float) -> None:
    import torch

    reference, loaded, runner = case
    jobs = [
        Job(
            text,
            {
                "max_new_tokens": 9,
                "num_beams": 4,
                "num_return_sequences": 4,
                "length_penalty": length_penalty,
                "eos_token_ids": tuple(range(100, 160)),
                **settings,
            },
        )
        for number, settings in enumerate(PROCESSED[:2])
        for text in prompts(LENGTHS, seed=number)
    ]
    answers, _ = serve(loaded, runner, jobs)
    for job, answer in zip(jobs, answers, strict=True):
        ids = torch.tensor([job.prompt])
        output = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            return_dict_in_generate=True,
            output_scores=True,
            **generate_options(job.settings),
        )
        transitions = reference.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
        lengths = (output.beam_indices >= 0).sum(dim=1)
        scores = [answer.finishes[index].sequence_score for index in range(4)]
        assert scores == pytest.approx(output.sequences_scores.tolist(), abs=1e-4), job
        assert scores == pytest.approx((transitions.sum(dim=1) / lengths**length_penalty).tolist(), abs=1e-4), job
