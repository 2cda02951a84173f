"""What a generation_config.json sets, and what of it is not served."""

import math
from typing import Any

import pytest
from transformers import GenerationConfig

from tokenwire.engine import defaults
from tokenwire.engine.defaults import defaults_from_generation_config
from tokenwire.engine.settings import GenerationOverrides, GreenListWatermark, SynthIdTextWatermark
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
        "num_beam_groups": 2,
        "diversity_penalty": 0.0,
        "num_beams": 1,
        "suppress_tokens": [4, VOCAB],
        "stop_strings": "END",
        "renormalize_logits": True,
    }
    served, unapplied = defaults_from_generation_config(config, vocab_size=VOCAB)
    assert served == GenerationOverrides(
        do_sample=True,
        temperature=1.0,
        eos_token_ids=(2,),
        suppress_tokens=(4,),
        stop_strings=("END",),
        num_beams=1,
        renormalize_logits=True,
    )
    assert unapplied == ("top_p=0.0", "num_beam_groups=2", f"suppress_tokens=[{VOCAB}]")


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


NOTATIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"early_stopping": True}, {"early_stopping": "true"}),
    ({"early_stopping": False}, {"early_stopping": "false"}),
    ({"early_stopping": "never"}, {"early_stopping": "never"}),
    ({"forced_eos_token_id": 3}, {"forced_eos_token_ids": (3,)}),
    ({"forced_eos_token_id": [3, 4]}, {"forced_eos_token_ids": (3, 4)}),
    ({"sequence_bias": [[[5, 6], -1], [[7], 2.0]]}, {"sequence_bias": (((5, 6), -1.0), ((7,), 2.0))}),
    ({"sequence_bias": {(5, 6): -1.0, (7,): 2}}, {"sequence_bias": (((5, 6), -1.0), ((7,), 2.0))}),
    ({"sequence_bias": {"(5, 6)": -1.0, "(7,)": 2}}, {"sequence_bias": (((5, 6), -1.0), ((7,), 2.0))}),
    ({"bad_words_ids": [[1], [2, 3]]}, {"bad_words_ids": ((1,), (2, 3))}),
    ({"exponential_decay_length_penalty": [5, 1.25]}, {"exponential_decay_length_penalty": (5, 1.25)}),
    (
        {"watermarking_config": {"greenlist_ratio": 0.5, "seeding_scheme": "selfhash"}},
        {"watermark": GreenListWatermark(greenlist_ratio=0.5, seeding_scheme="selfhash")},
    ),
    (
        {"watermarking_config": {"ngram_len": 5, "keys": [1, 2], "debug_mode": True}},
        {"watermark": SynthIdTextWatermark(ngram_len=5, keys=(1, 2), debug_mode=True)},
    ),
]


@pytest.mark.parametrize(("config", "expected"), NOTATIONS)
def test_the_notations_of_transformers(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert defaults_from_generation_config(config, vocab_size=VOCAB) == (GenerationOverrides(**expected), ())


@pytest.mark.parametrize(
    "config",
    [
        {"early_stopping": "sometimes"},
        {"sequence_bias": [[5, -1]]},
        {"watermarking_config": {"seeding_scheme": "righthash"}},
        {"watermarking_config": {"ngram_len": 5}},
        {"exponential_decay_length_penalty": [5]},
    ],
)
def test_a_wrong_notation_is_named(config: dict[str, Any]) -> None:
    (name,) = config
    with pytest.raises(ModelLoadError, match=rf"generation_config\.json: {name}: "):
        defaults_from_generation_config(config, vocab_size=VOCAB)


@pytest.mark.parametrize(
    "config",
    [
        {"max_time": 0.0},
        {"max_time": math.inf},
        {"num_beams": 0},
        {"num_return_sequences": 0},
        {"length_penalty": math.nan},
        {"guidance_scale": 1e9},
        {"prompt_lookup_num_tokens": 65},
        {"max_matching_ngram_size": 0},
    ],
)
def test_a_strategy_out_of_range_is_not_served(config: dict[str, Any]) -> None:
    ((name, value),) = config.items()
    assert defaults_from_generation_config(config, vocab_size=VOCAB) == (GenerationOverrides(), (f"{name}={value}",))


def test_every_setting_of_transformers_is_served_or_named() -> None:
    generation = GenerationConfig()
    no_effect = {
        # The cache, the message around the answer, padding, and what only encoder-decoder models read.
        "use_cache", "cache_implementation", "cache_config", "max_cache_len", "output_attentions",
        "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "pad_token_id",
        "bos_token_id", "decoder_start_token_id", "compile_config", "disable_compile", "continuous_batching_config",
        "low_memory", "prefill_chunk_size", "is_assistant", "transformers_version",
        # Of a draft model's own file, or of one with another tokenizer.
        "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "assistant_lookbehind", "target_lookbehind",
    }  # fmt: skip
    known = set(defaults._SERVED) | set(defaults._OUR_NAMES) | set(defaults._NEUTRAL_VALUES) | no_effect
    assert {name for name in vars(generation) if not name.startswith("_")} <= known
