"""The figures that `tokenwire top` shows of a server, from two scrapes of its metrics."""

import math
from collections.abc import Callable
from typing import NamedTuple

from tokenwire.telemetry import metrics
from tokenwire.telemetry.metrics import Metric
from tokenwire.telemetry.snapshots import Window

Value = float | str | None


class Figure(NamedTuple):
    """One line of the view."""

    key: str
    """Its name in JSON, with the unit."""
    title: str
    measure: Callable[[Window], Value]
    show: Callable[[float], str]

    def value(self, window: Window) -> Value:
        """What it is; None where nothing happened that could be measured, or what was measured is no number."""
        value = self.measure(window)
        return value if isinstance(value, str) or value is None or math.isfinite(value) else None


def _gauge(metric: Metric) -> Callable[[Window], Value]:
    return lambda window: window.after.value(metric)


def _rate(metric: Metric) -> Callable[[Window], Value]:
    return lambda window: window.rate(metric)


def _quantile(metric: Metric, q: float) -> Callable[[Window], Value]:
    return lambda window: window.quantile(metric, q)


def _state(window: Window) -> Value:
    states = [labels["state"] for labels, value in window.after.labelled(metrics.ENGINE_STATE) if value]
    serving = window.after.value(metrics.SERVING)
    name = states[0] if states else "unknown"
    return name if serving or name != "ready" else "ready, but health says NOT_SERVING"


def _model(window: Window) -> Value:
    for labels, _ in window.after.labelled(metrics.MODEL_INFO):
        return f"{labels['model']} ({labels['quantization']}, {labels['forward_path']})"
    phases = [labels["phase"] for labels, _ in window.after.labelled(metrics.STARTUP)]
    return f"{phases[-1]} ..." if phases else None


def _step_share(phase: str) -> Callable[[Window], Value]:
    def share(window: Window) -> Value:
        total = window.growth(metrics.STEP_SECONDS)
        return window.growth(metrics.STEP_SECONDS, phase=phase) / total if total else None

    return share


def _step_seconds(window: Window) -> Value:
    steps = window.growth(metrics.STEPS)
    return window.growth(metrics.STEP_SECONDS) / steps if steps else None


def _acceptance(window: Window) -> Value:
    drafted = window.growth(metrics.DRAFT_TOKENS)
    return window.growth(metrics.ACCEPTED_TOKENS) / drafted if drafted else None


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _per_second(value: float) -> str:
    return f"{value:,.1f}/s"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _bytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


FIGURES = (
    Figure("state", "state", _state, str),
    Figure("model", "model", _model, str),
    Figure("requests_running", "requests running", _gauge(metrics.REQUESTS_RUNNING), _count),
    Figure("requests_waiting", "requests waiting", _gauge(metrics.REQUESTS_WAITING), _count),
    Figure("kv_usage_ratio", "KV cache in use", _gauge(metrics.KV_USAGE), _percent),
    Figure("calls_per_second", "calls", _rate(metrics.REQUESTS), _per_second),
    Figure("errors_per_second", "errors", _rate(metrics.ERRORS), _per_second),
    Figure("refusals_per_second", "refused for want of room", _rate(metrics.REFUSALS), _per_second),
    Figure("prompt_tokens_per_second", "prompt tokens", _rate(metrics.PROMPT_TOKENS), _per_second),
    Figure("generation_tokens_per_second", "tokens generated", _rate(metrics.GENERATION_TOKENS), _per_second),
    Figure("time_to_first_token_p50_seconds", "first token, p50", _quantile(metrics.TIME_TO_FIRST_TOKEN, 0.5), _time),
    Figure("time_to_first_token_p95_seconds", "first token, p95", _quantile(metrics.TIME_TO_FIRST_TOKEN, 0.95), _time),
    Figure("inter_token_p50_seconds", "between tokens, p50", _quantile(metrics.INTER_TOKEN, 0.5), _time),
    Figure("inter_token_p95_seconds", "between tokens, p95", _quantile(metrics.INTER_TOKEN, 0.95), _time),
    Figure("queue_p95_seconds", "in the queue, p95", _quantile(metrics.QUEUE_SECONDS, 0.95), _time),
    Figure("step_seconds", "step", _step_seconds, _time),
    Figure("step_forward_ratio", "  of it forward", _step_share("forward"), _percent),
    Figure("step_sample_ratio", "  of it sampling", _step_share("sample"), _percent),
    Figure("step_draft_ratio", "  of it drafts", _step_share("draft"), _percent),
    Figure("step_rest_ratio", "  of it the rest", _step_share("rest"), _percent),
    Figure("draft_acceptance_ratio", "drafts accepted", _acceptance, _percent),
    Figure("preemptions_per_second", "preemptions", _rate(metrics.PREEMPTIONS), _per_second),
    Figure("engine_restarts", "engine restarts", _gauge(metrics.ENGINE_RESTARTS), _count),
    Figure("slow_readers", "slow readers cut off", _gauge(metrics.SLOW_READERS), _count),
    Figure("front_memory_bytes", "memory of the front", lambda window: window.after.process_memory(), _bytes),
    Figure("engine_memory_bytes", "memory of the engine", _gauge(metrics.ENGINE_MEMORY), _bytes),
)


def shown(figure: Figure, window: Window) -> str:
    """A figure as text; a dash where there is none."""
    value = figure.value(window)
    if value is None:
        return "-"
    return value if isinstance(value, str) else figure.show(value)
