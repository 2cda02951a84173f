"""TLS and mTLS: who gets through, and certificates that change on disk while the server runs."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
from fakes import FakeEngine, say
from harness import Service, open_channel, service_config
from test_calls import generate_request

from tests.certificates import Authority, Pair
from tokenwire.config import SecurityConfig
from tokenwire.v1 import generation_service_pb2_grpc

Start = Callable[..., Awaitable[Service]]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def trusting(authority: Authority, client: Pair | None = None) -> grpc.ChannelCredentials:
    if client is None:
        return grpc.ssl_channel_credentials(authority.pem)
    return grpc.ssl_channel_credentials(authority.pem, client.key_pem(), client.chain_pem)


async def answers(service: Service, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a new connection with ``credentials`` is served."""
    async with open_channel(service.server, credentials) as channel:
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = await stub.Generate(generate_request(), timeout=20)
        except grpc.aio.AioRpcError as error:  # a refused handshake
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        assert answer.sequences[0].text == "x"
        return True


async def test_only_who_trusts_the_authority_and_speaks_tls_gets_through(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue().write(tmp_path)
    security = SecurityConfig(tls_certificate=certificate, tls_key=key)
    service = await start(FakeEngine(script=say("x")), service_config(security=security))
    assert await answers(service, trusting(authority))
    assert not await answers(service, trusting(Authority("another")))
    assert not await answers(service, None)


async def test_mutual_tls_wants_a_certificate_of_its_authority(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue().write(tmp_path)
    clients = Authority("clients")
    client_ca = tmp_path / "clients.crt"
    client_ca.write_bytes(clients.pem)
    security = SecurityConfig(tls_certificate=certificate, tls_key=key, tls_client_ca=client_ca)
    service = await start(FakeEngine(script=say("x")), service_config(security=security))
    assert await answers(service, trusting(authority, clients.issue("client")))
    assert not await answers(service, trusting(authority))
    assert not await answers(service, trusting(authority, Authority("another").issue("client")))
    assert not await answers(service, trusting(authority, clients.issue("client", days=-1)))
    # Another authority for clients, from now on.
    others = Authority("others")
    client_ca.write_bytes(others.pem)
    await refreshed(service, "read anew")
    assert await answers(service, trusting(authority, others.issue("client")))
    assert not await answers(service, trusting(authority, clients.issue("client")))


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.came = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.loop.call_soon_threadsafe(self.came.set)


async def refreshed(service: Service, said: str) -> str:
    """Ask for a look at the files; the log line that comes of it, which must hold ``said``."""
    handler = _Lines()

    logger = logging.getLogger("tokenwire.security")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        service.server.refresh()
        async with asyncio.timeout(30):
            await handler.came.wait()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    (line,) = handler.texts
    assert said in line
    return line


async def test_a_changed_certificate_is_used_for_new_connections(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue().write(tmp_path)
    security = SecurityConfig(tls_certificate=certificate, tls_key=key)
    service = await start(
        FakeEngine(script=say("x")), service_config(security=security), credentials=trusting(authority)
    )
    assert (await service.generation.Generate(generate_request())).sequences[0].text == "x"
    renewed = Authority("renewed")
    renewed.issue().write(tmp_path)
    assert await refreshed(service, "read anew") == "certificates read anew"
    assert await answers(service, trusting(renewed))
    assert not await answers(service, trusting(authority))
    # The connection of before goes on.
    assert (await service.generation.Generate(generate_request())).sequences[0].text == "x"


async def test_a_bad_pair_keeps_the_old_one_and_says_so(start: Start, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue().write(tmp_path)
    security = SecurityConfig(tls_certificate=certificate, tls_key=key)
    service = await start(FakeEngine(script=say("x")), service_config(security=security))
    other = authority.issue()
    for damage, said in (
        (lambda: key.write_bytes(other.key_pem()), "does not belong to the certificate"),
        (lambda: certificate.write_bytes(b"nothing"), "holds no certificate in PEM"),
        (certificate.unlink, "cannot be read (No such file or directory)"),
    ):
        damage()
        line = await refreshed(service, said)
        assert line.startswith("the old certificates stay in use: tls_")
        assert await answers(service, trusting(authority))
    other.write(tmp_path)
    await refreshed(service, "read anew")
    assert await answers(service, trusting(authority))


async def test_files_are_looked_at_without_being_asked(
    start: Start, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenwire.server.REFRESH_S", 0.05)
    # As Kubernetes mounts a secret: a link that is turned to another folder.
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    authority.issue().write(tmp_path / "first")
    renewed = Authority("renewed")
    renewed.issue().write(tmp_path / "second")
    link = tmp_path / "mounted"
    link.symlink_to("first")
    security = SecurityConfig(tls_certificate=link / "tls.crt", tls_key=link / "tls.key")
    service = await start(FakeEngine(script=say("x")), service_config(security=security))
    (tmp_path / "turned").symlink_to("second")
    os.replace(tmp_path / "turned", link)
    give_up_at = time.monotonic() + 30
    while not await answers(service, trusting(renewed)):
        assert time.monotonic() < give_up_at
