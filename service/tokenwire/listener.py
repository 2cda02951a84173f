"""A gRPC server that listens: its limits, its keepalive, its address."""

import errno
import socket

import grpc.aio

from tokenwire.call import Observer, Tracer
from tokenwire.config import ServiceConfig
from tokenwire.errors import ConfigurationError
from tokenwire.interceptors import CallInterceptor
from tokenwire.security.authentication import Authenticator

_KEEPALIVE_S = 2.0
"""A client that is gone without a word (stopped, cut off) is noticed after at most twice this: its row is freed
within 5 s. Measured: without ``grpc.http2.ping_timeout_ms`` such a stream lives for a minute."""


def make_server(
    config: ServiceConfig, authenticator: Authenticator, observer: Observer | None, tracer: Tracer | None
) -> grpc.aio.Server:
    """A gRPC server with the limits of ``config``, which knows no service yet."""
    keepalive_ms = int(_KEEPALIVE_S * 1000)
    server = config.server
    # gRPC adds a jitter of a tenth; the grace behind it is without end, so that no stream is cut off.
    age = (
        [("grpc.max_connection_age_ms", max(1, int(server.max_connection_age * 1000)))]
        if server.max_connection_age
        else []
    )
    return grpc.aio.server(
        interceptors=(CallInterceptor(authenticator, observer, tracer),),
        options=(
            # Two servers on one port would each get a part of the connections, silently.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", config.limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Up to the first bound nothing is dropped, above the second everything: between them it would be chance.
            ("grpc.max_metadata_size", server.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", server.max_metadata_bytes),
            ("grpc.max_concurrent_streams", server.max_streams_per_connection),
            ("grpc.max_allowed_incoming_connections", server.max_connections),
            *age,
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", keepalive_ms),
            ("grpc.http2.ping_timeout_ms", keepalive_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            # Clients may ping this often without being sent away.
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ),
    )


def port_of(address: str) -> int:
    """The port in an address with one."""
    return int(address.rpartition(":")[2])


def bind(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None, *, setting: str = "port"
) -> str:
    """Listen; the address with the port that was taken.

    Raises ConfigurationError, which names what is wrong: ``setting``, which ``port`` comes from, or the host. The
    address is tried with a plain socket first, because gRPC writes several lines of its own when it fails.
    """
    name = f"[{host}]" if ":" in host else host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
        target = f"{name}:{port}"
        taken = server.add_insecure_port(target) if credentials is None else server.add_secure_port(target, credentials)
    except OSError as error:
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        is_of_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        where = "host" if is_of_host else setting
        raise ConfigurationError(f"{where}: cannot listen on {name}:{port}: {reason}") from None
    except UnicodeError as error:
        raise ConfigurationError(f"host: cannot listen on {name}:{port}: {error}") from None
    except (RuntimeError, OverflowError) as error:
        raise ConfigurationError(f"{setting}: cannot listen on {name}:{port}: {error}") from None
    return f"{name}:{taken}"
