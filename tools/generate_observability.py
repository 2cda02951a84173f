"""Write the table of metrics in docs/observability.md and deploy/grafana/tokenwire.json; ``--check`` only compares."""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tokenwire.telemetry.metrics import METRICS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "observability.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "tokenwire.json"

BEGIN, END = "<!-- metrics: begin, generated -->\n", "<!-- metrics: end -->\n"

OF_SERVERS = '{job=~"$job",instance=~"$instance"}'
"""Which servers: labels that Prometheus gives every sample of a target."""


def unit_of(name: str) -> str:
    """The unit that a metric's name tells."""
    for part, unit in (("seconds", "seconds"), ("bytes", "bytes"), ("ratio", "0 to 1")):
        if part in name.split("_"):
            return unit
    return ""


def metrics_table() -> str:
    """A Markdown table of the service's own metrics."""
    lines = ["| metric | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for metric in METRICS:
        labels = " ".join(f"`{label}`" for label in metric.labels)
        cells = (f"`{metric.shown_name}`", metric.kind, labels, unit_of(metric.name), metric.help)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with its table renewed."""
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: BEGIN + metrics_table() + END, text, flags=re.S)


class Panel(NamedTuple):
    """One panel: title, unit of Grafana's, and a query per line with its legend."""

    title: str
    unit: str
    queries: dict[str, str]


def _metric(name: str, matchers: str = "") -> str:
    more = f",{matchers}}}" if matchers else "}"
    return f"{name}{OF_SERVERS[:-1]}{more}"


def _rate(name: str, by: str = "", matchers: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({_metric(name, matchers)}[$__rate_interval]))"


def _quantile(name: str, q: float) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate({_metric(f'{name}_bucket')}[$__rate_interval])))"


def _quantiles(name: str) -> dict[str, str]:
    return {f"p{round(q * 100)}": _quantile(name, q) for q in (0.5, 0.95, 0.99)}


def _gauge(name: str, by: str = "instance") -> str:
    return f"sum by ({by}) ({_metric(name)})"


