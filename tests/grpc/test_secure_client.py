"""The Python client and the command line against a server with mTLS and keys."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import FakeEngine, say
from harness import Service, running, service_config
from test_credentials import write_callers

from tests.certificates import Authority
from tests.serving import clean_environment
from tokenwire.cli.options import ConnectionFlags
from tokenwire.client import AsyncClient, Client, ConnectionFailed, PermissionDenied, Unauthenticated
from tokenwire.config import SecurityConfig
from tokenwire.security.keys import hash_of, new_key

KEY, ADMIN_KEY = new_key(), new_key()


class Secured:
    """Files of a server with mTLS and two callers, and of a client that it lets in."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        certificate, key = authority.issue().write(folder)
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(authority.pem)
        (folder / "client").mkdir()
        self.client_certificate, self.client_key = authority.issue("client").write(folder / "client")
        callers = write_callers(
            folder / "callers.toml",
            web={"key_hashes": [hash_of(KEY)]},
            operations={"key_hashes": [hash_of(ADMIN_KEY)], "roles": ["admin"]},
        )
        self.config = service_config(
            security=SecurityConfig(tls_certificate=certificate, tls_key=key, tls_client_ca=self.ca, callers=callers)
        )


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path)


def target(service: Service) -> str:
    return f"127.0.0.1:{service.server.port}"


async def test_the_client_shows_certificate_and_key(secured: Secured) -> None:
    tls = {
        "root_certificates": secured.ca,
        "client_certificate": secured.client_certificate,
        "client_key": secured.client_key,
    }
    async with running(FakeEngine(script=say("x")), secured.config) as service:
        async with AsyncClient(target(service), api_key=KEY, **tls) as client:
            assert (await client.generate("hi")).text == "x"
            await client.wait_until_ready(30)
            # What a call says itself goes before.
            with pytest.raises(PermissionDenied):
                await client.generate("hi", metadata={"authorization": f"Bearer {ADMIN_KEY}"})
        async with AsyncClient(target(service), **tls) as client:
            with pytest.raises(Unauthenticated, match="Bearer") as refused:
                await client.generate("hi")
            assert refused.value.reason == "CREDENTIAL_MISSING"
        async with AsyncClient(target(service), api_key=KEY, root_certificates=secured.ca, retries=0) as client:
            with pytest.raises(ConnectionFailed):
                await client.generate("hi", timeout=30)


def run(service: Service, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tokenwire.cli", "generate", "hi", "--address", target(service), *arguments],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )


async def test_the_command_takes_them_from_flags_and_environment(secured: Secured) -> None:
    files = (str(secured.ca), str(secured.client_certificate), str(secured.client_key))
    names = ("root-certificates", "client-certificate", "client-key")
    flags = [word for name, file in zip(names, files, strict=True) for word in (f"--{name}", file)]
    variables = {f"TOKENWIRE_{name.upper().replace('-', '_')}": file for name, file in zip(names, files, strict=True)}
    async with running(FakeEngine(script=say("x")), secured.config) as service:
        done = await asyncio.to_thread(run, service, *flags, "--api-key", KEY)
        assert (done.returncode, done.stdout.strip()) == (0, "x")
        done = await asyncio.to_thread(run, service, TOKENWIRE_API_KEY=KEY, **variables)
        assert (done.returncode, done.stdout.strip()) == (0, "x")
        done = await asyncio.to_thread(run, service, **variables)
        assert done.returncode == 1
        assert "TOKENWIRE_API_KEY" in done.stderr
        assert done.stderr.count("\n") == 1
        unreadable = ["--client-key", os.fspath(secured.ca.parent)]
        done = await asyncio.to_thread(run, service, *unreadable)
        assert done.returncode == 2
        assert "--client-key" in done.stderr
        done = await asyncio.to_thread(run, service, *flags[:4])
        assert (done.returncode, done.stderr) == (
            2,
            "tokenwire: --client-certificate and --client-key need each other\n",
        )


def test_settings_do_not_show_the_key() -> None:
    assert KEY not in repr(ConnectionFlags(api_key=KEY))


def test_certificate_and_key_need_each_other(secured: Secured) -> None:
    with pytest.raises(ValueError, match="need each other"):
        Client(client_key=secured.client_key)
