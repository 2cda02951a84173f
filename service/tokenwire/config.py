"""Frozen settings of the service: the only place where a setting, its range, its default and its meaning are written.

`tokenwire.cli` fills these from flags, environment (``TOKENWIRE_<NAME>``) and a TOML file, in that order of precedence;
`docs/configuration.md` is generated from them. Ranges are checked where values are read from an operator, so code that
builds a config directly answers for its own values.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

Quantization = Literal["none", "nf4", "fp4", "int8"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

_MODEL = Group("Model", sort_key=1)
_ENGINE = Group("Engine", sort_key=2)
_SUPERVISION = Group("Supervision", sort_key=3)
_SERVER = Group("Server", sort_key=4)
_LIMITS = Group("Limits", sort_key=5)
_SECURITY = Group("Security", sort_key=6)
_TELEMETRY = Group("Telemetry", sort_key=7)
_LOG = Group("Logging", sort_key=8)

MAX_DRAFT_TOKENS = 64
"""Most tokens that are proposed for one step, whoever proposes them and whoever asks."""


class _Number(Number):
    """A range of numbers, in which nan is told that it is none, and not on which side of the range it lies."""

    def __call__(self, type_: Any, value: Any) -> None:
        if isinstance(value, float) and math.isnan(value):
            raise ValueError("Must be a number, which nan is not.")
        super().__call__(type_, value)


_POSITIVE = _Number(gte=1, lte=2**31 - 1)
MAX_LOGPROBS = 100
"""Most likely tokens of one place, whatever an operator allows: those of a prompt of 128k tokens, of some 15 bytes
each, still fit into one frame between the engine and the front."""

MAX_RETURN_SEQUENCES = 63
"""Sequences of one request, whatever an operator allows: for a reader that lags one unread message is held for each,
and one is in a write, which makes the 64 that are promised."""

_COUNT = _Number(gte=0, lte=2**31 - 1)
_FRACTION = _Number(gt=0, lte=1)
_SECONDS = _Number(gte=0, lte=86_400)

_RESTART_BACKOFF = 4.0
_LONGEST_RESTART_DELAY_S = 60.0

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b|b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"b": 1} | {
    f"{prefix}{binary}b": (1024 if binary else 1000) ** power
    for power, prefix in enumerate("kmgt", start=1)
    for binary in ("i", "")
}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``512MiB``, ``1.5 GiB``, ``2GB`` or ``1048576``; case does not matter.

    KiB, MiB, GiB and TiB are powers of 1024; kB, MB, GB and TB are powers of 1000. Raises ValueError for anything else
    and for less than one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[(match[2] or "b").lower()]) if match else 0
    if size < 1:
        raise ValueError("Must be a positive size such as 512MiB or 2GiB.")
    return size


def _is_size(_type: Any, value: str | None) -> None:
    if value is not None:
        parse_size(value)


def _is_not_empty(_type: Any, value: str | None) -> None:
    if value is not None and not value.strip():
        raise ValueError("Must not be empty.")


def _is_endpoint(_type: Any, value: str | None) -> None:
    if value is not None and not re.fullmatch(r"https?://[^/\s]+:\d+/?", value):
        raise ValueError("Must be http://HOST:PORT or https://HOST:PORT.")


def _is_device(_type: Any, value: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError("Must be auto, cpu, cuda or cuda:N.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model, and how it is loaded."""

    model: Annotated[str, Parameter(group=_MODEL, validator=_is_not_empty)]
    """Folder with a checkpoint, a GGUF file, or a hub id."""
    model_id: Annotated[str | None, Parameter(group=_MODEL, validator=_is_not_empty)] = None
    """Name that requests use. Default: the hub id, or the last part of the path."""
    revision: Annotated[str | None, Parameter(group=_MODEL, validator=_is_not_empty)] = None
    """Branch, tag or commit of a hub id."""
    device: Annotated[str, Parameter(group=_MODEL, validator=_is_device)] = "auto"
    """Device: auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1."""
    device_map: Annotated[str | None, Parameter(group=_MODEL)] = None
    """Spread over devices as accelerate does: auto, balanced, sequential, or a JSON object of module to device."""
    dtype: Annotated[DType, Parameter(group=_MODEL)] = "auto"
    """Type of unquantized weights. auto: the checkpoint's on a GPU, float32 on the CPU."""
    quantize: Annotated[Quantization, Parameter(group=_MODEL)] = "none"
    """bitsandbytes quantization of the linear layers at load."""
    double_quant: Annotated[bool, Parameter(group=_MODEL)] = False
    """Quantize the quantization constants of nf4 and fp4 as well."""
    compute_dtype: Annotated[DType, Parameter(group=_MODEL)] = "auto"
    """Type of the arithmetic on 4-bit weights. auto: the dtype."""
    skip_modules: Annotated[tuple[str, ...], Parameter(group=_MODEL, negative=(), show_default=False)] = ()
    """Names of modules left unquantized. Default: those that transformers leaves out (the output head)."""
    draft_model: Annotated[str | None, Parameter(group=_MODEL, validator=_is_not_empty)] = None
    """Folder, GGUF file or hub id of a smaller model with the same tokenizer, that proposes tokens to verify."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How requests share the model."""

    max_running: Annotated[int, Parameter(group=_ENGINE, validator=_POSITIVE)] = 64
    """Rows generated at the same time; more requests wait."""
    max_step_tokens: Annotated[int, Parameter(group=_ENGINE, validator=_POSITIVE)] = 512
    """Tokens of one forward pass: decode rows first, the rest is filled with prefill chunks."""
    prefill_share: Annotated[float, Parameter(group=_ENGINE, validator=_FRACTION)] = 0.4
    """Fraction of a step's time that prefill may take while other rows decode, which wait for it: at 0.4 a gap between
    two of their tokens grows by two thirds. 1: prefill fills every step, for throughput."""
    block_size: Annotated[int, Parameter(group=_ENGINE, validator=_POSITIVE)] = 16
    """Tokens per block of the KV cache."""
    kv_cache_memory: Annotated[str | None, Parameter(group=_ENGINE, validator=_is_size)] = None
    """Memory of the KV cache, for example 512MiB or 2GiB. Default: kv_cache_fraction of what is free."""
    kv_cache_fraction: Annotated[float, Parameter(group=_ENGINE, validator=_FRACTION)] = 0.3
    """Fraction of the memory free after loading that the KV cache takes."""
    max_context: Annotated[int | None, Parameter(group=_ENGINE, validator=_POSITIVE)] = None
    """Most tokens of prompt and answer together. Default: what the model was trained for."""
    threads: Annotated[int | None, Parameter(group=_ENGINE, validator=_POSITIVE)] = None
    """CPU threads of the forward pass. Default: the cores this process may use."""
    num_assistant_tokens: Annotated[int, Parameter(group=_ENGINE, validator=_Number(gte=0, lte=MAX_DRAFT_TOKENS))] = 5
    """Tokens that the draft model proposes per step, where a request does not say; 0: only requests that say so."""
    forward_path: Annotated[Literal["auto", "padded"], Parameter(group=_ENGINE)] = "auto"
    """auto: paged where the model allows it. padded: never paged, for comparison."""
    forward_kernels: Annotated[Literal["auto", "off"], Parameter(group=_ENGINE)] = "auto"
    """auto: own kernels for nf4 and fp4 layers and the output head in float32 on the CPU. off: none, for comparison."""

    @property
    def kv_cache_bytes(self) -> int | None:
        """``kv_cache_memory`` in bytes, or None where it is unset. Raises ValueError for what is no size."""
        return None if self.kv_cache_memory is None else parse_size(self.kv_cache_memory)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisionConfig:
    """How the front watches over the engine process."""

    hang_timeout: Annotated[float, Parameter(group=_SUPERVISION, validator=_Number(gte=1, lte=86_400))] = 8.0
    """Seconds in which the engine comes to no next step or layer of the model before health turns NOT_SERVING."""
    max_restarts: Annotated[int, Parameter(group=_SUPERVISION, validator=_Number(gte=0, lte=1000))] = 3
    """Restarts of an engine that died, before the service ends with exit code 1."""
    restart_delay: Annotated[float, Parameter(group=_SUPERVISION, validator=_Number(gte=0, lte=60))] = 0.5
    """Seconds before the first restart; four times as long before each further one, but never above 60."""
    restart_reset: Annotated[float, Parameter(group=_SUPERVISION, validator=_SECONDS)] = 60.0
    """Seconds that an engine must have served for all restarts to be before it again."""

    def restart_delays(self) -> Iterator[float]:
        """Seconds before each restart."""
        for number in range(self.max_restarts):
            # Above 10 the power is beyond the bound, whatever the first delay; it would overflow in the end.
            yield min(_LONGEST_RESTART_DELAY_S, self.restart_delay * _RESTART_BACKOFF ** min(number, 10))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Where the service listens and how it stops."""

    host: Annotated[str, Parameter(group=_SERVER, validator=_is_not_empty)] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Parameter(group=_SERVER, validator=_Number(gte=0, lte=65535))] = 50051
    """Port to listen on; 0 lets the system choose."""
    reflection: Annotated[bool, Parameter(group=_SERVER)] = True
    """Answer gRPC server reflection, for grpcurl and the like."""
    drain_grace: Annotated[float, Parameter(group=_SERVER, validator=_SECONDS)] = 30.0
    """Seconds that running requests get to finish after SIGTERM."""
    drain_delay: Annotated[float, Parameter(group=_SERVER, validator=_SECONDS)] = 0.0
    """Seconds after SIGTERM, before drain_grace, in which health is NOT_SERVING and new requests are still taken: for a
    load balancer to notice, so that none is refused."""
    health_port: Annotated[
        int | None, Parameter(group=_SERVER, validator=_Number(gte=0, lte=65535), show_default=False)
    ] = None
    """Further port with nothing but health checks, without TLS, which probes of Kubernetes cannot do. Default: none."""
    slow_reader_timeout: Annotated[float, Parameter(group=_SERVER, validator=_Number(gt=0, lte=86_400))] = 30.0
    """Seconds after which a stream whose client stopped reading is cut off."""
    max_connection_age: Annotated[float, Parameter(group=_SERVER, validator=_SECONDS)] = 1800.0
    """Seconds, give or take a tenth, after which a client is asked to connect anew, so that load spreads over new
    replicas; calls that run are not cut off. 0: never."""
    max_connections: Annotated[int, Parameter(group=_SERVER, validator=_POSITIVE)] = 10_000
    """Open connections; further ones are closed at once."""
    max_streams_per_connection: Annotated[int, Parameter(group=_SERVER, validator=_POSITIVE)] = 1024
    """Calls at the same time on one connection; a client lets further ones wait."""
    max_metadata_bytes: Annotated[int, Parameter(group=_SERVER, validator=_Number(gte=1024, lte=65_536))] = 16_384
    """Bytes of one call's metadata."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class LimitsConfig:
    """Bounds of requests, checked before any work and reported by GetModel."""

    max_queued: Annotated[int, Parameter(group=_LIMITS, validator=_POSITIVE)] = 256
    """Requests that may wait."""
    max_queued_tokens: Annotated[int, Parameter(group=_LIMITS, validator=_POSITIVE)] = 1_048_576
    """Prompt tokens that may wait; a request is taken as long as fewer do."""
    queue_timeout: Annotated[float | None, Parameter(group=_LIMITS, validator=_Number(gt=0, lte=86_400))] = None
    """Seconds after which a request that still waits is refused. Default: its own deadline alone."""
    max_batch_size: Annotated[int, Parameter(group=_LIMITS, validator=_POSITIVE)] = 256
    """Prompts in one GenerateBatch."""
    max_stop_strings: Annotated[int, Parameter(group=_LIMITS, validator=_COUNT)] = 64
    """Strings in stop_strings."""
    max_stop_string_bytes: Annotated[int, Parameter(group=_LIMITS, validator=_COUNT)] = 256
    """UTF-8 bytes of one stop string."""
    max_token_ids: Annotated[int, Parameter(group=_LIMITS, validator=_COUNT)] = 4096
    """Ids in one list of token ids, or in all sequences of bad_words_ids or sequence_bias together."""
    max_token_sequences: Annotated[int, Parameter(group=_LIMITS, validator=_COUNT)] = 1024
    """Sequences in bad_words_ids or sequence_bias."""
    max_logit_bias: Annotated[int, Parameter(group=_LIMITS, validator=_COUNT)] = 4096
    """Entries of logit_bias."""
    max_logprobs: Annotated[int, Parameter(group=_LIMITS, validator=_Number(gte=0, lte=MAX_LOGPROBS))] = 20
    """Most likely tokens whose log probabilities may be asked for, of the answer or of the prompt."""
    max_return_sequences: Annotated[
        int, Parameter(group=_LIMITS, validator=_Number(gte=1, lte=MAX_RETURN_SEQUENCES))
    ] = 16
    """Largest num_return_sequences. Of each sequence one unread message is held for a reader that lags."""
    max_beams: Annotated[int, Parameter(group=_LIMITS, validator=_POSITIVE)] = 16
    """Largest num_beams; never more than max_running, since all beams advance together."""
    max_messages: Annotated[int, Parameter(group=_LIMITS, validator=_POSITIVE)] = 1024
    """Messages in one conversation."""
    max_tools: Annotated[int, Parameter(group=_LIMITS, validator=_COUNT)] = 128
    """Tools in one conversation."""
    max_documents: Annotated[int, Parameter(group=_LIMITS, validator=_COUNT)] = 128
    """Documents in one conversation."""
    max_template_variables: Annotated[int, Parameter(group=_LIMITS, validator=_COUNT)] = 64
    """Variables that one conversation gives its chat template."""
    max_message_bytes: Annotated[int, Parameter(group=_LIMITS, validator=_POSITIVE)] = 4 * 1024 * 1024
    """Bytes of one request message."""
    resume_window: Annotated[float, Parameter(group=_LIMITS, validator=_Number(gte=0, lte=86_400))] = 0.0
    """Seconds for which a resumable stream is kept, and goes on generating, after its client was lost. 0: none are."""
    max_retained_stream_bytes: Annotated[int, Parameter(group=_LIMITS, validator=_POSITIVE)] = 2 * 1024 * 1024
    """Bytes of one stream that are kept to be resumed; one that outgrows them goes on, but cannot be resumed."""
    max_retained_bytes: Annotated[int, Parameter(group=_LIMITS, validator=_POSITIVE)] = 64 * 1024 * 1024
    """Bytes of all streams that are kept to be resumed. Above them the caller who holds most loses a stream."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityConfig:
    """Who may call, and how that is known. The files are read anew when they change, and at SIGHUP."""

    tls_certificate: Annotated[Path | None, Parameter(group=_SECURITY)] = None
    """PEM file of the server's certificate, with what leads to its authority behind it. Default: no TLS."""
    tls_key: Annotated[Path | None, Parameter(group=_SECURITY)] = None
    """PEM file of the certificate's private key, without a passphrase."""
    tls_client_ca: Annotated[Path | None, Parameter(group=_SECURITY)] = None
    """PEM file of authorities; a client must then show a certificate of one of them (mTLS)."""
    callers: Annotated[Path | None, Parameter(group=_SECURITY)] = None
    """TOML file of callers: credentials, roles, limits and priority (docs/security.md). Default: anyone may call."""
    jwt_keys: Annotated[Path | None, Parameter(group=_SECURITY)] = None
    """JWKS file of the public keys that bearer tokens (JWT) are verified with."""
    jwt_issuer: Annotated[str | None, Parameter(group=_SECURITY, validator=_is_not_empty)] = None
    """The iss claim that a token must have."""
    jwt_audience: Annotated[str | None, Parameter(group=_SECURITY, validator=_is_not_empty)] = None
    """What must be in a token's aud claim."""
    jwt_roles_claim: Annotated[str, Parameter(group=_SECURITY, validator=_is_not_empty)] = "roles"
    """The claim that lists a token's roles; where a token has none, its role is inference."""

    @property
    def authenticates(self) -> bool:
        """Whether a call must show a credential."""
        return self.callers is not None or self.jwt_keys is not None

    def problems(self) -> list[str]:
        """Combinations that cannot be meant."""
        problems = []
        if (self.tls_certificate is None) is not (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_key is None else ("tls_key", "tls_certificate")
            problems.append(f"{given} needs {missing}")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            problems.append("tls_client_ca needs tls_certificate and tls_key")
        missing_claims = [name for name in ("jwt_issuer", "jwt_audience") if getattr(self, name) is None]
        if self.jwt_keys is not None and missing_claims:
            problems.append(f"jwt_keys needs {' and '.join(missing_claims)}")
        given_claims = [name for name in ("jwt_issuer", "jwt_audience") if getattr(self, name) is not None]
        if self.jwt_keys is None and given_claims:
            problems.append(f"{' and '.join(given_claims)} without jwt_keys would verify nothing")
        return problems


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class TelemetryConfig:
    """What the service tells of itself beside its log."""

    metrics_port: Annotated[int | None, Parameter(group=_TELEMETRY, validator=_Number(gte=0, lte=65535))] = None
    """Port of the Prometheus metrics, http://HOST:PORT/metrics; 0 lets the system choose. Default: no metrics."""
    metrics_host: Annotated[str, Parameter(group=_TELEMETRY, validator=_is_not_empty)] = "127.0.0.1"
    """Address of the metrics. They are plain HTTP without a credential: keep them on a network of your own."""
    otlp_endpoint: Annotated[str | None, Parameter(group=_TELEMETRY, validator=_is_endpoint)] = None
    """OTLP collector that traces are sent to over gRPC, http://HOST:PORT or https://HOST:PORT. Default: no traces."""
    trace_ratio: Annotated[float, Parameter(group=_TELEMETRY, validator=_Number(gte=0, lte=1))] = 1.0
    """Part of the calls that are traced, where the caller's trace context does not decide."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """What is written to standard error."""

    log_format: Annotated[Literal["text", "json"], Parameter(group=_LOG)] = "text"
    """One readable line, or one JSON object, per event."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Parameter(group=_LOG)] = "info"
    """Least important level that is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """All settings of `tokenwire serve`."""

    model: ModelConfig
    engine: EngineConfig = field(default_factory=EngineConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def problems(self) -> list[str]:
        """Every combination of settings that cannot be meant, one sentence each; empty where all is well."""
        model, engine, problems = self.model, self.engine, []
        if model.quantize not in ("nf4", "fp4"):
            if model.double_quant:
                problems.append(f"double_quant needs quantize nf4 or fp4, got {model.quantize}")
            if model.compute_dtype != "auto":
                problems.append(f"compute_dtype needs quantize nf4 or fp4, got {model.quantize}")
        if model.skip_modules and model.quantize == "none":
            problems.append("skip_modules needs quantize nf4, fp4 or int8, got none")
        if model.device_map is not None and model.device != "auto":
            problems.append(f"device {model.device} and device_map {model.device_map} exclude each other")
        if engine.max_step_tokens < engine.max_running:
            # Decode rows come first in every step: with fewer tokens than rows, no prefill would ever find room.
            problems.append(
                f"max_step_tokens {engine.max_step_tokens} must be at least max_running {engine.max_running}"
            )
        return problems + self.security.problems()
