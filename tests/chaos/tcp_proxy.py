"""A TCP proxy that can be told to stall, cut or black-hole what goes through it."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TcpProxy:
    """Copies bytes both ways between clients and ``target``, until told otherwise."""

    def __init__(self) -> None:
        self.address = ""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._discards = False
        self._writers: list[asyncio.StreamWriter] = []

    def stall(self) -> None:
        """Read nothing more, in neither direction: the senders' windows fill up."""
        self._flowing.clear()

    def black_hole(self) -> None:
        """Swallow everything, in both directions: no end of any connection is told to the other side."""
        self._discards = True

    def cut(self) -> None:
        """Reset all connections that there are; new ones are let through."""
        writers, self._writers = self._writers, []
        for writer in writers:
            if writer.transport.is_closing():
                continue
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _connect(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = target.rpartition(":")
        their_reader, their_writer = await asyncio.open_connection(host, int(port))
        self._writers += [writer, their_writer]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, their_writer))
                group.create_task(self._copy(their_reader, writer))
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            their_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._flowing.wait()
            data = await reader.read(64 * 1024)
            await self._flowing.wait()
            if self._discards:
                if not data:
                    # The end of one side is swallowed as well.
                    await asyncio.Event().wait()
                continue
            if not data:
                raise ConnectionResetError("the other side is gone")
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def tcp_proxy(target: str) -> AsyncIterator[TcpProxy]:
    """A proxy in front of ``target``, host:port."""
    proxy = TcpProxy()
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(proxy._connect(target, reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        for task in connections.copy():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*connections, return_exceptions=True)
