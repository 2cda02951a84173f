"""From settings to the sampler's parameters: none is forgotten."""

import msgspec
import numpy as np
import pytest

from tokenwire._native import Sampler, Tokenizer
from tokenwire.engine.generations import generation_factory, min_tokens_to_keep
from tokenwire.engine.protocol import Submit
from tokenwire.engine.ranges import SAMPLING_NAMES, STOPPING_NAMES
from tokenwire.engine.settings import GenerationSettings, GreenListWatermark

VOCAB = 8
TOKENIZER = Tokenizer.from_json(
    '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
)

ELSEWHERE = {
    # Passed by name, beside the two lists.
    *("max_new_tokens", "logprobs", "processed_logprobs", "explain", "skip_special_tokens"),
    # The scheduler's, not the sampler's.
    *("max_time", "deadline_aware", "num_return_sequences", "num_beams", "length_penalty", "early_stopping"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens", "prompt_logprobs"),
    *("token_healing", "healed_token_id"),
}


def test_every_setting_goes_somewhere() -> None:
    assert set(GenerationSettings.__struct_fields__) == {*SAMPLING_NAMES, *STOPPING_NAMES, *ELSEWHERE}
    assert not {*SAMPLING_NAMES} & {*STOPPING_NAMES}


@pytest.mark.parametrize(
    ("changes", "token"),
    [
        ({}, 7),
        ({"suppress_tokens": (7,)}, 6),
        ({"bad_words_ids": ((1, 7), (0, 6))}, 6),
        ({"sequence_bias": (((1, 2), 50.0), ((0, 3), 60.0))}, 2),
        ({"allowed_token_ids": (3, 4)}, 4),
        ({"begin_suppress_tokens": (7, 6)}, 5),
        ({"forced_bos_token_id": 2}, 2),
        ({"eos_token_ids": (7,), "min_length": 2}, 6),
        ({"eos_token_ids": (7,), "min_length": 1}, 7),
        ({"forced_eos_token_ids": (4,), "max_new_tokens": 1}, 4),
        ({"logit_bias": {1: 10.0}}, 1),
        ({"encoder_no_repeat_ngram_size": 1, "logit_bias": {1: 10.0}}, 7),
        ({"watermark": GreenListWatermark(bias=0.0), "top_h": 1.0, "renormalize_logits": True}, 7),
    ],
)
def test_settings_reach_the_sampler(changes: dict[str, object], token: int) -> None:
    settings = msgspec.structs.replace(GenerationSettings(max_new_tokens=9, top_k=0), **changes)
    generation = generation_factory(TOKENIZER, VOCAB)(Submit(request=1, prompt_ids=[1], settings=settings))
    (emission,) = Sampler().step(np.arange(VOCAB, dtype=np.float32)[None], [generation])
    assert emission.token_id == token


@pytest.mark.parametrize(("beams", "eos", "least"), [(1, (1, 2), 1), (2, (), 2), (3, (1,), 2), (3, (1, 2), 3)])
def test_beams_keep_one_token_more_than_there_are_ends(beams: int, eos: tuple[int, ...], least: int) -> None:
    settings = GenerationSettings(max_new_tokens=1, num_beams=beams, eos_token_ids=eos)
    assert min_tokens_to_keep(settings) == least