PANELS = (
    Panel(
        "Requests in the service",
        "short",
        {
            "running": f"sum({_metric('tokenwire_requests_running')})",
            "waiting": f"sum({_metric('tokenwire_requests_waiting')})",
        },
    ),
    Panel("Calls by status", "reqps", {"{{code}}": _rate("tokenwire_requests_total", "code")}),
    Panel("Calls by method", "reqps", {"{{method}}": _rate("tokenwire_requests_total", "method")}),
    Panel("Errors by reason", "reqps", {"{{code}} {{reason}}": _rate("tokenwire_errors_total", "code, reason")}),
    Panel(
        "Not admitted",
        "reqps",
        {"{{reason}}, {{priority}}": _rate("tokenwire_admission_refusals_total", "reason, priority")},
    ),
    Panel("Time to first token", "s", _quantiles("tokenwire_time_to_first_token_seconds")),
    Panel("Between two tokens", "s", _quantiles("tokenwire_inter_token_seconds")),
    Panel("Whole calls", "s", _quantiles("tokenwire_request_seconds")),
    Panel(
        "Where a sequence's time goes, p95",
        "s",
        {
            "queue": _quantile("tokenwire_queue_seconds", 0.95),
            "prefill": _quantile("tokenwire_prefill_seconds", 0.95),
            "decode": _quantile("tokenwire_decode_seconds", 0.95),
        },
    ),
    Panel(
        "Tokens per second",
        "short",
        {
            "prompt": _rate("tokenwire_prompt_tokens_total"),
            "generated": _rate("tokenwire_generation_tokens_total"),
            "prompt, computed by a sibling": _rate("tokenwire_cached_prompt_tokens_total"),
        },
    ),
    Panel("Sequences by finish reason", "short", {"{{reason}}": _rate("tokenwire_sequences_total", "reason")}),
    Panel("KV cache in use", "percentunit", {"{{instance}}": _gauge("tokenwire_kv_usage_ratio")}),
    Panel(
        "KV blocks and preemptions",
        "short",
        {
            "used": f"sum({_metric('tokenwire_kv_blocks_used')})",
            "all": f"sum({_metric('tokenwire_kv_blocks')})",
            "preemptions per second": _rate("tokenwire_preemptions_total"),
        },
    ),
    Panel(
        "Time of a step by phase",
        "s",
        {
            "{{phase}}": f"{_rate('tokenwire_engine_step_seconds_total', 'phase')} / ignoring(phase) group_left() "
            f"{_rate('tokenwire_engine_steps_total')}"
        },
    ),
    Panel(
        "Rows of the batch",
        "short",
        {
            "running": f"sum({_metric('tokenwire_rows_running')})",
            "waiting in the engine": f"sum({_metric('tokenwire_rows_waiting')})",
        },
    ),
    Panel(
        "Drafts accepted",
        "percentunit",
        {"accepted": f"{_rate('tokenwire_accepted_draft_tokens_total')} / {_rate('tokenwire_draft_tokens_total')}"},
    ),
    Panel(
        "Engine state",
        "short",
        {"{{instance}} {{state}}": f"{_metric('tokenwire_engine_state')} == 1", "serving": _gauge("tokenwire_serving")},
    ),
    Panel(
        "Faults",
        "short",
        {
            "restarts": f"sum(increase({_metric('tokenwire_engine_restarts_total')}[$__rate_interval]))",
            "slow readers": f"sum(increase({_metric('tokenwire_slow_readers_total')}[$__rate_interval]))",
            "files that could not be reloaded: {{what}}": "sum by (what) (increase("
            + _metric("tokenwire_reloads_total", 'result="failed"')
            + "[$__rate_interval]))",
            "seconds without progress": f"max({_metric('tokenwire_engine_stalled_seconds')})",
        },
    ),
    Panel(
        "Memory",
        "bytes",
        {
            "front {{instance}}": _gauge("process_resident_memory_bytes"),
            "engine {{instance}}": _gauge("tokenwire_engine_resident_memory_bytes"),
            "kept streams {{instance}}": _gauge("tokenwire_retained_bytes"),
        },
    ),
    Panel(
        "Kept streams",
        "short",
        {
            "kept {{instance}}": _gauge("tokenwire_retained_streams"),
            "without a reader {{instance}}": _gauge("tokenwire_retained_streams_unread"),
        },
    ),
    Panel(
        "Start-up",
        "s",
        {"{{instance}} {{phase}}": _gauge("tokenwire_startup_phase_seconds", "instance, phase")},
    ),
)


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> str:
    """The dashboard as Grafana imports it."""
    panels = []
    for number, panel in enumerate(PANELS):
        targets = [
            {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend}
            for place, (legend, query) in enumerate(panel.queries.items())
        ]
        panels.append(
            {
                "id": number + 1,
                "type": "timeseries",
                "title": panel.title,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"h": 8, "w": 8, "x": 8 * (number % 3), "y": 8 * (number // 3)},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "targets": targets,
            }
        )
    return (
        json.dumps(
            {
                "title": "tokenwire",
                "uid": "tokenwire",
                "schemaVersion": 39,
                "editable": True,
                "refresh": "10s",
                "time": {"from": "now-1h", "to": "now"},
                "templating": {
                    "list": [
                        {"name": "datasource", "type": "datasource", "query": "prometheus"},
                        _variable("job", "label_values(tokenwire_requests_running, job)"),
                        _variable("instance", 'label_values(tokenwire_requests_running{job=~"$job"}, instance)'),
                    ]
                },
                "panels": panels,
            },
            indent=1,
        )
        + "\n"
    )


def main(arguments: list[str]) -> int:
    """Write both files, or with ``--check`` say whether they are current."""
    wanted = {PAGE: page(), DASHBOARD: dashboard()}
    if arguments == ["--check"]:
        old = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
        for path in old:
            message = f"{path.relative_to(ROOT)} is not current: run `python tools/generate_observability.py`"
            print(message, file=sys.stderr)
        return 1 if old else 0
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
