"""The dashboard and the page about metrics, against a live scrape: every name and label in them exists."""

import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import promql_parser
import pytest
from fakes import FakeEngine, say
from harness import Service
from scrapes import Scrape
from test_calls import generate_request
from test_metrics import metrics_of, with_metrics

from tests.certificates import Authority
from tokenwire.config import SecurityConfig
from tokenwire.v1 import generation_service_pb2 as pb

Start = Callable[..., Awaitable[Service]]

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "tokenwire.json").read_text())
PANELS = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in DASHBOARD["panels"]}

OF_THE_TARGET = {"job", "instance"}
"""Labels that Prometheus adds to every sample it scrapes."""


def parsed(query: str) -> Any:
    """A query as Prometheus gets it: Grafana puts values in the place of variables."""
    return promql_parser.parse(query.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*"))


def nodes(expression: Any) -> list[Any]:
    """Every part of a query."""
    found: list[Any] = []
    promql_parser.walk(expression, lambda node: found.append(node))
    return found


def selectors(expression: Any) -> Iterator[tuple[str, set[str]]]:
    """The metrics that a query reads, with the labels that it compares."""
    for node in nodes(expression):
        selector = node if isinstance(node, promql_parser.VectorSelector) else getattr(node, "vector_selector", None)
        if selector is not None:
            yield str(selector.name), {matcher.name for matcher in selector.matchers.matchers}


def grouping(expression: Any) -> set[str]:
    """The labels that a query groups by."""
    labels: set[str] = set()
    for node in nodes(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            labels |= set(node.modifier.labels)
    return labels


@pytest.fixture
async def found(start: Start, tmp_path: Path) -> Scrape:
    """A scrape of a server that has met one thing of each kind."""
    certificate, key = Authority().issue().write(tmp_path)
    security = SecurityConfig(tls_certificate=certificate, tls_key=key)
    engine = FakeEngine(script=say("x"))
    engine.figures.begin_process()
    plain = await start(engine, with_metrics())
    await plain.generation.Generate(generate_request())
    with pytest.raises(grpc.aio.AioRpcError):
        await plain.generation.Generate(pb.GenerateRequest())
    secure = await start(FakeEngine(), with_metrics(security=security))
    return Scrape((await metrics_of(plain)).text + reloads_of(await metrics_of(secure)))


def reloads_of(scrape: Scrape) -> str:
    return "".join(line + "\n" for line in scrape.text.splitlines() if line.startswith("tokenwire_reloads_total{"))


async def test_every_query_reads_what_is_there(found: Scrape) -> None:
    assert PANELS
    read = set()
    for title, queries in PANELS.items():
        for query in queries:
            expression = parsed(query)
            names = [name for name, _ in selectors(expression)]
            assert names, query
            known = set(OF_THE_TARGET)
            for name, compared in selectors(expression):
                samples = found.labels(name)
                assert samples, f"{title}: nothing is called {name}"
                labels = set().union(*samples) | OF_THE_TARGET
                assert compared <= labels, f"{title}: {name} has no {compared - labels}"
                known |= labels
            assert grouping(expression) <= known, f"{title}: {query}"
            read |= set(names)
    # What is measured is shown, but for what the panels leave to a closer look.
    own = {name for name in found.samples.samples if name.startswith("tokenwire_")}
    unread = {name for name in own if not re.search(r"_(sum|count)$", name)} - read
    assert unread == {"tokenwire_model_info", "tokenwire_requests_waiting_tokens"}


async def test_legends_name_labels_that_the_query_keeps(found: Scrape) -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            expression = parsed(target["expr"])
            kept = grouping(expression)
            if not any(isinstance(node, promql_parser.AggregateExpr) for node in nodes(expression)):
                kept = OF_THE_TARGET.union(*(set().union(*found.labels(name)) for name, _ in selectors(expression)))
            assert used <= kept, f"{panel['title']}: {target['legendFormat']}"


@pytest.mark.parametrize("query", ["sum by (code (x)", "rate(x[5m)"])
def test_a_query_that_is_none_is_noticed(query: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(query)


def test_the_page_and_the_dashboard_are_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "generate_observability.py"), "--check"]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


async def test_the_page_names_every_metric_of_a_scrape_and_its_labels(found: Scrape) -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    rows = dict(re.findall(r"^\| `(tokenwire_\w+)` \| \w+ \| ([^|]*) \|", page, flags=re.M))
    families = {name: family for name, family in found.families.items() if name.startswith("tokenwire_")}
    shown = {f"{name}_total" if family.type == "counter" else name for name, family in families.items()}
    assert set(rows) == shown
    for name, cell in rows.items():
        labels = set().union(*found.labels(name))
        if labels:
            assert labels == set(re.findall(r"`(\w+)`", cell)), name
