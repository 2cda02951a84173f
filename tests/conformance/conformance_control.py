"""What the steps named `control` of the cases do: a small HTTP server beside the servers, GET and JSON."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from conformance_profiles import Live, Profiles

PATIENCE_S = 60.0
"""How long is waited for what must come, on a machine that has much else to do."""


class Control:
    """Looks into the servers and does to them what no client may."""

    def __init__(self, profiles: Profiles) -> None:
        self._servers = profiles.servers

    async def answer(self, path: str) -> dict[str, Any]:
        """What ``/SERVER/VERB[/ARGUMENT…]`` gives. Raises KeyError for what there is not."""
        name, verb, *arguments = path.strip("/").split("/")
        live = self._servers[name]
        verbs: dict[str, Callable[..., Any]] = {
            "idle": self._idle,
            "ready": self._ready,
            "kill": self._kill,
            "fail": self._fail,
            "calls": self._calls,
            "restart": self._restart,
        }
        answer: dict[str, Any] = await verbs[verb](live, *arguments)
        return answer

    @staticmethod
    async def _idle(live: Live) -> dict[str, Any]:
        """Wait until nothing runs, waits or holds memory, in front of the engine and in it; say what does."""
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            stats = await live.engine.stats()
            held = {
                "running": stats.running,
                "waiting": stats.waiting + live.server.backend.admission.num_waiting,
                "blocks_held": stats.blocks_total - stats.blocks_free,
            }
            if not any(held.values()) or asyncio.get_running_loop().time() > end:
                return held
            await asyncio.sleep(0.02)

    @staticmethod
    async def _ready(live: Live) -> dict[str, Any]:
        """Wait until new requests are taken."""
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while not live.server.backend.is_serving and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110  (it gives no event)
            await asyncio.sleep(0.02)
        return {"ready": live.server.backend.is_serving}

    @staticmethod
    async def _kill(live: Live) -> dict[str, Any]:
        """Kill the engine's process."""
        os.kill(live.engine.pid, signal.SIGKILL)
        return {"ok": True}

    @staticmethod
    async def _fail(live: Live, kind: str, count: str) -> dict[str, Any]:
        """Let the next requests fail, and count calls anew."""
        live.engine.fail(kind, int(count))
        return {"ok": True}

    @staticmethod
    async def _calls(live: Live) -> dict[str, Any]:
        """How often the engine was asked since."""
        return {"calls": live.engine.num_calls}

    @staticmethod
    async def _restart(live: Live) -> dict[str, Any]:
        """Stop the server and start it again on its port."""
        await live.stop()
        await live.start()
        return {"ok": True}


@asynccontextmanager
async def serving_control(profiles: Profiles) -> AsyncIterator[str]:
    """Answers on loopback; gives the address, http://HOST:PORT."""
    control = Control(profiles)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            try:
                status, body = "200 OK", await control.answer(path)
            except Exception as error:
                status, body = "400 Bad Request", {"error": f"{path}: {type(error).__name__}: {error}"}
            content = json.dumps(body).encode()
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
            writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + content)
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
