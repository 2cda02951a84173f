"""The front process: wire up, start the engine, answer, drain, stop."""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tokenwire import _native, logs
from tokenwire.config import SecurityConfig, ServiceConfig, TelemetryConfig
from tokenwire.engine.handle import EngineHandle, EngineState
from tokenwire.errors import ConfigurationError, ModelLoadError, TokenwireError
from tokenwire.health import LIVENESS, OVERALL, Health
from tokenwire.listener import bind, make_server, port_of
from tokenwire.reflection import add_reflection
from tokenwire.security.authentication import Authenticator, make_authenticator
from tokenwire.security.watched import Refreshable
from tokenwire.servicers.backend import Backend
from tokenwire.servicers.generation import GenerationServicer
from tokenwire.servicers.model import ModelServicer
from tokenwire.servicers.text import NativeText
from tokenwire.servicers.tokenizer import TokenizerServicer
from tokenwire.telemetry.collector import ServiceCollector, registry_of
from tokenwire.telemetry.exposition import MetricsServer
from tokenwire.telemetry.recorder import Recorder
from tokenwire.v1 import (
    generation_service_pb2,
    generation_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    tokenizer_service_pb2,
    tokenizer_service_pb2_grpc,
)

if TYPE_CHECKING:
    from tokenwire.telemetry.tracing import Tracing

logger = logging.getLogger("tokenwire.server")

EngineFactory = Callable[[ServiceConfig], EngineHandle]

GENERATION = generation_service_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name
TOKENIZER = tokenizer_service_pb2.DESCRIPTOR.services_by_name["TokenizerService"].full_name
MODEL = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

EXIT_OK = 0
EXIT_MODEL = 1
EXIT_CONFIGURATION = 2

CLOSING_GRACE_S = 2.0
"""Seconds that calls get to write their last message once the engine has drained."""
STOP_NOW_GRACE_S = 0.2
"""Seconds that calls get to learn that the engine is gone."""

REFRESH_S = 5.0
"""Seconds between two looks at the files of certificates, callers and keys."""


