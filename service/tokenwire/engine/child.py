"""One life of the engine process: spawn, frames, end. Never forks (gRPC is up), never pickles."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence

from tokenwire.engine.channel import FrameError, FrontProtocol
from tokenwire.engine.protocol import Command, Event

_STDERR = 2


class Child:
    """A spawned process and the connection to it. Made by ``spawn``."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.closed = asyncio.Event()
        """Set when the connection ended: the process is dead or dying."""
        self.frame_error: FrameError | None = None
        self._ended = asyncio.Event()
        self._process = process
        # A thread of its own: the loop's pool may be full of long work when the process has to be reaped.
        reaper = threading.Thread(
            target=self._reap, args=(asyncio.get_running_loop(),), name="engine reaper", daemon=True
        )
        reaper.start()
        self._protocol: FrontProtocol | None = None

    @classmethod
    async def spawn(
        cls, command: Sequence[str], on_event: Callable[[Event], None], on_close: Callable[[], None]
    ) -> "Child":
        """Start ``command`` with the number of its socket as last argument. The callbacks run on the event loop.

        The process gets its own group, so that Ctrl-C in a terminal reaches the front alone, and writes what it
        prints to this process's standard error. Raises OSError where it cannot be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: ASYNC220  (returns once exec succeeded, in about a millisecond)
                    [*command, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR,
                    process_group=0,
                )
        except BaseException:
            ours.close()
            raise
        child = cls(process)

        def closed(error: FrameError | None) -> None:
            child.frame_error = error
            child.closed.set()
            on_close()

        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        _, child._protocol = await loop.create_unix_connection(lambda: FrontProtocol(on_event, closed), sock=ours)
        return child

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, command: Command) -> None:
        """Write a command without waiting; nothing happens once the connection has ended."""
        if self._protocol is not None:
            self._protocol.send(command)

    async def end(self, timeout_s: float) -> str:
        """Wait ``timeout_s`` seconds for the process to end, then kill it; returns how it ended. Leaves no process."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            self._process.kill()
            await self._ended.wait()
        finally:
            # Cancelled: no time to wait. The reaper takes care of the rest.
            if not self._ended.is_set():
                self._process.kill()
            if self._protocol is not None:
                self._protocol.close()
        return self._describe_end()

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        # The loop may be gone before the process is.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._ended.set)

    def _describe_end(self) -> str:
        if self.frame_error is not None:
            return str(self.frame_error)
        code = self._process.returncode
        if code is None or code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
        return f"signal {-code}"
