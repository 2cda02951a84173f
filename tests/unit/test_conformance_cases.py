"""The cases that all clients run leave nothing out by mistake: every method, every status, every reason."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc

from tests.serving import ROOT
from tokenwire.v1 import generation_pb2, generation_service_pb2, model_service_pb2, tokenizer_service_pb2

CONFORMANCE = json.loads((ROOT / "clients" / "conformance.json").read_text())
CASES: list[dict[str, Any]] = CONFORMANCE["cases"]
LEFT_OUT = set(CONFORMANCE["left_out"])
STEPS = [step for case in CASES for step in case["steps"]]


def words(value: Any) -> Iterator[str]:
    """Every text in a part of the file."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from words(each)
    elif isinstance(value, list):
        for each in value:
            yield from words(each)
    elif isinstance(value, str):
        yield value


EXPECTED = set(words([step.get("expect") for step in STEPS]))


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(case["name"] for case in CASES).items() if count > 1] == []
    assert all(case["name"].count("/") == 1 for case in CASES)


def test_every_method_is_called() -> None:
    services = [
        service
        for file in (generation_service_pb2, tokenizer_service_pb2, model_service_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
    ]
    methods = {method.name for service in services for method in service.methods}
    assert methods - {step.get("call") for step in STEPS} <= LEFT_OUT


def test_every_status_is_expected() -> None:
    # The service gives none of these: nothing of it can be in such a state, and UNKNOWN is promised never to come.
    never = {"UNKNOWN", "ALREADY_EXISTS", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "DATA_LOSS"}
    assert {code.name for code in grpc.StatusCode} - never <= EXPECTED


def test_reasons_of_the_table_of_statuses_are_expected() -> None:
    reasons = {"INVALID_REQUEST", "MODEL_NOT_FOUND", "QUEUE_FULL", "CALLER_LIMIT", "ROW_FAILED", "STEP_FAILED"}
    reasons |= {"ENGINE_UNAVAILABLE", "NO_CHAT_TEMPLATE", "SLOW_READER"}
    assert reasons - EXPECTED <= LEFT_OUT


def test_reasons_of_endings_are_expected() -> None:
    reasons = {value.name for value in generation_pb2.DESCRIPTOR.enum_types_by_name["FinishReason"].values[1:]}
    assert reasons - EXPECTED <= LEFT_OUT


def test_what_is_referred_to_comes_before() -> None:
    for case in CASES:
        known: set[str] = set()
        for step in case["steps"]:
            for name, path in references(step):
                assert name != "$value" or path.partition(".")[0] in known, case["name"]
            known |= {step["id"]} if "id" in step else set()


def references(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, each in value.items():
            if name in ("$value", "$fact"):
                yield name, each
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)
