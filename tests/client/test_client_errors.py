"""Statuses and their google.rpc details become the client's exceptions, on both faces."""

from typing import Any

import grpc
import pytest
from fake_server import REQUEST_ID, FakeServer, item_status
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from tokenwire import client as tw
from tokenwire.client import AsyncClient, Client, FieldViolation

RETRY = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))

CLASSES: list[tuple[str, type[tw.TokenwireError]]] = [
    ("INVALID_ARGUMENT", tw.InvalidArgument),
    ("OUT_OF_RANGE", tw.InvalidArgument),
    ("NOT_FOUND", tw.NotFound),
    ("FAILED_PRECONDITION", tw.FailedPrecondition),
    ("RESOURCE_EXHAUSTED", tw.ResourceExhausted),
    ("UNAVAILABLE", tw.Unavailable),
    ("ALREADY_EXISTS", tw.AlreadyExists),
    ("ABORTED", tw.Aborted),
    ("DEADLINE_EXCEEDED", tw.DeadlineExceeded),
    ("CANCELLED", tw.Cancelled),
    ("UNAUTHENTICATED", tw.Unauthenticated),
    ("PERMISSION_DENIED", tw.PermissionDenied),
    ("INTERNAL", tw.InternalError),
    ("UNKNOWN", tw.InternalError),
    ("DATA_LOSS", tw.InternalError),
]


@pytest.mark.parametrize(("code", "expected"), CLASSES)
async def test_each_status_has_its_class(server: FakeServer, code: str, expected: type[tw.TokenwireError]) -> None:
    info = error_details_pb2.ErrorInfo(reason="WHY", domain="tokenwire", metadata={"limit": "3"})
    server.failure = item_status(code, "as the server put it", info, RETRY)
    with Client(server.target, retries=0) as client, pytest.raises(tw.TokenwireError) as raised:
        client.model()
    async with AsyncClient(server.target, retries=0) as running:
        with pytest.raises(tw.TokenwireError) as raised_async:
            await running.model()
    for error in (raised.value, raised_async.value):
        assert type(error) is expected
        assert str(error) == "as the server put it"
        assert (error.reason, error.details.info, error.request_id) == ("WHY", (("limit", "3"),), REQUEST_ID)
        assert error.details.retry_after == 1.5


def test_every_violation_is_there(server: FakeServer) -> None:
    violations = [("generation_config.top_p", "must be above 0 and at most 1, got 2"), ("prompt", "is required")]
    bad_request = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
            for field, description in violations
        ]
    )
    server.failure = item_status("INVALID_ARGUMENT", "2 fields break rules", bad_request)
    with Client(server.target) as client, pytest.raises(tw.InvalidArgument) as raised:
        client.generate("x", top_p=2)
    assert raised.value.violations == tuple(FieldViolation(*each) for each in violations)
    assert str(raised.value.violations[1]) == "prompt: is required"


def test_retry_after_is_in_seconds(server: FakeServer) -> None:
    server.failure = item_status("RESOURCE_EXHAUSTED", "256 requests wait", RETRY)
    with Client(server.target, retries=0) as client, pytest.raises(tw.ResourceExhausted) as raised:
        client.chat("x")
    assert raised.value.retry_after == 1.5


@pytest.mark.parametrize(
    ("retries", "failures", "attempts", "succeeds"), [(2, 2, 3, True), (2, 3, 3, False), (0, 1, 1, False)]
)
def test_unavailable_unary_calls_are_sent_again(
    server: FakeServer, retries: int, failures: int, attempts: int, succeeds: bool
) -> None:
    server.failure, server.failures_left = item_status("UNAVAILABLE", "loading"), failures
    with Client(server.target, retries=retries) as client:
        if succeeds:
            assert client.generate("x").text == "echo: x"
        else:
            with pytest.raises(tw.Unavailable):
                client.generate("x")
    assert len(server.requests) == attempts


@pytest.mark.parametrize(("method", "code"), [("stream", "UNAVAILABLE"), ("generate", "RESOURCE_EXHAUSTED")])
def test_nothing_else_is_sent_again(server: FakeServer, method: str, code: str) -> None:
    server.failure = item_status(code, "no")
    with Client(server.target) as client:
        call = client.generate if method == "generate" else lambda prompt: client.stream(prompt).__enter__()
        with pytest.raises(tw.TokenwireError, match=r"^no$"):
            call("x")
    assert len(server.requests) == 1


async def test_a_deadline_is_the_clients_own(server: FakeServer) -> None:
    server.hold(after=0)
    with Client(server.target, timeout=0.2) as client, pytest.raises(tw.DeadlineExceeded):  # noqa: SIM117
        with client.stream("x") as stream:
            stream.text()
    assert server.cancelled.wait(10)


async def test_no_server_says_what_to_do() -> None:
    with Client("127.0.0.1:1", retries=0) as client, pytest.raises(tw.ConnectionFailed) as raised:
        client.model()
    async with AsyncClient("127.0.0.1:1", retries=0) as running:
        with pytest.raises(tw.ConnectionFailed) as raised_async:
            await running.chat("x")
    for error in (raised.value, raised_async.value):
        assert str(error).startswith("no tokenwire server answers at 127.0.0.1:1 (")
        assert "tokenwire serve --model PATH" in str(error)
        assert isinstance(error, tw.Unavailable)


def test_the_classes_carry_their_status() -> None:
    for name, error in CLASSES:
        if name not in ("OUT_OF_RANGE", "UNKNOWN", "DATA_LOSS"):
            assert error.code is grpc.StatusCode[name]


@pytest.mark.parametrize("settings", [{"retries": 11}, {"retries": -1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="retries must be 0 to 10"):
        Client("127.0.0.1:1", **settings)


def test_a_missing_certificate_file_is_an_os_error(tmp_path: Any) -> None:
    with Client("127.0.0.1:1", root_certificates=tmp_path / "ca.pem") as client, pytest.raises(FileNotFoundError):
        client.model()
