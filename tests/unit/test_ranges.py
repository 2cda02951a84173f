"""Every setting has its range, and each value outside is named."""

import math
from typing import Any, get_type_hints

import pytest

from tokenwire.engine.ranges import out_of_range
from tokenwire.engine.settings import GenerationOverrides, GreenListWatermark, SynthIdTextWatermark

VOCAB = 1000
TYPES = get_type_hints(GenerationOverrides)
NUMBERS = [name for name, type_ in TYPES.items() if type_ in (int | None, float | None)]
FLOATS = [name for name, type_ in TYPES.items() if type_ == float | None]


def fields(**values: Any) -> list[str]:
    return [violation.field for violation in out_of_range(GenerationOverrides(**values), vocab_size=VOCAB)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_lower_bound(name: str) -> None:
    assert fields(**{name: -(2**64)}) == [name]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1000.0])
def test_every_fraction_refuses_what_is_no_number_and_what_is_far_outside(name: str, value: float) -> None:
    assert fields(**{name: value}) == [name]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"max_new_tokens": 1, "max_length": 1, "min_new_tokens": 0, "top_k": 0, "seed": -(2**63)}, []),
        ({"max_new_tokens": 0}, ["max_new_tokens"]),
        ({"max_length": 0}, ["max_length"]),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, ["min_new_tokens"]),
        ({"temperature": 0.0}, ["temperature"]),
        ({"top_k": VOCAB}, []),
        ({"top_k": VOCAB + 1}, ["top_k"]),
        ({"top_p": 1.0, "typical_p": 1.0, "min_p": 0.0}, []),
        ({"top_p": 0.0, "typical_p": 0.0, "min_p": 1.5}, ["top_p", "min_p", "typical_p"]),
        ({"seed": 2**63}, ["seed"]),
        ({"presence_penalty": -2.0, "frequency_penalty": 2.0}, []),
        ({"presence_penalty": -2.5, "frequency_penalty": 2.5}, ["presence_penalty", "frequency_penalty"]),
        ({"eos_token_ids": (VOCAB,)}, ["eos_token_id[0]"]),
        ({"stop_token_ids": (1, -1)}, ["stop_token_ids[1]"]),
        ({"suppress_tokens": (VOCAB, 0, VOCAB)}, ["suppress_tokens[0]", "suppress_tokens[2]"]),
        ({"stop_strings": ("a", "")}, ["stop_strings[1]"]),
        ({"logit_bias": {0: 100.0, VOCAB - 1: -100.0}}, []),
        ({"logit_bias": {VOCAB: 1.0}}, [f"logit_bias[{VOCAB}]"]),
        ({"logit_bias": {1: math.nan}}, ["logit_bias[1]"]),
        ({"top_h": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.999}, []),
        ({"top_h": 0.0, "epsilon_cutoff": 1.0, "eta_cutoff": -0.1}, ["top_h", "epsilon_cutoff", "eta_cutoff"]),
        ({"top_h": 1.5}, ["top_h"]),
        ({"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0}, []),
        ({"encoder_repetition_penalty": 0.0}, ["encoder_repetition_penalty"]),
        ({"guidance_scale": -100.0}, []),
        ({"guidance_scale": 100.1}, ["guidance_scale"]),
        ({"forced_bos_token_id": VOCAB}, ["forced_bos_token_id"]),
        ({"forced_eos_token_ids": (1, VOCAB)}, ["forced_eos_token_id[1]"]),
        ({"begin_suppress_tokens": (-1,)}, ["begin_suppress_tokens[0]"]),
        ({"allowed_token_ids": (VOCAB,)}, ["allowed_token_ids[0]"]),
        ({"allowed_token_ids": ()}, ["allowed_token_ids"]),
        ({"bad_words_ids": ((1, 2), ())}, ["bad_words_ids[1]"]),
        ({"bad_words_ids": ((1, VOCAB),)}, ["bad_words_ids[0][1]"]),
        ({"sequence_bias": (((1, 2), 100.0), ((1,), -100.0))}, []),
        ({"sequence_bias": (((1,), 1.0), ((), 1.0))}, ["sequence_bias[1]"]),
        ({"sequence_bias": (((1,), 1.0), ((1,), 2.0))}, ["sequence_bias[1]"]),
        ({"sequence_bias": (((-1,), math.inf),)}, ["sequence_bias[0].bias", "sequence_bias[0][0]"]),
        ({"exponential_decay_length_penalty": (0, 1e-9)}, []),
        ({"exponential_decay_length_penalty": (-1, 1.0)}, ["exponential_decay_length_penalty.start_index"]),
        ({"exponential_decay_length_penalty": (0, 0.0)}, ["exponential_decay_length_penalty.decay_factor"]),
        ({"exponential_decay_length_penalty": (0, math.inf)}, ["exponential_decay_length_penalty.decay_factor"]),
        ({"watermark": GreenListWatermark()}, []),
        ({"watermark": GreenListWatermark(seeding_scheme="selfhash", context_width=16, bias=-100.0)}, []),
        *[
            ({"watermark": GreenListWatermark(**{name: value})}, [f"watermarking_config.green_list.{name}"])
            for name, value in (
                ("greenlist_ratio", 0.0),
                ("greenlist_ratio", 1.0),
                ("greenlist_ratio", math.nan),
                ("bias", 100.5),
                ("bias", math.inf),
                ("hashing_key", 0),
                ("hashing_key", 2**63),
                ("seeding_scheme", "righthash"),
                ("context_width", 0),
                ("context_width", 17),
            )
        ],
        ({"watermark": SynthIdTextWatermark(ngram_len=2, keys=(-(2**63), 2**63 - 1))}, []),
        *[
            (
                {"watermark": SynthIdTextWatermark(**{"ngram_len": 5, "keys": (1,), name: value})},
                [f"watermarking_config.synth_id_text.{name}{place}"],
            )
            for name, value, place in (
                ("ngram_len", 1, ""),
                ("ngram_len", 17, ""),
                ("keys", (), ""),
                ("keys", (1,) * 65, ""),
                ("keys", (1, 2**63), "[1]"),
                ("context_history_size", 0, ""),
                ("context_history_size", 65537, ""),
                ("sampling_table_seed", 2**63, ""),
                ("sampling_table_size", 0, ""),
                ("sampling_table_size", 2**20 + 1, ""),
            )
        ],
        ({"max_time": 1e-3}, []),
        ({"max_time": 0.0}, ["max_time"]),
        ({"num_beams": 1, "num_return_sequences": 1, "length_penalty": -10.0, "max_matching_ngram_size": 16}, []),
        ({"num_beams": 0, "num_return_sequences": 0}, ["num_return_sequences", "num_beams"]),
        ({"length_penalty": 10.5}, ["length_penalty"]),
        ({"prompt_lookup_num_tokens": 64, "num_assistant_tokens": 64}, []),
        (
            {"prompt_lookup_num_tokens": 65, "num_assistant_tokens": 65, "max_matching_ngram_size": 17},
            ["prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens"],
        ),
        ({"temperature": 0.0, "top_p": 1.5, "max_new_tokens": 0}, ["temperature", "top_p", "max_new_tokens"]),
    ],
)
def test_what_is_out_of_range(values: dict[str, Any], expected: list[str]) -> None:
    assert fields(**values) == expected


def test_the_length_bounds_the_fewest_tokens() -> None:
    overrides = GenerationOverrides(min_new_tokens=9)
    assert out_of_range(overrides, vocab_size=VOCAB, max_new_tokens=9) == []
    (violation,) = out_of_range(overrides, vocab_size=VOCAB, max_new_tokens=8)
    assert (violation.field, violation.rule, violation.value) == ("min_new_tokens", "must be from 0 to 8", "9")
