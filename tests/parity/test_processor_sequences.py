"""Whole greedy answers: what the processors see of prompt and answer is what ``generate`` gives its own."""

import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from processor_cases import TOKENIZER
from random_settings import draw, generate_options

from tests import tiny_models
from tokenwire._native import Sampler
from tokenwire.engine.generations import generation_factory
from tokenwire.engine.protocol import Submit
from tokenwire.engine.settings import GenerationSettings

VOCAB = tiny_models.MODEL_VOCAB_SIZE
LENGTH = 14


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_models.build_model("llama").eval()


def expected(model: Any, prompt: list[int], negative: list[int] | None, ends: list[int], chosen: dict[str, Any]) -> Any:
    """The answer of transformers' ``generate``."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=LENGTH,
        **generate_options({"eos_token_ids": ends, **chosen}, negative),
    )
    return output[0, len(prompt) :].tolist()


@torch.inference_mode()
def got(model: Any, prompt: list[int], negative: list[int] | None, ends: list[int], chosen: dict[str, Any]) -> Any:
    """Ours, on the logits of the same model; the unconditional row is the model without the prompt."""
    base = GenerationSettings(max_new_tokens=LENGTH, eos_token_ids=tuple(ends))
    settings = msgspec.structs.replace(base, **chosen)
    generation = generation_factory(TOKENIZER, VOCAB)(Submit(request=0, prompt_ids=prompt, settings=settings))
    sampler, answer = Sampler(), []
    start = prompt[-1:] if negative is None else negative
    while not generation.is_finished:
        contexts = [prompt + answer] + ([start + answer] if settings.guidance_scale != 1 else [])
        rows = [model(torch.tensor([context])).logits[0, -1].numpy() for context in contexts]
        guidance = [1] if len(rows) == 2 else None
        (emission,) = sampler.step(np.stack(rows), [generation], guidance=guidance)
        assert emission.error is None
        answer.append(emission.token_id)
    return answer


@pytest.mark.parametrize("seed", range(60))
def test_a_greedy_answer_equals_generate(model: Any, seed: int) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 4, 9]))]
    negative = rng.choice([None, [rng.randrange(VOCAB) for _ in range(3)]])
    ends = rng.sample(range(VOCAB), 20)
    chosen = draw(rng, LENGTH)
    assert got(model, prompt, negative, ends, chosen) == expected(model, prompt, negative, ends, chosen)
