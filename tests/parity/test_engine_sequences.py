"""Several sequences of one prompt: sequence j is the one with sequence_index j alone, whatever runs beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.engine_groups import Job, serve
from tests.parity.runner_loop import load_runner, prompts

FAMILIES = ("llama", "qwen3", "gemma3", "bloom")
SAMPLED = {"do_sample": True, "max_new_tokens": 16, "temperature": 0.7, "top_k": 0}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[Any, Any, list[Job], list[Any]]:
    """Loaded model, runner, requests of several sequences, and each sequence alone."""
    loaded, runner = load_runner(checkpoint(request.param))
    counts = [4, 1, 3, 6, 2]
    jobs = [
        Job(text, {**SAMPLED, "seed": 11 + count, "num_return_sequences": count, "eos_token_ids": (7, 99)}, count)
        for text, count in zip(prompts([6, 15, 1, 22, 8]), counts, strict=True)
    ]
    alone = [
        [
            serve(loaded, runner, [Job(job.prompt, {**job.settings, "num_return_sequences": 1}, count + index)])[0][0]
            for index in range(count)
        ]
        for job, count in zip(jobs, counts, strict=True)
    ]
    return loaded, runner, jobs, alone


def check(answers: list[Any], alone: list[Any]) -> None:
    for answer, expected in zip(answers, alone, strict=True):
        assert len(answer.finishes) == len(expected)
        for index, sequence in enumerate(expected):
            assert answer.tokens[index] == sequence.tokens[0]
            assert answer.texts[index] == sequence.texts[0]
            assert answer.finishes[index].reason == sequence.finishes[0].reason
        assert len({tuple(answer.tokens[index]) for index in range(len(expected))}) == len(expected)


@pytest.mark.parametrize(
    ("max_running", "max_step_tokens"), [(32, 512), (8, 10), (2, 512)], ids=["many", "chunks", "few rows"]
)
def test_each_sequence_is_the_one_alone(
    case: tuple[Any, Any, list[Job], list[Any]], max_running: int, max_step_tokens: int
) -> None:
    loaded, runner, jobs, alone = case
    answers, stats = serve(loaded, runner, jobs, max_running=max_running, max_step_tokens=max_step_tokens)
    assert stats.preemptions == 0
    check(answers, alone)


def test_after_preemption(case: tuple[Any, Any, list[Job], list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, runner, jobs, alone = case
    monkeypatch.setattr(runner, "num_blocks", 20)
    answers, stats = serve(loaded, runner, jobs, max_step_tokens=24)
    assert stats.preemptions > 0
    check(answers, alone)


def test_recurrent_state_is_forked_as_well(tmp_path: Path) -> None:
    """Beams and sequences of a model that keeps no keys and values: each has a copy of the state."""
    import torch
    from transformers import AutoModelForCausalLM, MambaConfig

    from tests import tiny_models
    from tests.parity.engine_groups import beams

    config = MambaConfig(
        vocab_size=tiny_models.MODEL_VOCAB_SIZE,
        hidden_size=64,
        num_hidden_layers=3,
        state_size=8,
        time_step_rank=4,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=3,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    tiny_models.build_tokenizer().save_pretrained(tmp_path)
    loaded, runner = load_runner(tmp_path)
    (text,) = prompts([9])
    jobs = [
        Job(text, {**SAMPLED, "seed": 1, "num_return_sequences": 3}),
        Job(text, {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8}),
    ]
    (sampled, searched), _ = serve(loaded, runner, jobs)
    for index in range(3):
        alone = serve(loaded, runner, [Job(text, {**SAMPLED, "seed": 1}, index)])[0][0]
        assert sampled.tokens[index] == alone.tokens[0]
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens, scores = beams(reference, jobs[1])
    assert [searched.tokens[index] for index in range(3)] == tokens
    assert [searched.finishes[index].sequence_score for index in range(3)] == pytest.approx(scores, abs=1e-5)
