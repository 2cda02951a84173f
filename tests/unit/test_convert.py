"""Protobuf to domain and back; settings have `test_convert_settings`."""

import msgspec
import pytest

from tokenwire import convert
from tokenwire.engine.protocol import Finish, TokenLogprobs
from tokenwire.v1 import generation_pb2


def test_logprobs_need_one_entry_per_token() -> None:
    positions = [TokenLogprobs(-0.75, 3, [(7, -0.5), (8, float("-inf"))])]
    (position,) = convert.position_logprobs_of([9], positions, lambda token_id: f"<{token_id}>")
    chosen = position.chosen
    assert (chosen.token_id, chosen.text, chosen.logprob, chosen.rank) == (9, "<9>", -0.75, 3)
    assert [(top.token_id, top.logprob, top.rank) for top in position.top] == [(7, -0.5, 1), (8, float("-inf"), 2)]
    with pytest.raises(ValueError, match="zip"):
        convert.position_logprobs_of([7, 8], positions, str)


FINISH = Finish("length", None, None, 3, 20, 1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("changes", "is_default", "codes"),
    [
        ({}, True, ["default_length_cut"]),
        ({}, False, []),
        ({"reason": "eos"}, True, []),
        ({"eos_probability_max": 9e-7}, False, ["eos_never_likely"]),
        ({"eos_probability_max": 9e-7}, True, ["default_length_cut", "eos_never_likely"]),
        ({"eos_probability_max": 0.0}, False, ["eos_never_likely"]),
        ({"eos_probability_max": 1e-6}, False, []),
        ({"eos_probability_max": None}, False, []),
        ({"eos_probability_max": 0.0, "reason": "stop_string"}, False, []),
        ({"eos_probability_max": 0.0, "reason": "max_time"}, False, []),
    ],
)
def test_what_is_said_about_an_answer_that_its_length_ended(
    changes: dict[str, object], is_default: bool, codes: list[str]
) -> None:
    finish = msgspec.structs.replace(FINISH, **changes)
    warnings = convert.finish_warnings(finish, length_is_default=is_default)
    assert [warning.code for warning in warnings] == codes
    assert list(convert.finish_of(finish, 2, warnings).warnings) == warnings


def test_finish() -> None:
    finish = Finish("eos", None, 2, 3, 20, 1.0, 2.0, 3.0, 4, 5, 6, -1.5, 0.25)
    message = convert.finish_of(finish, 1)
    usage = message.usage
    assert (message.sequence_index, message.stop_token_id, message.sequence_score) == (1, 2, -1.5)
    assert (usage.prompt_token_count, usage.completion_token_count, usage.cached_token_count) == (3, 20, 4)
    assert (usage.draft_token_count, usage.accepted_draft_token_count) == (5, 6)
    assert not convert.finish_of(FINISH).HasField("sequence_score")


def test_every_reason_and_path_has_a_name() -> None:
    reasons = set(generation_pb2.FinishReason.values()) - {generation_pb2.FINISH_REASON_UNSPECIFIED}
    assert set(convert.FINISH_REASONS.values()) == reasons
