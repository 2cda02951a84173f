"""`tokenwire top`."""

import json
import sys
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from tokenwire.cli.options import Json
from tokenwire.cli.output import escape_controls, fail, stdout
from tokenwire.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

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


class _Server:
    """One server, and what was last seen of it."""

    def __init__(self, address: str) -> None:
        # Here, so that the other commands need not import what reads metrics.
        from tokenwire.telemetry.snapshots import Snapshot

        self.address = address
        self.error = ""
        """Why the last scrape failed; empty where it did not."""
        self._seen: deque[Snapshot] = deque()

    def look(self) -> None:
        """Scrape, and forget what is too old."""
        from tokenwire.telemetry.snapshots import ScrapeError, scrape

        try:
            snapshot = scrape(self.address)
        except ScrapeError as error:
            self.error = escape_controls(str(error))
            self._seen.clear()
            return
        self.error = ""
        self._seen.append(snapshot)
        while len(self._seen) > 2 and snapshot.at - self._seen[1].at >= _WINDOW_S:
            self._seen.popleft()

    def figures(self) -> dict[str, str]:
        """Title and text of each figure; none where there is no scrape."""
        from tokenwire.cli.figures import FIGURES, shown
        from tokenwire.telemetry.snapshots import Window

        if not self._seen:
            return {}
        window = Window(self._seen[0], self._seen[-1])
        return {figure.title: escape_controls(shown(figure, window)) for figure in FIGURES}

    def record(self) -> dict[str, object]:
        """The figures for a program."""
        from tokenwire.cli.figures import FIGURES
        from tokenwire.telemetry.snapshots import Window

        window = Window(self._seen[0], self._seen[-1])
        return {"address": self.address} | {figure.key: figure.value(window) for figure in FIGURES}


def _once(servers: list[_Server], interval: float, *, as_json: bool) -> int:
    for server in servers:
        server.look()
    if not any(server.error for server in servers):
        time.sleep(interval)
        for server in servers:
            server.look()
    if bad := [server for server in servers if server.error]:
        return fail(_FAILED, *(f"{server.address}: {server.error}" for server in bad), HINT)
    out = stdout()
    if as_json:
        for server in servers:
            out.line(json.dumps(server.record()))
        return 0
    for server in servers:
        out.line(server.address)
        for title, text in server.figures().items():
            out.line(f"  {title:<26}{text}")
    return 0


def _live(servers: list[_Server], interval: float) -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout)
    if not console.is_terminal:
        raise ConfigurationError("standard output is no terminal: use --once")
    for server in servers:
        server.look()
    if all(server.error for server in servers):
        return fail(_FAILED, *(f"{server.address}: {server.error}" for server in servers), HINT)
    # Its own screen: what was in the terminal before is there again at the end, whatever ends it.
    with (
        suppress(KeyboardInterrupt),
        Live(_table(servers), console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(_table(servers), refresh=True)
            time.sleep(interval)
            for server in servers:
                server.look()
    return 0


def _table(servers: list[_Server]) -> "Table":
    from rich.table import Table

    from tokenwire.cli.figures import FIGURES

    table = Table(title="tokenwire", caption=f"of the last {_WINDOW_S:g} s; Ctrl-C ends", box=None, pad_edge=False)
    table.add_column("")
    for server in servers:
        table.add_column(escape_controls(server.address), justify="right")
    columns = [server.figures() for server in servers]
    for figure in FIGURES:
        texts = [column.get(figure.title, "") for column in columns]
        if figure.key == "state":
            texts = [text or server.error for text, server in zip(texts, servers, strict=True)]
        table.add_row(figure.title, *texts)
    return table
