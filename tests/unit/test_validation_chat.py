"""Rules of conversations that need no server."""

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from tests.grpc.fakes import model_info
from tokenwire import validation_chat
from tokenwire.config import LimitsConfig
from tokenwire.errors import InvalidRequestError, Violation
from tokenwire.v1 import chat_pb2
from tokenwire.validation import Bounds, Violations
from tokenwire.validation_chat import check_conversation


def bounds(**changes: Any) -> Bounds:
    limits = LimitsConfig(max_documents=2, max_template_variables=3)
    return Bounds(info=model_info(**changes), limits=limits, max_prompt_bytes=128, max_running=4)


def judge(conversation: dict[str, object], **changes: Any) -> list[Violation]:
    violations = Violations()
    check_conversation(ParseDict(conversation, chat_pb2.Conversation()), bounds(**changes), violations)
    try:
        violations.check()
    except InvalidRequestError as error:
        return error.violations
    return []


def with_fields(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"text": "x"}]}], **fields}


@pytest.mark.parametrize("role", validation_chat.ROLES)
def test_roles(role: str) -> None:
    assert judge({"messages": [{"role": role, "content": [{"text": "x"}]}]}) == []


TEXT_FIELDS: list[dict[str, object]] = [
    {"messages": [{"role": "user", "content": [{"text": "é" * 65}]}]},
    {"messages": [{"role": "user", "content": [{"text": "x"}], "name": "é" * 64}]},
    {"messages": [{"role": "assistant", "content": [{"text": "x"}], "reasoning_content": "é" * 64}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"name": "é" * 65}]}]},
    {"messages": [{"role": "user", "content": [{"text": "x"}]}], "tools": [{"name": "f", "description": "é" * 64}]},
    with_fields(documents=[{"text": "é" * 64}]),
    with_fields(documents=[{"title": "é" * 63, "text": "xx"}]),
    with_fields(template_variables={"xx": {"string_value": "é" * 63}}),
]


@pytest.mark.parametrize("conversation", TEXT_FIELDS)
def test_a_conversation_is_measured_in_bytes_of_all_its_text(conversation: dict[str, object]) -> None:
    (violation,) = judge(conversation)
    assert violation.field == "conversation.messages"
    assert violation.value in ("129 bytes", "130 bytes")


TEXT = {"string_value": "x"}
BAD: list[tuple[dict[str, object], set[str]]] = [
    ({"documents": [{"text": "x"}] * 3}, {"documents"}),
    ({"documents": [{"text": "x"}, {"title": "T"}]}, {"documents[1].text"}),
    ({"template_variables": dict.fromkeys("abcd", TEXT)}, {"template_variables"}),
    ({"template_variables": {"": TEXT}}, {"template_variables"}),
    ({"template_variables": {"1st": TEXT}}, {"template_variables"}),
    ({"template_variables": {"a-b": TEXT}}, {"template_variables"}),
    ({"template_variables": {"größe": TEXT}}, {"template_variables"}),
    ({"template_variables": {"x": {}}}, {"template_variables[x]"}),
    ({"template_variables": {"x": {"number_value": "NaN"}}}, {"template_variables[x]"}),
    ({"template_variables": {"x": {"number_value": "-Infinity"}}}, {"template_variables[x]"}),
    ({"template_variables": {"eos_token": TEXT, "x": {}}}, {"template_variables[eos_token]", "template_variables[x]"}),
    *(({"template_variables": {name: TEXT}}, {f"template_variables[{name}]"})
      for name in sorted(validation_chat.SERVER_VARIABLES)),
    ({"template_name": "other"}, {"template_name"}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), BAD)
def test_what_a_template_cannot_be_given(fields: dict[str, object], expected: set[str]) -> None:
    assert {violation.field for violation in judge(with_fields(**fields))} == {f"conversation.{x}" for x in expected}


def test_what_a_template_can_be_given() -> None:
    variables = {"enable_thinking": {"bool_value": False}, "_x1": {"number_value": -0.5}, "bos_token": TEXT}
    documents = [{"text": "x"}, {"title": "T", "text": "x"}]
    # This model has no BOS token, so its name is free.
    assert judge(with_fields(template_variables=variables, documents=documents, template_name="default")) == []


@pytest.mark.parametrize(
    ("fields", "names", "rule"),
    [
        ({}, ["rag", "tool_use"], "must name one of the model's templates, which has no default: rag, tool_use"),
        ({"template_name": "x"}, ["rag", "default"], "must be one of the model's templates: default, rag"),
        ({"tools": [{"name": "f"}]}, ["rag", "tool_use"], None),
        ({"template_name": "rag"}, ["rag", "tool_use"], None),
    ],
)
def test_which_template(fields: dict[str, object], names: list[str], rule: str | None) -> None:
    found = judge(with_fields(**fields), chat_templates=dict.fromkeys(names, "x"))
    assert [violation.rule for violation in found] == ([] if rule is None else [rule])
