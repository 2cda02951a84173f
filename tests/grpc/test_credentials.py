"""Who may call what: keys, tokens, certificates and roles, before anything of the request is looked at."""

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine, say
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from harness import Service, running, service_config
from test_calls import generate_request
from test_statuses import check_common, failure
from test_tls import refreshed

from tests.certificates import Authority
from tests.tokens import AUDIENCE, ISSUER, Issuer
from tokenwire.config import SecurityConfig
from tokenwire.errors import PermissionDeniedError
from tokenwire.interceptors import CallInterceptor
from tokenwire.security.authentication import Authenticator, check_role, required_role
from tokenwire.security.keys import hash_of, new_key
from tokenwire.v1 import generation_service_pb2, model_service_pb2, tokenizer_service_pb2

Start = Callable[..., Awaitable[Service]]
Metadata = tuple[tuple[str, str], ...]

SERVICES: list[ServiceDescriptor] = [
    service
    for file in (generation_service_pb2, tokenizer_service_pb2, model_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
REFLECTION = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]
HEALTH = [f"/grpc.health.v1.Health/{method}" for method in ("Check", "List", "Watch")]


def bearer(credential: str) -> Metadata:
    return (("authorization", f"Bearer {credential}"),)


def write_callers(path: Path, **callers: dict[str, Any]) -> Path:
    """A callers file whose tables are ``callers``; strings and lists are written alike in JSON and TOML."""
    tables = [
        "\n".join([f"[callers.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())])
        for name, entry in callers.items()
    ]
    path.write_text("\n".join(tables) + "\n")
    return path


@pytest.fixture
def key() -> str:
    return new_key()


@pytest.fixture
def callers(tmp_path: Path, key: str) -> Path:
    return write_callers(tmp_path / "callers.toml", alice={"key_hashes": [hash_of(key)]})


@pytest.fixture
async def guarded(start: Start, callers: Path) -> Service:
    """A server that knows alice's key."""
    return await start(FakeEngine(script=say("x")), service_config(security=SecurityConfig(callers=callers)))


def raw_call(service: Service, path: str, metadata: Metadata) -> Any:
    # Also where requests are a stream: one message is one on the wire. A client that writes its messages apart may find
    # the call over before it has written, and says INTERNAL then.
    return service.channel.unary_stream(path, None, None)(b"\xff\xff\xff", metadata=metadata)


def bad_credentials(key: str) -> Iterator[tuple[Metadata, str]]:
    yield (), "CREDENTIAL_MISSING"
    yield bearer(new_key()), "CREDENTIAL_INVALID"
    yield bearer(key[:-1]), "CREDENTIAL_INVALID"
    yield bearer(key + "A"), "CREDENTIAL_INVALID"
    yield bearer(hash_of(key)), "CREDENTIAL_INVALID"
    yield bearer("tw_"), "CREDENTIAL_INVALID"
    yield bearer(""), "CREDENTIAL_INVALID"
    yield (("authorization", key),), "CREDENTIAL_INVALID"
    yield (("authorization", f"Basic {key}"),), "CREDENTIAL_INVALID"
    yield (("authorization", ""),), "CREDENTIAL_INVALID"
    yield bearer(new_key()) + bearer(key), "CREDENTIAL_INVALID"
    yield bearer("eyJhbGciOiJub25lIn0.e30."), "CREDENTIAL_INVALID"


@pytest.mark.parametrize("path", METHODS + REFLECTION)
async def test_every_method_is_refused_without_a_good_key_before_its_request_is_parsed(
    guarded: Service, key: str, path: str
) -> None:
    for metadata, reason in bad_credentials(key):
        failed = await failure(raw_call(guarded, path, metadata))
        assert failed.code is grpc.StatusCode.UNAUTHENTICATED
        check_common(failed, reason)
        assert key not in failed.message
    # The same bytes with the key: now they are parsed.
    failed = await failure(raw_call(guarded, path, bearer(key)))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert guarded.engine.streams == []


async def test_a_good_key_is_served(guarded: Service, key: str) -> None:
    for scheme in ("Bearer", "bearer"):
        metadata = (("authorization", f"{scheme} {key}"),)
        answer = await guarded.generation.Generate(generate_request(), metadata=metadata)
        assert answer.sequences[0].text == "x"
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    method = guarded.channel.stream_stream(
        REFLECTION[0],
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (found,) = [each async for each in method(iter([listing]), metadata=bearer(key))]
    assert len(found.list_services_response.service) >= 5


async def test_health_is_open_to_all(guarded: Service) -> None:
    for metadata in ((), bearer("wrong")):
        status = await guarded.health.Check(health_pb2.HealthCheckRequest(), metadata=metadata)
        assert status.status == health_pb2.HealthCheckResponse.SERVING


def test_every_method_has_the_role_that_is_meant() -> None:
    assert {required_role(path) for path in METHODS + REFLECTION} == {"inference"}
    assert {required_role(path) for path in HEALTH} == {None}
    # What nobody thought of is closed.
    for path in ("/tokenwire.v1.AdminService/Drain", "/grpc.channelz.v1.Channelz/GetServers", "/", "", "nonsense"):
        assert required_role(path) == "admin"


async def test_a_server_without_callers_is_open_but_not_for_administrators(service: Service) -> None:
    service.engine.script = say("x")
    for metadata in ((), bearer("whatever a proxy adds")):
        assert (await service.generation.Generate(generate_request(), metadata=metadata)).sequences[0].text == "x"
    method = "/tokenwire.v1.AdminService/Drain"
    anyone = Authenticator().identify(method, (), ())
    with pytest.raises(PermissionDeniedError):
        check_role(method, anyone)


async def test_roles_are_apart(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = {name: new_key() for name in ("user", "admin", "both")}
    callers = write_callers(
        tmp_path / "callers.toml",
        user={"key_hashes": [hash_of(keys["user"])]},
        admin={"key_hashes": [hash_of(keys["admin"])], "roles": ["admin"]},
        both={"key_hashes": [hash_of(keys["both"])], "roles": ["admin", "inference"]},
    )
    config = service_config(security=SecurityConfig(callers=callers))
    service = await start(FakeEngine(script=say("x")), config)
    caplog.set_level(logging.INFO)
    for name, allowed in (("user", True), ("admin", False), ("both", True)):
        call = service.generation.Generate(generate_request(), metadata=bearer(keys[name]))
        if allowed:
            assert (await call).sequences[0].text == "x"
        else:
            failed = await failure(call)
            assert failed.code is grpc.StatusCode.PERMISSION_DENIED
            check_common(failed, "ROLE_MISSING")
    lines = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "request"]
    assert [(line["caller"], line.get("reason")) for line in lines] == [
        ("user", None),
        ("admin", "ROLE_MISSING"),
        ("both", None),
    ]


async def test_a_method_for_administrators(tmp_path: Path) -> None:
    """With a method of the tests' own: today no other needs the role."""
    from tokenwire.security.authentication import make_authenticator

    keys = {name: new_key() for name in ("user", "admin")}
    callers = write_callers(
        tmp_path / "callers.toml",
        user={"key_hashes": [hash_of(keys["user"])]},
        admin={"key_hashes": [hash_of(keys["admin"])], "roles": ["admin"]},
    )
    server = grpc.aio.server(interceptors=(CallInterceptor(make_authenticator(SecurityConfig(callers=callers))),))

    async def drain(request: bytes, context: Any) -> bytes:
        return b"drained"

    handlers = {"Drain": grpc.unary_unary_rpc_method_handler(drain)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tokenwire.v1.AdminService", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: Any = channel.unary_unary("/tokenwire.v1.AdminService/Drain", None, None)
            assert await method(b"", metadata=bearer(keys["admin"])) == b"drained"
            assert (await failure(method(b"", metadata=bearer(keys["user"])))).code is grpc.StatusCode.PERMISSION_DENIED
            assert (await failure(method(b""))).code is grpc.StatusCode.UNAUTHENTICATED
    finally:
        await server.stop(None)


async def test_keys_change_while_the_server_runs_and_a_bad_file_keeps_them(
    guarded: Service, callers: Path, key: str
) -> None:
    second = new_key()
    write_callers(callers, alice={"key_hashes": [hash_of(key), hash_of(second)]})
    assert await refreshed(guarded, "read anew") == "callers read anew"
    for good in (key, second):
        await guarded.generation.Generate(generate_request(), metadata=bearer(good))
    write_callers(callers, alice={"key_hashs": []})
    line = await refreshed(guarded, "key_hashs")
    assert line.startswith("the old callers stay in use: callers ")
    await guarded.generation.Generate(generate_request(), metadata=bearer(key))
    write_callers(callers, alice={"key_hashes": [hash_of(second)]})
    await refreshed(guarded, "read anew")
    failed = await failure(guarded.generation.Generate(generate_request(), metadata=bearer(key)))
    assert failed.code is grpc.StatusCode.UNAUTHENTICATED
    await guarded.generation.Generate(generate_request(), metadata=bearer(second))


async def test_a_certificate_names_a_caller(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue().write(tmp_path)
    client_ca = tmp_path / "ca.crt"
    client_ca.write_bytes(authority.pem)
    callers = write_callers(
        tmp_path / "callers.toml",
        sidecar={"certificate_names": ["spiffe://mesh/ns/chat/sa/web"]},
        plain={"certificate_names": ["batch job"]},
    )
    security = SecurityConfig(tls_certificate=certificate, tls_key=key, tls_client_ca=client_ca, callers=callers)
    for pair, allowed in (
        (authority.issue("web", uri="spiffe://mesh/ns/chat/sa/web"), True),
        (authority.issue("batch job", uri="spiffe://mesh/other"), True),
        (authority.issue("web", uri="spiffe://mesh/ns/chat/sa/web2"), False),
    ):
        credentials = grpc.ssl_channel_credentials(authority.pem, pair.key_pem(), pair.chain_pem)
        config = service_config(security=security)
        async with running(FakeEngine(script=say("x")), config, credentials=credentials) as service:
            call = service.generation.Generate(generate_request())
            if allowed:
                assert (await call).sequences[0].text == "x"
            else:
                check_common(await failure(call), "CREDENTIAL_MISSING")
            # A bad key is not made good by a certificate.
            failed = await failure(service.generation.Generate(generate_request(), metadata=bearer(new_key())))
            assert failed.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_is_served_with_its_roles(start: Start, tmp_path: Path) -> None:
    issuer = Issuer()
    security = SecurityConfig(jwt_keys=issuer.write(tmp_path), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    service = await start(FakeEngine(script=say("x")), service_config(security=security))
    for token, code in (
        (issuer.token(), None),
        (issuer.token(roles=["inference"]), None),
        (issuer.token(roles=["admin"]), grpc.StatusCode.PERMISSION_DENIED),
        (issuer.token(roles=[]), grpc.StatusCode.PERMISSION_DENIED),
        (issuer.token(exp=1), grpc.StatusCode.UNAUTHENTICATED),
        (issuer.token()[:-2], grpc.StatusCode.UNAUTHENTICATED),
        (new_key(), grpc.StatusCode.UNAUTHENTICATED),
    ):
        call = service.generation.Generate(generate_request(), metadata=bearer(token))
        if code is None:
            assert (await call).sequences[0].text == "x"
        else:
            assert (await failure(call)).code is code


async def test_the_log_names_the_caller_and_no_credential(
    guarded: Service, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = new_key()
    with caplog.at_level(logging.DEBUG):
        await guarded.generation.Generate(generate_request(), metadata=bearer(key))
        await failure(guarded.generation.Generate(generate_request(), metadata=bearer(wrong)))
    lines = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "request"]
    assert [(line.get("caller"), line["status"]) for line in lines] == [("alice", "OK"), (None, "UNAUTHENTICATED")]
    assert key not in caplog.text + str(lines)
    assert wrong not in caplog.text + str(lines)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01", False),
        ("nonsense", False),
    ],
)
async def test_traceparent_comes_back(service: Service, sent: str, kept: bool) -> None:
    service.engine.script = say("x")
    good = service.generation.Generate(generate_request(), metadata=(("traceparent", sent),))
    await good
    assert dict(await good.trailing_metadata()).get("traceparent") == (sent if kept else None)
    failed = await failure(service.generation.Generate(generate_request(""), metadata=(("traceparent", sent),)))
    assert failed.trailing.get("traceparent") == (sent if kept else None)
