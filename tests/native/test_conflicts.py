"""Settings that meet on one token: which one wins, as docs/generation.md says it."""

from typing import Any

import numpy as np
import pytest

from tokenwire import _native

VOCAB = 10
EOS = 9
TOKENIZER = _native.Tokenizer.from_json(
    '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
)

CASES: list[tuple[dict[str, Any], dict[str, Any], list[int]]] = [
    # forced tokens behind what comes before them
    ({"forced_bos_token_id": 3, "bad_words_ids": [[3]]}, {}, [3]),
    ({"forced_bos_token_id": 3, "allowed_token_ids": [4, 5]}, {}, [3]),
    ({"forced_bos_token_id": 1, "no_repeat_ngram_size": 1}, {}, [1]),
    ({"forced_bos_token_id": 1, "encoder_no_repeat_ngram_size": 1, "repetition_penalty": 9.0}, {}, [1]),
    ({"bad_words_ids": [[3]]}, {"forced_eos_token_ids": [3, 4], "max_new_tokens": 1}, [3, 4]),
    ({}, {"forced_eos_token_ids": [EOS], "max_new_tokens": 1, "min_length": 5}, [EOS]),
    # suppression behind forced and allowed ones
    ({"suppress_tokens": [3]}, {"forced_eos_token_ids": [3, 4], "max_new_tokens": 1}, [4]),
    ({"begin_suppress_tokens": [3]}, {"forced_eos_token_ids": [3, 4], "max_new_tokens": 1}, [4]),
    ({"suppress_tokens": [4, 6], "allowed_token_ids": [4, 5]}, {}, [5]),
    ({"begin_suppress_tokens": [4, 6], "allowed_token_ids": [4, 5]}, {}, [5]),
    # allowed ones of which nothing is left
    ({"bad_words_ids": [[4]], "allowed_token_ids": [4, 5]}, {}, [5]),
    ({"bad_words_ids": [[4], [5]], "allowed_token_ids": [4, 5]}, {}, [4, 5]),
    ({"no_repeat_ngram_size": 1, "allowed_token_ids": [1]}, {}, [1]),
    ({"allowed_token_ids": [EOS]}, {"min_new_tokens": 1}, [EOS]),
    # what is removed stays so
    ({"suppress_tokens": [3], "logit_bias": {3: 100.0}, "presence_penalty": -2.0}, {}, [0, 1, 2, 4, 5, 6, 7, 8, 9]),
]


@pytest.mark.parametrize(("sampling", "stopping", "left"), CASES)
def test_who_has_the_last_word(sampling: dict[str, Any], stopping: dict[str, Any], left: list[int]) -> None:
    generation = _native.Generation(
        TOKENIZER,
        [1],
        _native.SamplingParams(vocab_size=VOCAB, **sampling),
        _native.StoppingParams(vocab_size=VOCAB, eos_token_ids=[EOS], **{"max_new_tokens": 2, **stopping}),
    )
    row = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    processed = _native.Sampler().processed_logits(row, generation)
    assert np.flatnonzero(processed > -np.inf).tolist() == left
