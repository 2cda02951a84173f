"""How the client connects: address, credentials, deadlines, keepalive and retries."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, TypedDict

import grpc

from tokenwire.client.calls import Call
from tokenwire.client.errors import REQUEST_ID_KEY
from tokenwire.client.retry import MAX_RETRIES, Attempts
from tokenwire.v1 import generation_service_pb2_grpc, model_service_pb2_grpc, tokenizer_service_pb2_grpc

DEFAULT_TARGET = "127.0.0.1:50051"

_MAX_RECEIVE_BYTES = 64 * 1024 * 1024
# gRPC's own 20 s to 120 s between attempts would let a client sleep long after its server came up.
_RECONNECT_MS = {"initial": 100, "min": 100, "max": 2000}
_LOOPBACK = re.compile(r"(dns:/*|ipv[46]:)?(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)

_STUBS = (
    generation_service_pb2_grpc.GenerationServiceStub,
    tokenizer_service_pb2_grpc.TokenizerServiceStub,
    model_service_pb2_grpc.ModelServiceStub,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """Everything that a connection is made from."""

    target: str = DEFAULT_TARGET
    """Address of the server: host:port, or any other gRPC target."""
    timeout: float | None = None
    """Seconds that a call may take, unless the call says otherwise. None: no limit."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata of every call; keys in lower case."""
    api_key: str | None = field(default=None, repr=False)
    """API key or token, sent with every call as metadata authorization. Without ``tls`` it crosses the network in the
    clear."""
    tls: bool = False
    """Encrypt, and trust the system's certificate authorities."""
    root_certificates: Path | None = None
    """PEM file of the certificate authorities to trust; implies ``tls``."""
    client_certificate: Path | None = None
    """PEM file of the certificate to show to the server; needs ``client_key`` and implies ``tls``."""
    client_key: Path | None = None
    """PEM file of the private key of ``client_certificate``."""
    keepalive: float | None = 30.0
    """Seconds between pings while a call runs, so that a dead server is noticed. None: never."""
    retries: int = 2
    """How often a unary call is sent again, 0 to 10, that failed with UNAVAILABLE, or with RESOURCE_EXHAUSTED and a
    delay that the server names. It waits as long as the server asks, but not more than 30 s or beyond the call's
    timeout, which is for all attempts together. Streams are never sent again."""

    def __post_init__(self) -> None:
        if not 0 <= self.retries <= MAX_RETRIES:
            raise ValueError(f"retries must be 0 to {MAX_RETRIES}, got {self.retries}")
        if (self.client_certificate is None) is not (self.client_key is None):
            raise ValueError("client_certificate and client_key need each other")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials, or None for plain text. Raises OSError where a file cannot be read."""
        paths = (self.root_certificates, self.client_key, self.client_certificate)
        if not self.tls and not any(paths):
            return None
        return grpc.ssl_channel_credentials(*(None if path is None else Path(path).read_bytes() for path in paths))

    def options(self) -> list[tuple[str, Any]]:
        """Channel arguments of gRPC."""
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
            *((f"grpc.{name}_reconnect_backoff_ms", value) for name, value in _RECONNECT_MS.items()),
            ("grpc.primary_user_agent", "tokenwire-python"),
        ]
        if _LOOPBACK.fullmatch(self.target):
            # gRPC would send even loopback calls through the environment's http_proxy.
            options.append(("grpc.enable_http_proxy", 0))
        if self.keepalive is not None:
            options += [
                ("grpc.keepalive_time_ms", int(self.keepalive * 1000)),
                ("grpc.keepalive_timeout_ms", 10_000),
            ]
        return options

    def call_arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """``timeout`` and ``metadata`` of one call."""
        metadata = {**self.metadata, **(options.get("metadata") or {})}
        if self.api_key is not None:
            metadata.setdefault("authorization", f"Bearer {self.api_key}")
        if request_id := options.get("request_id"):
            metadata[REQUEST_ID_KEY] = request_id
        return {"timeout": options.get("timeout", self.timeout), "metadata": tuple(metadata.items())}


class ConnectionOptions(TypedDict, total=False):
    """Keyword arguments of the clients; see ChannelSettings."""

    timeout: float | None
    metadata: Mapping[str, str]
    tls: bool
    root_certificates: Path | None
    client_certificate: Path | None
    client_key: Path | None
    api_key: str | None
    keepalive: float | None
    retries: int


class Connection:
    """A channel of either kind, opened at the first call, with every method of the service on it."""

    def __init__(self, library: ModuleType, target: str, options: ConnectionOptions) -> None:
        """``library``: grpc or grpc.aio, whose kind of channel it is."""
        self._library = library
        self._settings = ChannelSettings(target=target, **options)
        self._channel: Any = None
        self._methods: dict[str, Any] = {}
        self._opening = Lock()

    @property
    def target(self) -> str:
        """Address of the server."""
        return self._settings.target

    @property
    def opened(self) -> bool:
        """Whether there is a channel to close."""
        return self._channel is not None

    @property
    def channel(self) -> Any:
        """The channel. One of grpc.aio belongs to the event loop that runs when it is first asked for."""
        self._open()
        return self._channel

    def _open(self) -> None:
        # Threads may share a client, and a second channel would never be closed.
        with self._opening:
            if self._channel is not None:
                return
            credentials, options = self._settings.credentials(), self._settings.options()
            if credentials is None:
                self._channel = self._library.insecure_channel(self.target, options)
            else:
                self._channel = self._library.secure_channel(self.target, credentials, options)
            for stub in _STUBS:
                self._methods.update(vars(stub(self._channel)))

    def start(self, call: Call, **changes: Any) -> Any:
        """Begin a call; what comes back is gRPC's, to be read or awaited. ``changes``: of its timeout or metadata."""
        self._open()
        arguments = self._settings.call_arguments(call.options) | changes
        return self._methods[call.method](call.request, **arguments)

    def attempts(self, call: Call) -> Attempts:
        """The attempts at a unary call that begins now."""
        return Attempts(self._settings.retries, self.timeout_of(call))

    def start_unary(self, call: Call) -> Any:
        """Begin a unary call without waiting for it; gives a grpc.Future, or what grpc.aio awaits."""
        self._open()
        method = self._methods[call.method]
        return getattr(method, "future", method)(call.request, **self._settings.call_arguments(call.options))

    def timeout_of(self, call: Call) -> float | None:
        """Seconds that ``call`` may take."""
        timeout: float | None = self._settings.call_arguments(call.options)["timeout"]
        return timeout
