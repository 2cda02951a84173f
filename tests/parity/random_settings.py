"""Settings at random under the names of GenerationSettings, and the options of ``generate`` that mean the same."""

import random
from collections.abc import Mapping
from typing import Any

from tests.tiny_models import MODEL_VOCAB_SIZE as VOCAB


def draw(rng: random.Random, length: int) -> dict[str, Any]:
    """A few settings of processors; ``length``: tokens of the answer."""
    from tokenwire.engine.settings import GreenListWatermark

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
        "min_new_tokens": rng.randint(1, length),
        "min_length": rng.randint(1, length),
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
    if "suppress_tokens" in names:
        # Both sides refuse to force what is suppressed.
        forced = {every["forced_bos_token_id"], *every["forced_eos_token_ids"]}
        every["suppress_tokens"] = tuple(token for token in every["suppress_tokens"] if token not in forced)
    return {name: every[name] for name in names}


def generate_options(settings: Mapping[str, Any], negative_prompt: list[int] | None = None) -> dict[str, Any]:
    """Keyword arguments of ``generate``; what both sides call the same passes through."""
    import torch
    from transformers import WatermarkingConfig

    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, **settings}
    options.pop("seed", None)
    options["eos_token_id"] = list(options.pop("eos_token_ids", ())) or None
    if "forced_eos_token_ids" in options:
        options["forced_eos_token_id"] = list(options.pop("forced_eos_token_ids"))
    if "sequence_bias" in options:
        options["sequence_bias"] = [[list(tokens), bias] for tokens, bias in options["sequence_bias"]]
    if "bad_words_ids" in options:
        options["bad_words_ids"] = [list(word) for word in options["bad_words_ids"]]
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if name in options:
            options[name] = list(options[name])
    if "watermark" in options:
        mark = options.pop("watermark")
        options["watermarking_config"] = WatermarkingConfig(bias=mark.bias, seeding_scheme=mark.seeding_scheme)
    if "early_stopping" in options:
        options["early_stopping"] = {"false": False, "true": True, "never": "never"}[options["early_stopping"]]
    allowed = options.pop("allowed_token_ids", None)
    if allowed is not None:
        options["prefix_allowed_tokens_fn"] = lambda *_: list(allowed)
    if negative_prompt is not None and "guidance_scale" in options:
        options["negative_prompt_ids"] = torch.tensor([negative_prompt])
    return options
