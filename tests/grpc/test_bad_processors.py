"""Bad requests of the logits processors, whose ranges live in Rust: both sides of each border."""

import math
from typing import Any

import grpc
import pytest
from fakes import VOCAB_SIZE, FakeEngine, say
from test_bad_requests import GC, config, parse
from test_statuses import failure

from tokenwire.v1 import generation_service_pb2 as pb

NAN, INF = math.nan, math.inf
JUST_BELOW_1 = 0.99999994
"""The largest float32 below 1."""


def decay(start_index: int, decay_factor: float) -> dict[str, Any]:
    return {"start_index": start_index, "decay_factor": decay_factor}


NUMBERS: list[tuple[str, list[Any], list[Any]]] = [
    ("top_h", [1e-6, 1], [0, -0.1, 1.01, NAN, INF]),
    ("epsilon_cutoff", [0, JUST_BELOW_1], [-0.1, 1, NAN, INF]),
    ("eta_cutoff", [0, JUST_BELOW_1], [-0.1, 1, NAN, INF]),
    ("encoder_repetition_penalty", [1e-6, 1e6], [0, -1, NAN, INF, -INF]),
    ("forced_bos_token_id", [0, VOCAB_SIZE - 1], [-1, VOCAB_SIZE]),
]
LISTS = ("begin_suppress_tokens", "forced_eos_token_id", "allowed_token_ids")

BAD: list[tuple[dict[str, Any], set[str]]] = [
    *(({name: value}, {name}) for name, _, outside in NUMBERS for value in outside),
    *(({name: {"ids": [0, value]}}, {f"{name}.ids[1]"}) for name in LISTS for value in (-1, VOCAB_SIZE)),
    ({"bad_words_ids": {"sequences": [{"ids": [1]}, {}]}}, {"bad_words_ids.sequences[1]"}),
    ({"bad_words_ids": {"sequences": [{"ids": [1, VOCAB_SIZE]}]}}, {"bad_words_ids.sequences[0].ids[1]"}),
    ({"bad_words_ids": {"sequences": [{"ids": [1]}, {"ids": [-1]}]}}, {"bad_words_ids.sequences[1].ids[0]"}),
    ({"sequence_bias": {"entries": [{"bias": 1}]}}, {"sequence_bias.entries[0]"}),
    *(
        ({"sequence_bias": {"entries": [{"ids": [1], "bias": bias}]}}, {"sequence_bias.entries[0].bias"})
        for bias in (-101, 101, NAN, INF)
    ),
    ({"sequence_bias": {"entries": [{"ids": [1, VOCAB_SIZE]}]}}, {"sequence_bias.entries[0].ids[1]"}),
    ({"sequence_bias": {"entries": [{"ids": [1, 2]}, {"ids": [1, 2]}]}}, {"sequence_bias.entries[1]"}),
    *(
        ({"exponential_decay_length_penalty": decay(1, value)}, {"exponential_decay_length_penalty.decay_factor"})
        for value in (0, -1, NAN, INF)
    ),
    (
        {"top_h": 0, "eta_cutoff": 1, "forced_bos_token_id": -1, "sequence_bias": {"entries": [{"ids": [-1]}]}},
        {"top_h", "eta_cutoff", "forced_bos_token_id", "sequence_bias.entries[0].ids[0]"},
    ),
]

GOOD: list[dict[str, Any]] = [
    *({name: value} for name, inside, _ in NUMBERS for value in inside),
    *({name: {"ids": [0, VOCAB_SIZE - 1]}} for name in LISTS),
    {"begin_suppress_tokens": {}, "forced_eos_token_id": {}, "bad_words_ids": {}, "sequence_bias": {}},
    {"bad_words_ids": {"sequences": [{"ids": [0, VOCAB_SIZE - 1]}]}},
    {"sequence_bias": {"entries": [{"ids": [0, VOCAB_SIZE - 1], "bias": 100}, {"ids": [0], "bias": -100}]}},
    {"exponential_decay_length_penalty": decay(0, 1e-6)},
    {"renormalize_logits": True, "remove_invalid_values": True},
]


async def test_every_bad_processor_is_named(start: Any) -> None:
    service = await start(FakeEngine(script=say("x")))
    wrong = []
    for fields, expected in BAD:
        failed = await failure(service.generation.Generate(parse(config(**fields), pb.GenerateRequest)))
        if failed.code is not grpc.StatusCode.INVALID_ARGUMENT or failed.fields != {
            f"{GC}.{name}" for name in expected
        }:
            wrong.append(f"{fields}: {failed.code} {failed.message}, expected {expected}")
    assert not wrong, "\n".join(wrong)
    assert not service.engine.streams


@pytest.mark.parametrize("fields", GOOD)
async def test_what_is_inside_is_taken(start: Any, fields: dict[str, Any]) -> None:
    service = await start(FakeEngine(script=say("x")))
    await service.generation.Generate(parse(config(**fields), pb.GenerateRequest))
