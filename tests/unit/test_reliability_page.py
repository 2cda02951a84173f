"""The report of what the tests of promises measured."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import reliability
from bench.page import line_chart

NAMES = [
    "front_bytes",
    "engine_bytes",
    "calls_per_s",
    "num_blocks_used",
    "num_open",
    "num_waiting",
    "front_descriptors",
    "engine_descriptors",
    "front_threads",
    "engine_threads",
    "num_tasks",
]
SAMPLE: dict[str, float | None] = dict.fromkeys(NAMES, 1.0)


def test_the_page_holds_the_newest_figure_of_each_promise_and_each_soak(tmp_path: Path) -> None:
    reliability.record("a <promise>", {"p99, ms": 1.875}, "5 ms", results=tmp_path)
    reliability.record("a <promise>", {"p99, ms": 2.25}, "5 ms", results=tmp_path)
    samples = [SAMPLE | {"minute": 0.0}, SAMPLE | {"minute": 1.0, "engine_bytes": None}, SAMPLE | {"minute": 2.0}]
    soak = {"minutes": 2, "summary": [("calls", 7)], "calls": [("bad", "refused", 3)], "kills": [1.0]}
    path = reliability.record_soak(soak | {"samples": samples}, results=tmp_path)
    assert path is not None
    page = path.read_text()
    assert "a &lt;promise&gt;" in page
    assert "2.25" in page
    assert "1.875" not in page
    assert "Soak of 2 minutes" in page
    assert page.count("<svg") == 7
    assert "http" not in page


def test_only_long_runs_write_into_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    monkeypatch.setattr(reliability, "RESULTS", results)
    monkeypatch.delenv("RECORD_RELIABILITY", raising=False)
    reliability.record("a promise", {"p99, ms": 1.0})
    assert reliability.record_soak({}) is None
    assert not results.exists()
    monkeypatch.setenv("RECORD_RELIABILITY", "1")
    reliability.record("a promise", {"p99, ms": 1.0})
    assert (results / "reliability.html").exists()


def test_a_chart_is_well_formed_and_its_lines_lie_within_it() -> None:
    chart = ElementTree.fromstring(line_chart("t & u", {"a": [(0, 5), (2, 7)], "b": [(1, 6)]}, x_unit="min"))
    lines = [line.get("points", "").split() for line in chart.iter("polyline")]
    assert [len(line) for line in lines] == [2, 1]
    for point in (point for line in lines for point in line):
        across, height = map(float, point.split(","))
        assert 0 <= across <= 860
        assert 0 <= height <= 240


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("t", {"a": []}, x_unit="min") == ""
