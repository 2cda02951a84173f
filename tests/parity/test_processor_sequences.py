"""Whole greedy answers: what the processors see of prompt and answer is what ``generate`` gives its own."""

import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from processor_cases import TOKENIZER
from transformers import WatermarkingConfig

from tests import tiny_models
from tokenwire._native import Sampler
from tokenwire.engine.generations import generation_factory
from tokenwire.engine.protocol import Submit
from tokenwire.engine.settings import GenerationSettings, GreenListWatermark

VOCAB = tiny_models.MODEL_VOCAB_SIZE
LENGTH = 14


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_models.build_model("llama").eval()


def draw(rng: random.Random) -> dict[str, Any]:
    """A few settings under the names of GenerationSettings."""
    few = [rng.sample(range(VOCAB), 40) for _ in range(4)]
    every: dict[str, Any] = {
        "repetition_penalty": rng.uniform(0.5, 2.0),
        "encoder_repetition_penalty": rng.uniform(0.5, 2.0),
        "no_repeat_ngram_size": rng.randint(1, 3),
        "encoder_no_repeat_ngram_size": rng.randint(1, 2),
        "bad_words_ids": tuple((token,) for token in few[0]),
        "sequence_bias": tuple(((token, rng.randrange(VOCAB)), rng.uniform(-9, 9)) for token in range(VOCAB)),
        "suppress_tokens": tuple(few[1]),
        "begin_suppress_tokens": tuple(rng.sample(range(VOCAB), 400)),
        "allowed_token_ids": tuple(rng.sample(range(VOCAB), 60)),
        "forced_bos_token_id": rng.randrange(VOCAB),
        "min_new_tokens": rng.randint(1, LENGTH),
        "min_length": rng.randint(1, LENGTH),
        "forced_eos_token_ids": (rng.randrange(VOCAB),),
        "exponential_decay_length_penalty": (rng.randint(0, 6), rng.uniform(1.0, 1.6)),
        "remove_invalid_values": True,
        "renormalize_logits": True,
        "guidance_scale": rng.choice([1.7, 0.3, 4.0]),
        "watermark": GreenListWatermark(bias=rng.uniform(-3, 3), seeding_scheme=rng.choice(["lefthash", "selfhash"])),
    }
    names = rng.sample(sorted(every), rng.randint(1, 6))
    if "exponential_decay_length_penalty" in names and "remove_invalid_values" in names:
        # Together they take a forbidden EOS token from the smallest number to infinity, where a watermark of ours still
        # tells such tokens apart and transformers takes the first.
        names.remove("remove_invalid_values")
    if "min_new_tokens" in names and "min_length" in names:
        # generate lets the former win; whoever resolves settings does that here.
        names.remove("min_length")
    return {name: every[name] for name in names}


def expected(model: Any, prompt: list[int], negative: list[int] | None, ends: list[int], chosen: dict[str, Any]) -> Any:
    """The answer of transformers' ``generate``."""
    options = dict(chosen)
    if "forced_eos_token_ids" in options:
        options["forced_eos_token_id"] = list(options.pop("forced_eos_token_ids"))
    if "sequence_bias" in options:
        options["sequence_bias"] = dict(options["sequence_bias"])
    if "watermark" in options:
        mark = options.pop("watermark")
        options["watermarking_config"] = WatermarkingConfig(bias=mark.bias, seeding_scheme=mark.seeding_scheme)
    for name in ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"):
        if name in options:
            options[name] = [list(item) if isinstance(item, tuple) else item for item in options[name]]
    allowed = options.pop("allowed_token_ids", None)
    if allowed is not None:
        options["prefix_allowed_tokens_fn"] = lambda *_: list(allowed)
    if negative is not None and "guidance_scale" in options:
        options["negative_prompt_ids"] = torch.tensor([negative])
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
        **options,
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
    chosen = draw(rng)
    assert got(model, prompt, negative, ends, chosen) == expected(model, prompt, negative, ends, chosen)
