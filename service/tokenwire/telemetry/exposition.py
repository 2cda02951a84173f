"""The metrics' own port: plain HTTP for Prometheus, in threads of its own.

Not on the event loop: a scrape is answered also while the loop is busy, and no stream waits for a scrape.
"""

import errno
import socket
import socketserver
import threading
import time
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from tokenwire.errors import ConfigurationError

REQUEST_TIMEOUT_S = 5.0
"""Seconds from its connection on in which a scraper must have sent its request and taken the answer."""
MAX_CONNECTIONS = 16
"""Scrapes at the same time; further connections are closed at once."""

_LOOK_S = 0.1
"""Seconds between two looks at whether to end and whose time is over; a scrape is taken at once."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base's name)
        """Scrapes are no events."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._ends: dict[socket.socket, float] = {}
        """When the time of each open connection is over, in monotonic seconds. A timeout of the socket would hold for
        each byte anew."""
        super().__init__(*arguments, **options)

    def server_bind(self) -> None:
        # Not the base's: it looks the host's name up, which may ask the network.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "tokenwire", int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            with self._lock:
                self._ends[request] = time.monotonic() + REQUEST_TIMEOUT_S
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._ends.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self._cut(time.monotonic())

    def server_close(self) -> None:
        super().server_close()
        self._cut(float("inf"))

    def _cut(self, now: float) -> None:
        """Shut down the connections whose time is over: what waits for them in a thread ends by that."""
        # Under the lock, so that none of them is closed meanwhile and its descriptor another's.
        with self._lock:
            for connection in [each for each, end in self._ends.items() if end <= now]:
                del self._ends[connection]
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away is no event."""


class MetricsServer:
    """Answers on ``host:port`` until it is closed. Raises ConfigurationError where it cannot listen there."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        shown = f"[{host}]" if ":" in host else host
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            server_class = type("_ServerOfFamily", (_Server,), {"address_family": family})
            self._server: WSGIServer = make_server(
                str(address[0]), port, make_wsgi_app(registry), server_class, _Handler
            )
        except OSError as error:
            reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ConfigurationError(f"metrics_port: cannot listen on {shown}:{port}: {reason}") from None
        except UnicodeError as error:
            raise ConfigurationError(f"metrics_host: cannot listen on {shown}:{port}: {error}") from None
        self.address = f"{shown}:{self._server.server_port}"
        """Host and the port that was taken."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_S,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no longer, and end the scrapes that are under way. Blocks for 0.1 s at most."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
