"""`tokenwire serve` that can be looked into: ``serve_watched.py JSON``, the settings by their names.

Writes a line of JSON to standard output for every line that comes on standard input; the first, unasked, once it
serves, see `watched_service.Inside`.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "grpc"))

from chaos_service import chaos_config

from tokenwire import logs
from tokenwire.config import ModelConfig, ServiceConfig
from tokenwire.engine.process import EngineProcess
from tokenwire.errors import EngineUnavailableError
from tokenwire.server import Server


class Watched:
    """A server and its engine process."""

    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        config = chaos_config({}, **settings)
        self._config = ServiceConfig(
            model=ModelConfig(model=model, device="cpu"),
            engine=config.engine,
            supervision=config.supervision,
            server=config.server,
            limits=config.limits,
            log=config.log,
        )
        logs.configure(config.log)

    async def serve(self) -> None:
        server = Server(self._config, self._create_engine)
        answering = asyncio.create_task(self._answer(server))
        try:
            await server.serve()
        finally:
            answering.cancel()
            await asyncio.wait([answering])

    def _create_engine(self, config: ServiceConfig) -> EngineProcess:
        self._engine = EngineProcess(
            config.model, config.engine, max_queued=config.limits.max_queued, supervision=config.supervision
        )
        return self._engine

    async def _answer(self, server: Server) -> None:
        await server.ready.wait()
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        self._tell(await self._look(server))
        while await reader.readline():
            self._tell(await self._look(server))

    @staticmethod
    def _tell(inside: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(inside) + "\n")
        sys.stdout.flush()

    async def _look(self, server: Server) -> dict[str, Any]:
        assert server.backend is not None
        inside: dict[str, Any] = {
            "port": server.port,
            "engine_pid": self._engine.pid,
            "num_tasks": len(asyncio.all_tasks()),
            "num_open": self._engine.num_open,
            "num_waiting": server.backend.admission.num_waiting,
        }
        try:
            stats = await self._engine.stats()
        except EngineUnavailableError:
            return inside
        return inside | {
            "num_rows": stats.running + stats.waiting,
            "num_blocks_used": stats.blocks_total - stats.blocks_free,
            "num_blocks": stats.blocks_total,
        }


if __name__ == "__main__":
    model, settings = json.loads(sys.argv[1])
    uvloop.run(Watched(model, settings).serve())
