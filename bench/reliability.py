"""The report of what `make chaos` and `make soak` measured: `bench/results/reliability.html`.

Tests put their figures here (`record`, `record_soak`), and the page is written anew from all that is there: the newest
figure under each name, the newest soak of each length. Only those two commands write (they set ``RECORD_RELIABILITY``):
`make test` runs other work beside, and its figures would take the place of theirs.
"""

import datetime
import json
import os
from pathlib import Path
from typing import Any

from bench.page import Mark, line_chart, page, paragraph, section, table
from bench.report import cpu_features

RESULTS = Path(__file__).resolve().parent / "results"
_MIB = 2**20


def record(promise: str, measured: dict[str, float], bound: str = "", *, results: Path | None = None) -> None:
    """Put down figures, by their names with the unit, of one promise. ``bound``: what is promised of them, in words.

    ``results``: the folder; without it bench/results, and there nothing outside of `make chaos` and `make soak`.
    """
    results = results or _default_results()
    if results is None:
        return
    known = _read(results / "figures.json", {})
    known[promise] = {"measured": measured, "bound": bound, "when": _now(), "where": cpu_features()}
    _write(results, "figures.json", known)


def record_soak(soak: dict[str, Any], *, results: Path | None = None) -> Path | None:
    """Put down one soak: ``minutes``, ``summary`` (rows of two cells), ``calls`` (rows of kind, end and count),
    ``samples`` (each with ``minute`` and what was seen then) and ``kills`` (minutes). Returns the page; None where
    none is written, as by `record`.
    """
    results = results or _default_results()
    if results is None:
        return None
    return _write(results, f"soak-{soak['minutes']:g}min.json", soak | {"when": _now(), "where": cpu_features()})


def _default_results() -> Path | None:
    return RESULTS if os.environ.get("RECORD_RELIABILITY") else None


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else otherwise


def _write(results: Path, name: str, value: Any) -> Path:
    results.mkdir(parents=True, exist_ok=True)
    (results / name).write_text(json.dumps(value))
    target = results / "reliability.html"
    target.write_text(_page(results))
    return target


def _page(results: Path) -> str:
    figures = _read(results / "figures.json", {})
    parts = []
    if figures:
        rows = [
            (promise, name, value, entry["bound"], entry["when"])
            for promise, entry in sorted(figures.items())
            for name, value in entry["measured"].items()
        ]
        header = ("promise", "measured", "value", "promised", "when")
        parts.append(section("Figures of the promises", table(header, rows)))
    parts += [_soak(_read(path, {})) for path in sorted(results.glob("soak-*.json"))]
    return page("Reliability: what was measured", parts)


def _soak(soak: dict[str, Any]) -> str:
    samples, marks = soak["samples"], [Mark(minute, "the engine is killed") for minute in soak["kills"]]

    def line(name: str, scale: float = 1) -> list[tuple[float, float]]:
        return [(each["minute"], each[name] / scale) for each in samples if each[name] is not None]

    def chart(title: str, lines: dict[str, list[tuple[float, float]]]) -> str:
        return line_chart(title, lines, x_unit="min", marks=marks)

    return section(
        f"Soak of {soak['minutes']:g} minutes",
        paragraph(f"{soak['when']}, {soak['where']}. Broken lines: the engine process is killed."),
        table(("", ""), soak["summary"]),
        table(("call", "end", "count"), soak["calls"]),
        chart("Resident memory of the front, MiB", {"front": line("front_bytes", _MIB)}),
        chart("Resident memory of the engine, MiB", {"engine": line("engine_bytes", _MIB)}),
        chart("Calls answered per second", {"calls": line("calls_per_s")}),
        chart("KV blocks in use", {"blocks": line("num_blocks_used")}),
        chart("Requests", {"in the engine": line("num_open"), "waiting": line("num_waiting")}),
        chart("Descriptors", {"front": line("front_descriptors"), "engine": line("engine_descriptors")}),
        chart(
            "Threads and tasks",
            {
                "threads, front": line("front_threads"),
                "threads, engine": line("engine_threads"),
                "tasks, front": line("num_tasks"),
            },
        ),
    )
