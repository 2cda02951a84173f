"""What a scrape answers: the metrics of `metrics.py`, with the values of now."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

import tokenwire
from tokenwire.engine.handle import EngineHandle, EngineState
from tokenwire.engine.protocol import ModelInfo
from tokenwire.telemetry import metrics
from tokenwire.telemetry.histogram import Histogram
from tokenwire.telemetry.metrics import Metric
from tokenwire.telemetry.recorder import Recorder

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Samples = Mapping[tuple[str, ...], float]


class Queue(Protocol):
    """What is read of `admission.Admission`."""

    @property
    def num_running(self) -> int:
        """Requests that the engine has."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""

    @property
    def num_waiting_tokens(self) -> int:
        """Of their prompts."""


class Reloaded(Protocol):
    """What is read of `security.watched.Watched`."""

    @property
    def name(self) -> str:
        """What it holds."""

    @property
    def num_reloads(self) -> int:
        """Changes that were taken over."""

    @property
    def num_failures(self) -> int:
        """Changes that could not be used."""


class Retained(Protocol):
    """What is read of `servicers.retention.Retention`."""

    def __len__(self) -> int:
        """Streams that are kept."""

    @property
    def num_unread(self) -> int:
        """Those that no call reads."""

    @property
    def num_bytes(self) -> int:
        """What all of them take."""


class Service(Protocol):
    """What is read of the backend."""

    @property
    def engine(self) -> EngineHandle:
        """The engine."""

    @property
    def admission(self) -> Queue:
        """The queue in front of it."""

    @property
    def retention(self) -> Retained:
        """Streams that outlive their calls."""

    @property
    def is_serving(self) -> bool:
        """Whether new requests for generation are taken."""

    @property
    def info(self) -> ModelInfo | None:
        """The served model, once there is one."""


class ServiceCollector(Collector):
    """Reads from a thread of its own: single values, each of them whole."""

    def __init__(self, recorder: Recorder, service: Service, reloaded: Sequence[Reloaded]) -> None:
        self._recorder = recorder
        self._service = service
        self._reloaded = reloaded

    def collect(self) -> Iterator[Family]:
        """All metrics but those of the process."""
        yield from self._requests()
        yield from self._engine()
        yield from self._tokens()
        for metric, histogram in self._histograms():
            yield _histogram(metric, histogram)

    def describe(self) -> Iterable[Family]:
        """Nothing: the names are known to be this collector's alone."""
        return ()

    def _requests(self) -> Iterator[Family]:
        recorder, queue = self._recorder, self._service.admission
        yield _single(metrics.REQUESTS_RUNNING, queue.num_running)
        yield _single(metrics.REQUESTS_WAITING, queue.num_waiting)
        yield _single(metrics.WAITING_TOKENS, queue.num_waiting_tokens)
        yield _labelled(metrics.REQUESTS, recorder.requests)
        yield _labelled(metrics.ERRORS, recorder.errors)
        yield _labelled(metrics.REFUSALS, recorder.refusals)
        yield _single(metrics.SLOW_READERS, recorder.slow_readers)
        retention = self._service.retention
        yield _single(metrics.RETAINED_STREAMS, len(retention))
        yield _single(metrics.RETAINED_UNREAD, retention.num_unread)
        yield _single(metrics.RETAINED_BYTES, retention.num_bytes)
        reloads: dict[tuple[str, ...], float] = {}
        for each in self._reloaded:
            what = each.name.replace(" ", "_")
            reloads[what, "ok"] = each.num_reloads
            reloads[what, "failed"] = each.num_failures
        yield _labelled(metrics.RELOADS, reloads)

    def _engine(self) -> Iterator[Family]:
        service = self._service
        figures = service.engine.figures
        stats = figures.stats
        totals = figures.totals()
        blocks, free = (stats.blocks_total, stats.blocks_free) if stats is not None else (0, 0)
        yield _single(metrics.ROWS_RUNNING, stats.running if stats is not None else 0)
        yield _single(metrics.ROWS_WAITING, stats.waiting if stats is not None else 0)
        yield _single(metrics.KV_BLOCKS, blocks)
        yield _single(metrics.KV_BLOCKS_USED, blocks - free)
        yield _single(metrics.KV_USAGE, (blocks - free) / blocks if blocks else 0.0)
        yield _single(metrics.ENGINE_MEMORY, stats.resident_bytes if stats is not None else 0)
        state = service.engine.state
        yield _labelled(metrics.ENGINE_STATE, {(each.value,): float(each is state) for each in EngineState})
        yield _single(metrics.SERVING, float(service.is_serving))
        yield _single(metrics.ENGINE_STALLED, figures.stalled_s)
        yield _labelled(metrics.STARTUP, {(name,): value for name, value in figures.phase_seconds().items()})
        yield _single(metrics.ENGINE_RESTARTS, figures.num_restarts)
        yield _single(metrics.STEPS, totals.steps)
        seconds = {"draft": totals.draft_s, "forward": totals.forward_s}
        seconds |= {"sample": totals.sample_s, "rest": totals.rest_s}
        yield _labelled(metrics.STEP_SECONDS, {(phase,): value for phase, value in seconds.items()})
        yield _single(metrics.PREEMPTIONS, totals.preemptions)
        info = service.info
        values = () if info is None else (info.model_id, info.architecture, info.quantization, info.dtype)
        labels = () if info is None else (tokenwire.__version__, *values, info.forward_path)
        yield _labelled(metrics.MODEL_INFO, {labels: 1.0} if labels else {})

    def _tokens(self) -> Iterator[Family]:
        recorder = self._recorder
        yield _labelled(metrics.SEQUENCES, {(reason,): count for reason, count in recorder.sequences.copy().items()})
        yield _single(metrics.PROMPT_TOKENS, recorder.prompt_tokens)
        yield _single(metrics.CACHED_TOKENS, recorder.cached_tokens)
        yield _single(metrics.GENERATION_TOKENS, recorder.generation_tokens)
        yield _single(metrics.DRAFT_TOKENS, recorder.draft_tokens)
        yield _single(metrics.ACCEPTED_TOKENS, recorder.accepted_tokens)

    def _histograms(self) -> Iterator[tuple[Metric, Histogram]]:
        recorder = self._recorder
        yield metrics.TIME_TO_FIRST_TOKEN, recorder.first_token
        yield metrics.INTER_TOKEN, recorder.gaps
        yield metrics.REQUEST_SECONDS, recorder.request
        yield metrics.QUEUE_SECONDS, recorder.queue
        yield metrics.PREFILL_SECONDS, recorder.prefill
        yield metrics.DECODE_SECONDS, recorder.decode


def registry_of(collector: Collector) -> CollectorRegistry:
    """What is scraped: the service's own metrics, and those of the front process (``process_*``)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


def _labelled(metric: Metric, samples: Samples) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    # A copy in one step: the event loop may add labels meanwhile.
    for labels, value in dict(samples).items():
        family.add_metric(labels, value)
    return family


def _single(metric: Metric, value: float) -> Family:
    return _labelled(metric, {(): value})


def _histogram(metric: Metric, histogram: Histogram) -> Family:
    counts = histogram.cumulated()
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return HistogramMetricFamily(
        metric.name, metric.help, buckets=list(zip(bounds, counts, strict=True)), sum_value=histogram.total
    )
