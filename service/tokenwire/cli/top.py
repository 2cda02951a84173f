"""`tokenwire top`."""

import json
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter
from cyclopts.validators import Number

from tokenwire.cli.options import Json
from tokenwire.cli.output import escape_controls, fail, stdout
from tokenwire.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from tokenwire.telemetry.snapshots import Snapshot

_WINDOW_S = 10.0
"""Seconds that rates and quantiles look back over, at least one interval."""
_FAILED = 1

HINT = (
    "`tokenwire serve --metrics-port PORT` opens the metrics, which are off otherwise; "
    "its log line `listening` names their address as metrics_address"
)


def top(
    addresses: Annotated[
        tuple[str, ...], Parameter(help="Where the metrics of each server are: HOST:PORT, or a whole http address.")
    ] = (),
    /,
    *,
    interval: Annotated[
        float, Parameter(help="Seconds between two scrapes.", validator=Number(gte=0.1, lte=3600))
    ] = 2.0,
    once: Annotated[
        bool, Parameter(help="Scrape twice, one interval apart, print the figures and end.", negative=())
    ] = False,
    as_json: Json = False,
) -> int:
    """Show what servers do, live: requests, latencies, tokens, memory. Reads their Prometheus metrics; Ctrl-C ends it.

    Rates and quantiles are of the last ten seconds, or of one interval where that is longer or with --once.
    """
    if not addresses:
        raise ConfigurationError(f"name at least one address, for example: tokenwire top 127.0.0.1:9000. {HINT}")
    if as_json and not once:
        raise ConfigurationError("--json needs --once")
    servers = [_Server(address) for address in addresses]
    return _once(servers, interval, as_json=as_json) if once else _live(servers, interval)


class _Seen(NamedTuple):
    """What is known of a server: the scrapes of the window, or why the last one failed."""

    snapshots: "tuple[Snapshot, ...]" = ()
    error: str = ""


class _Server:
    """One server, and what was last seen of it. One thread looks, another may read."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.seen = _Seen()

    def look(self) -> None:
        """Scrape, and forget what is too old."""
        # Here, so that the other commands need not import what reads metrics.
        from tokenwire.telemetry.snapshots import ScrapeError, scrape

        try:
            snapshot = scrape(self.address)
        except ScrapeError as error:
            self.seen = _Seen(error=escape_controls(str(error)))
            return
        snapshots = [*self.seen.snapshots, snapshot]
        while len(snapshots) > 2 and snapshot.at - snapshots[1].at >= _WINDOW_S:
            del snapshots[0]
        self.seen = _Seen(tuple(snapshots))

    def watch(self, interval: float, end: threading.Event) -> None:
        """Look again and again, ``interval`` seconds after each answer, until ``end``."""
        while not end.wait(interval):
            self.look()

    def record(self) -> dict[str, object]:
        """The figures for a program."""
        from tokenwire.cli.figures import FIGURES
        from tokenwire.telemetry.snapshots import Window

        snapshots = self.seen.snapshots
        window = Window(snapshots[0], snapshots[-1])
        return {"address": self.address} | {figure.key: figure.value(window) for figure in FIGURES}


def _figures(seen: _Seen) -> dict[str, str]:
    """Title and text of each figure; none where there is no scrape."""
    from tokenwire.cli.figures import FIGURES, shown
    from tokenwire.telemetry.snapshots import Window

    if not seen.snapshots:
        return {}
    window = Window(seen.snapshots[0], seen.snapshots[-1])
    return {figure.title: escape_controls(shown(figure, window)) for figure in FIGURES}


def _look(servers: list[_Server]) -> list[str]:
    """Scrape all of them at the same time; a line for each that failed."""
    looking = [threading.Thread(target=server.look, daemon=True) for server in servers]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    return [f"{server.address}: {server.seen.error}" for server in servers if server.seen.error]


def _once(servers: list[_Server], interval: float, *, as_json: bool) -> int:
    bad = _look(servers)
    if not bad:
        time.sleep(interval)
        bad = _look(servers)
    if bad:
        return fail(_FAILED, *bad, HINT)
    out = stdout()
    if as_json:
        for server in servers:
            out.line(json.dumps(server.record(), allow_nan=False))
        return 0
    for server in servers:
        out.line(server.address)
        for title, text in _figures(server.seen).items():
            out.line(f"  {title:<26}{text}")
    return 0


def _live(servers: list[_Server], interval: float) -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout)
    if not console.is_terminal:
        raise ConfigurationError("standard output is no terminal: use --once")
    bad = _look(servers)
    if len(bad) == len(servers):
        return fail(_FAILED, *bad, HINT)
    end = threading.Event()
    # Its own screen: what was in the terminal before is there again at the end, whatever ends it.
    with (
        suppress(KeyboardInterrupt),
        Live(_table(servers), console=console, screen=True, auto_refresh=False) as live,
    ):
        # A thread each: a server that answers slowly holds up no other's column.
        for server in servers:
            threading.Thread(target=server.watch, args=(interval, end), daemon=True).start()
        while True:
            live.update(_table(servers), refresh=True)
            time.sleep(interval)
    end.set()
    return 0


def _table(servers: list[_Server]) -> "Table":
    from rich.table import Table

    from tokenwire.cli.figures import FIGURES

    table = Table(title="tokenwire", caption=f"of the last {_WINDOW_S:g} s; Ctrl-C ends", box=None, pad_edge=False)
    table.add_column("")
    for server in servers:
        table.add_column(escape_controls(server.address), justify="right")
    seen = [server.seen for server in servers]
    columns = [_figures(each) for each in seen]
    for figure in FIGURES:
        texts = [column.get(figure.title, "") for column in columns]
        if figure.key == "state":
            texts = [text or each.error for text, each in zip(texts, seen, strict=True)]
        table.add_row(figure.title, *texts)
    return table