def run(config: ServiceConfig, create_engine: EngineFactory | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code.

    0 after a stop; 1 for a model that cannot be loaded or an engine that stays down; 2 for settings that cannot work,
    a port in use among them. Each failure is one line on standard error. ``create_engine`` puts another engine in the
    place of the process.
    """
    logs.configure(config.log)
    try:
        uvloop.run(Server(config, create_engine or _engine_process).serve())
    except ConfigurationError as error:
        logger.error("%s", error)
        return EXIT_CONFIGURATION
    except ModelLoadError as error:
        logger.error("cannot load the model: %s", error)
        return EXIT_MODEL
    except EngineLostError as error:
        logger.error("%s", error)
        return EXIT_MODEL
    return EXIT_OK


class EngineLostError(TokenwireError):
    """The engine died and could not be started again."""


class Server:
    """One run of the service. Use from one event loop."""

    def __init__(self, config: ServiceConfig, create_engine: EngineFactory) -> None:
        self._config = config
        self._create_engine = create_engine
        self._refresh_requested = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._engine_lost = False
        self.port: int | None = None
        """The port listened on, once there is one."""
        self.health_port: int | None = None
        """The port of health checks alone, where there is one."""
        self.metrics_address: str | None = None
        """Host and port of the metrics, once there are any."""
        self.backend: Backend | None = None
        """Engine and queue, once there are any."""
        self.listening = asyncio.Event()
        """Calls are answered."""
        self.ready = asyncio.Event()
        """The model is served."""

    async def serve(self) -> None:
        """Listen, load, answer until told to stop, drain, stop.

        Raises ConfigurationError, ModelLoadError, and EngineLostError where the engine stays down.
        """
        config = self._config
        authenticator = make_authenticator(config.security)
        recorder = None if config.telemetry.metrics_port is None else Recorder()
        tracing = _tracing(config.telemetry)
        server = make_server(config, authenticator, recorder, tracing)
        credentials, certificates = _credentials(config.security)
        address = bind(server, config.server.host, config.server.port, credentials)
        self.port = port_of(address)
        engine = self._create_engine(config)
        backend = self.backend = Backend(
            engine,
            config.limits,
            max_running=config.engine.max_running,
            slow_reader_timeout_s=config.server.slow_reader_timeout,
        )
        health = Health((LIVENESS, GENERATION, TOKENIZER, MODEL), lambda: backend.state)
        health_server = self._bind_health(health, authenticator)
        engine.on_state_change(lambda state: self._engine_changed(state, health, backend))
        _add_services(server, backend, health, reflection=config.server.reflection)
        watched = [*certificates, *authenticator.watched]
        metrics = _metrics_server(config.telemetry, recorder, backend, watched)
        self.metrics_address = None if metrics is None else metrics.address
        self._install_signals()
        refreshing = self._start_refreshing(watched)
        try:
            _report(health, backend)
            await server.start()
            if health_server is not None:
                await health_server.start()
            text = "not ready yet: the model loads; health checks are answered"
            addresses = {"address": address} | ({} if metrics is None else {"metrics_address": metrics.address})
            logger.info("listening", extra={"fields": addresses, "text": text})
            if config.security.authenticates and credentials is None:
                logger.warning("credentials cross the network in the clear unless a proxy on this machine adds TLS")
            self.listening.set()
            if await self._load(engine, backend):
                _report(health, backend)
                fields = {"address": address, **backend.summary()}
                logger.info("ready", extra={"fields": fields, "text": "ready: requests are answered"})
                self.ready.set()
                await self._stop_requested.wait()
                if self._engine_lost:
                    raise EngineLostError(f"the engine cannot be kept running: {engine.phase}")
                await self._unless_stopped_now(self._leave(health, backend))
                fields = {"grace_s": config.server.drain_grace, "hint": "a second signal stops at once"}
                logger.info("draining", extra={"fields": fields})
                backend.draining = True
                _report(health, backend)
                await self._unless_stopped_now(backend.admission.drain(config.server.drain_grace))
        finally:
            backend.draining = True
            _report(health, backend)
            health.close()
            if not self._stop_now.is_set():
                await self._unless_stopped_now(server.stop(CLOSING_GRACE_S))
            await engine.stop()
            await server.stop(STOP_NOW_GRACE_S)
            backend.retention.close()
            if health_server is not None:
                await health_server.stop(0)
            await _cancel(*refreshing)
            if metrics is not None:
                await asyncio.to_thread(metrics.close)
            if tracing is not None:
                await self._unless_stopped_now(_in_daemon(tracing.close))
            logger.info("stopped")

    def _bind_health(self, health: Health, authenticator: Authenticator) -> grpc.aio.Server | None:
        """The server of health checks alone, where one is asked for. Raises ConfigurationError."""
        config = self._config.server
        if config.health_port is None:
            return None
        server = make_server(self._config, authenticator, observer=None, tracer=None)
        self.health_port = port_of(bind(server, config.host, config.health_port, None, setting="health_port"))
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        return server

    async def _leave(self, health: Health, backend: Backend) -> None:
        """Say that nothing new should come, and go on until that is known."""
        backend.leaving = True
        _report(health, backend)
        delay_s = self._config.server.drain_delay
        if delay_s:
            logger.info("leaving", extra={"fields": {"delay_s": delay_s}, "text": "leaving: requests are still taken"})
            await asyncio.sleep(delay_s)

    def _engine_changed(self, state: EngineState, health: Health, backend: Backend) -> None:
        _report(health, backend)
        if state is EngineState.READY and self.ready.is_set():
            logger.info("ready again", extra={"fields": backend.summary()})
        # Better to end, and be started anew from outside, than to refuse for ever.
        if state is EngineState.STOPPED and self.ready.is_set() and not backend.leaving and not backend.draining:
            self._engine_lost = True
            self._stop_requested.set()

    async def _load(self, engine: EngineHandle, backend: Backend) -> bool:
        """Start the engine and take over its model. False where a signal came first."""
        loading = asyncio.ensure_future(self._start_engine(engine, backend))
        stopping = asyncio.ensure_future(self._stop_requested.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                return False
            loading.result()
            return True
        finally:
            await _cancel(loading, stopping)

    @staticmethod
    async def _start_engine(engine: EngineHandle, backend: Backend) -> None:
        info = await engine.start()
        try:
            text = await asyncio.to_thread(NativeText, info)
        except _native.TokenizerError as error:
            raise ModelLoadError(f"the tokenizer cannot be used: {error}") from None
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            raise ModelLoadError(f"the text side cannot be used: {type(error).__name__}: {first_line}") from error
        for name, problem in text.template_errors.items():
            logger.warning("Chat with template %s is refused: it cannot be compiled: %s", name, problem)
        backend.install(info, text)

    async def _unless_stopped_now(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``; leave it where a second signal comes."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop_now.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            await _cancel(working, stopping)

    def _start_refreshing(self, watched: list[Refreshable]) -> list["asyncio.Task[None]"]:
        """Follow files, where there are any: otherwise SIGHUP ends the process, as it does when a terminal closes."""
        if not watched:
            return []
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.refresh)
        return [asyncio.create_task(self._refresh(watched), name="refresh")]

    async def _refresh(self, watched: list[Refreshable]) -> None:
        """Look after what comes from files, from time to time and when asked to."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._refresh_requested.wait()
            is_asked = self._refresh_requested.is_set()
            self._refresh_requested.clear()
            for each in watched:
                try:
                    await asyncio.to_thread(each.refresh, always=is_asked)
                except Exception:
                    logger.exception("a file could not be looked at")

    def refresh(self) -> None:
        """Read certificates, callers and keys again, changed or not. What SIGHUP calls."""
        self._refresh_requested.set()

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """Ask once to drain and stop, again to stop at once. What the signals call."""
        if self._stop_requested.is_set():
            self._stop_now.set()
        self._stop_requested.set()


async def _in_daemon(work: Callable[[], None]) -> None:
    """Do ``work`` in a thread that the end of the process does not wait for, as it would for the loop's own."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            work()
        except Exception:
            logger.exception("what was left to do at the end failed")
        finally:
            # Nobody waits any longer where the loop is gone.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="last words", daemon=True).start()
    await done.wait()


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _report(health: Health, backend: Backend) -> None:
    serving = backend.is_serving
    known = backend.is_known
    alive = backend.engine.state is not EngineState.STALLED
    health.update({OVERALL: serving, LIVENESS: alive, GENERATION: serving, TOKENIZER: known, MODEL: known})


def _add_services(server: grpc.aio.Server, backend: Backend, health: Health, *, reflection: bool) -> None:
    generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(backend), server)
    tokenizer_service_pb2_grpc.add_TokenizerServiceServicer_to_server(TokenizerServicer(backend), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(backend), server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if reflection:
        add_reflection((GENERATION, TOKENIZER, MODEL, HEALTH), server)


def _credentials(config: SecurityConfig) -> tuple[grpc.ServerCredentials | None, list[Refreshable]]:
    """TLS and the files to look after, or None. Raises ConfigurationError."""
    if config.tls_certificate is None:
        return None, []
    # Here, so that a server without TLS needs no library for it.
    from tokenwire.security.tls import server_credentials, watched_certificates

    certificates = watched_certificates(config)
    return server_credentials(certificates), [certificates]


def _metrics_server(
    config: TelemetryConfig, recorder: Recorder | None, backend: Backend, watched: list[Refreshable]
) -> MetricsServer | None:
    """Where metrics are scraped, or None. Raises ConfigurationError."""
    if recorder is None or config.metrics_port is None:
        return None
    registry = registry_of(ServiceCollector(recorder, backend, watched))
    return MetricsServer(config.metrics_host, config.metrics_port, registry)


def _tracing(config: TelemetryConfig) -> "Tracing | None":
    """Where spans go, or None. Raises ConfigurationError."""
    if config.otlp_endpoint is None:
        return None
    try:
        # Here, so that a server without traces needs no library for them.
        from tokenwire.telemetry.tracing import Tracing
    except ImportError as error:
        raise ConfigurationError(
            f"otlp_endpoint needs OpenTelemetry ({error.name} is missing): pip install 'tokenwire[telemetry]'"
        ) from None
    try:
        return Tracing(config.otlp_endpoint, config.trace_ratio)
    except ConfigurationError:
        raise
    except Exception as error:
        # The library reads variables of its own, and promises no set of errors for what is wrong with them.
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigurationError(
            f"otlp_endpoint: OpenTelemetry does not start, look at its variables OTEL_*: {cause}"
        ) from None


def _engine_process(config: ServiceConfig) -> EngineHandle:
    # Here, so that a server in front of another engine does not need this one.
    from tokenwire.engine.process import EngineProcess

    return EngineProcess(
        config.model, config.engine, max_queued=config.limits.max_queued, supervision=config.supervision
    )
