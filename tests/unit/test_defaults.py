"""What a generation_config.json sets, and what of it is not served."""

import math
from typing import Any

import pytest

from tokenwire.engine.defaults import defaults_from_generation_config
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.errors import ModelLoadError

VOCAB = 1000


def test_generation_config_file() -> None:
    config = {
        "_from_model_config": True,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "transformers_version": "5.23.0",
        "use_cache": False,
        "do_sample": True,
        "temperature": 1,
        "top_k": None,
        "top_p": 0.0,
        "no_repeat_ngram_size": 3,
        "num_beams": 1,
        "suppress_tokens": [4, VOCAB],
        "stop_strings": "END",
        "renormalize_logits": True,
    }
    defaults, unapplied = defaults_from_generation_config(config, vocab_size=VOCAB)
    assert defaults == GenerationOverrides(
        do_sample=True, temperature=1.0, eos_token_ids=(2,), suppress_tokens=(4,), stop_strings=("END",)
    )
    assert unapplied == (
        "top_p=0.0",
        "no_repeat_ngram_size=3",
        f"suppress_tokens=[{VOCAB}]",
        "renormalize_logits=True",
    )


def test_generation_config_file_with_a_wrong_type_is_named() -> None:
    with pytest.raises(ModelLoadError, match=r"generation_config\.json: temperature: .*float.*str"):
        defaults_from_generation_config({"temperature": "hot"}, vocab_size=VOCAB)


@pytest.mark.parametrize(
    ("config", "expected", "unapplied"),
    [
        ({"temperature": math.nan}, {}, ("temperature=nan",)),
        ({"max_new_tokens": 0}, {}, ("max_new_tokens=0",)),
        ({"max_length": 0}, {}, ("max_length=0",)),
        ({"max_new_tokens": 5, "min_new_tokens": 9}, {"max_new_tokens": 5, "min_new_tokens": 9}, ()),
        ({"top_k": VOCAB + 1}, {"top_k": VOCAB}, ()),
        ({"top_k": -1}, {}, ("top_k=-1",)),
        ({"eos_token_id": [-1, 3, 10**30]}, {"eos_token_ids": (3,)}, (f"eos_token_id=[-1, {10**30}]",)),
        ({"stop_strings": ["", "END"]}, {"stop_strings": ("END",)}, ("stop_strings=['']",)),
    ],
)
def test_what_is_out_of_range_is_not_served(
    config: dict[str, Any], expected: dict[str, Any], unapplied: tuple[str, ...]
) -> None:
    assert defaults_from_generation_config(config, vocab_size=VOCAB) == (GenerationOverrides(**expected), unapplied)
