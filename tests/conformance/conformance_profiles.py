"""The servers that the cases of clients/conformance.json are run against, all on loopback.

Each profile is a way to connect to one of them, see clients/CONFORMANCE.md.
"""

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
from chaos_service import chaos_config
from conformance_engines import FlakyEngine, answer
from fakes import FakeEngine, model_info
from harness import service_config

from tests.certificates import Authority
from tokenwire.config import EngineConfig, ModelConfig, SecurityConfig, ServerConfig, ServiceConfig
from tokenwire.engine.handle import EngineHandle
from tokenwire.engine.process import EngineProcess
from tokenwire.security.keys import hash_of, new_key
from tokenwire.server import Server
from tokenwire.v1 import generation_service_pb2, generation_service_pb2_grpc

HERE = Path(__file__).resolve().parent
STEP_S = 0.02
"""What a pass of the faulty engine takes, so that a stream can be met while it runs."""


class Live:
    """A server that runs, and can be started again on its port."""

    def __init__(self, config: ServiceConfig, make_engine: Callable[[], EngineHandle], *, loads: bool) -> None:
        self._config = config
        self._make_engine = make_engine
        self._loads = loads
        self.engine: Any = None
        self.server: Any = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.engine = self._make_engine()
        self.server = Server(self._config, lambda _: self.engine)
        self._serving = asyncio.create_task(self.server.serve())
        event = self.server.ready if self._loads else self.server.listening
        waiting = asyncio.create_task(event.wait())
        await asyncio.wait({self._serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._serving.done():
            self._serving.result()
        # Where it is started again, it is found where it was.
        self._config = replace(self._config, server=replace(self._config.server, port=self.server.port))

    async def stop(self) -> None:
        if self._serving is not None:
            self.server.stop()
            self.server.stop()
            await asyncio.wait({self._serving})

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@dataclass
class Profiles:
    """Everything that runs: servers by name, and how the runners connect."""

    folder: Path
    servers: dict[str, Live] = field(default_factory=dict)
    connections: dict[str, dict[str, Any]] = field(default_factory=dict)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def serve(
        self,
        name: str,
        config: ServiceConfig | None = None,
        engine: Callable[[], EngineHandle] = lambda: FakeEngine(script=answer),
        *,
        loads: bool = True,
    ) -> Live:
        live = self.servers[name] = Live(config or service_config(), engine, loads=loads)
        self._stack.push_async_callback(live.stop)
        await live.start()
        self.connect(name, live)
        return live

    def connect(self, profile: str, live: Live, **connection: Any) -> None:
        self.connections[profile] = {
            "target": live.target,
            **{key: str(value) if isinstance(value, Path) else value for key, value in connection.items()},
        }

    async def close(self) -> None:
        await self._stack.aclose()

    # ---- the profiles --------------------------------------------------------------------------------------

    async def serve_all(self, checkpoint: Path) -> None:
        """Start every server; the two that have engine processes load at the same time."""
        engines = asyncio.gather(self._plain(checkpoint), self._faults())
        await self._fakes()
        await self._keys()
        await self._certificates()
        await self._addresses()
        await engines

    async def _plain(self, checkpoint: Path) -> None:
        config = ServiceConfig(
            model=ModelConfig(model=str(checkpoint), device="cpu"),
            engine=EngineConfig(max_running=8, kv_cache_memory="16MiB", threads=1),
            server=ServerConfig(port=0),
        )
        await self.serve(
            "plain", config, lambda: EngineProcess(config.model, config.engine, max_queued=config.limits.max_queued)
        )

    async def _faults(self) -> None:
        folder = self.folder / "faults"
        folder.mkdir()
        # Each runner kills its engine.
        config = chaos_config({"folder": str(folder), "step_s": STEP_S}, max_restarts=1000)
        await self.serve(
            "faults",
            config,
            lambda: EngineProcess(
                config.model,
                config.engine,
                max_queued=config.limits.max_queued,
                supervision=config.supervision,
                command=(sys.executable, str(HERE / "fallback_engine.py")),
            ),
        )

    async def _fakes(self) -> None:
        await self.serve("fake")
        await self.serve("restarting")
        await self.serve("flaky", engine=FlakyEngine)
        await self.serve("untemplated", engine=lambda: FakeEngine(model_info(chat_templates={}), script=answer))
        await self.serve("full", engine=lambda: FakeEngine(capacity=0))
        await self.serve("loading", engine=lambda: FakeEngine(load=asyncio.Event()), loads=False)
        await self._draining()

    async def _draining(self) -> None:
        live = await self.serve("draining", service_config(drain_grace=3600.0))
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(live.target))
        stub: Any = generation_service_pb2_grpc.GenerationServiceStub(channel)
        prompt = generation_service_pb2.Prompt(text="hold")
        held = stub.Generate(generation_service_pb2.GenerateRequest(prompt=prompt))
        self._stack.callback(held.cancel)
        await live.engine.submitted.get()
        live.server.stop()
        while not live.server.backend.draining:  # noqa: ASYNC110  (it gives no event)
            await asyncio.sleep(0)

    async def _keys(self) -> None:
        web, low, metered = new_key(), new_key(), new_key()
        callers = self.folder / "callers.toml"
        callers.write_text(
            f'[callers.web]\nkey_hashes = ["{hash_of(web)}"]\n'
            f'[callers.low]\nkey_hashes = ["{hash_of(low)}"]\npriority = "low"\n'
            f'[callers.metered]\nkey_hashes = ["{hash_of(metered)}"]\ntokens_per_minute = 1\n'
        )
        live = await self.serve("keys", service_config(security=SecurityConfig(callers=callers)))
        self.connect("keys", live, api_key=web)
        self.connect("keys_low", live, api_key=low)
        self.connect("metered", live, api_key=metered)
        self.connect("keys_missing", live)
        self.connect("keys_wrong", live, api_key=new_key())

    async def _certificates(self) -> None:
        authority, another = Authority(), Authority("another")
        trusted, untrusted = self.folder / "ca.pem", self.folder / "another.pem"
        trusted.write_bytes(authority.pem)
        untrusted.write_bytes(another.pem)

        def secured(name: str, days: int, **security: Any) -> ServiceConfig:
            folder = self.folder / name
            folder.mkdir()
            certificate, key = authority.issue(days=days).write(folder)
            return service_config(security=SecurityConfig(tls_certificate=certificate, tls_key=key, **security))

        live = await self.serve("tls", secured("valid", 10))
        self.connect("tls", live, root_certificates=trusted)
        self.connect("tls_untrusted", live, root_certificates=untrusted)
        self.connect("tls_plaintext", live)
        self.connect("plaintext_tls", self.servers["fake"], root_certificates=trusted)
        live = await self.serve("tls_expired", secured("expired", -1))
        self.connect("tls_expired", live, root_certificates=trusted)
        live = await self.serve("mtls", secured("mutual", 10, tls_client_ca=trusted))
        client = self.folder / "client"
        client.mkdir()
        certificate, key = authority.issue("client", uri="spiffe://mesh/client").write(client)
        self.connect("mtls", live, root_certificates=trusted, client_certificate=certificate, client_key=key)
        self.connect("mtls_missing", live, root_certificates=trusted)

    async def _addresses(self) -> None:
        """Ports that are held: nobody listens at the one, nobody answers at the other."""
        for name, listens in (("nobody", False), ("silent", True)):
            held = self._stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            if listens:
                held.listen()
            self.connections[name] = {"target": f"127.0.0.1:{held.getsockname()[1]}"}
