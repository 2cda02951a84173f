"""Scrapes read back: figures of one server, and rates between two scrapes."""

import http
import http.client
import math
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tokenwire.telemetry import metrics
from tokenwire.telemetry.metrics import Metric

TIMEOUT_S = 5.0
"""Seconds in which a server must have answered a scrape, from the look-up of its name to the last byte."""
_MAX_BYTES = 4 * 1024 * 1024
_NO_ADDRESS = "no address of metrics: write HOST:PORT or http://HOST:PORT/metrics"

Labels = tuple[tuple[str, str], ...]


class ScrapeError(Exception):
    """A server's metrics cannot be read; says why in a few words."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The samples of one scrape."""

    at: float
    """Monotonic seconds."""
    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)
    """By sample name and labels."""

    @classmethod
    def of(cls, text: str, at: float) -> "Snapshot":
        """A scrape's text, taken at ``at``. Raises ScrapeError for what is not Prometheus' text format."""
        samples: dict[str, dict[Labels, float]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = tuple(sorted(sample.labels.items()))
                    samples.setdefault(sample.name, {})[labels] = sample.value
        except Exception:
            # The parser promises no set of errors for what is not its format.
            raise ScrapeError("what answers there are no metrics") from None
        if metrics.REQUESTS_RUNNING.name not in samples:
            raise ScrapeError("what answers there are not tokenwire's metrics")
        for metric in metrics.METRICS:
            _check(metric, samples)
        return cls(at, samples)

    def value(self, metric: Metric | str, **labels: str) -> float:
        """The sum of the samples of a metric, or of this name, that have ``labels``."""
        return sum(
            value
            for each, value in self.samples.get(_name_of(metric), {}).items()
            if all(pair in each for pair in labels.items())
        )

    def process_memory(self) -> float:
        """Resident bytes of the front process."""
        return sum(self.samples.get("process_resident_memory_bytes", {}).values())

    def labelled(self, metric: Metric | str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples of a metric, or of this name, with their labels."""
        for labels, value in self.samples.get(_name_of(metric), {}).items():
            yield dict(labels), value

    def buckets(self, metric: Metric) -> list[tuple[float, float]]:
        """Upper bounds of a histogram and how many values are at most that."""
        found = self.samples.get(f"{metric.name}_bucket", {})
        return sorted((float(dict(labels)["le"]), value) for labels, value in found.items())


def _name_of(metric: Metric | str) -> str:
    return metric if isinstance(metric, str) else metric.shown_name


def _check(metric: Metric, samples: dict[str, dict[Labels, float]]) -> None:
    """Raise ScrapeError where a sample lacks a label, or a bucket a bound that is a number."""
    name, needed = (f"{metric.name}_bucket", "le") if metric.bounds else (metric.shown_name, "")
    for labels in map(dict, samples.get(name, {})):
        missing = [label for label in (*metric.labels, needed) if label and label not in labels]
        if missing:
            raise ScrapeError(f"what answers there are not tokenwire's metrics: {name} lacks the label {missing[0]}")
        try:
            has_bound = not needed or not math.isnan(float(labels[needed]))
        except ValueError:
            has_bound = False
        if not has_bound:
            raise ScrapeError(f"what answers there are not tokenwire's metrics: {name} has a bound that is no number")


class Window(NamedTuple):
    """What happened between two snapshots of one server."""

    before: Snapshot
    after: Snapshot

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.after.at - self.before.at

    def growth(self, metric: Metric, **labels: str) -> float:
        """By how much a counter grew; where the server began anew, what it has counted since."""
        before, after = self.before.value(metric, **labels), self.after.value(metric, **labels)
        return after - before if after >= before else after

    def rate(self, metric: Metric, **labels: str) -> float:
        """Growth per second."""
        return self.growth(metric, **labels) / self.seconds if self.seconds > 0 else 0.0

    def quantile(self, metric: Metric, q: float) -> float | None:
        """The ``q`` quantile of what a histogram took, within its bucket by interpolation; None where it took nothing.

        Above the last bound it is that bound.
        """
        after = self.after.buckets(metric)
        before = [count for _, count in self.before.buckets(metric)] or [0.0] * len(after)
        if len(before) != len(after) or not after or after[-1][1] < before[-1]:
            before = [0.0] * len(after)
        counts = [(bound, count - earlier) for (bound, count), earlier in zip(after, before, strict=True)]
        if not counts or counts[-1][1] <= 0:
            return None
        rank = q * counts[-1][1]
        low, below = 0.0, 0.0
        for bound, count in counts:
            if count >= rank and count > below:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (rank - below) / (count - below)
            low, below = bound, count
        return low


def url_of(address: str) -> str:
    """Where the metrics of ``address`` are: HOST:PORT or a whole http address."""
    if "://" in address:
        return address if address.rstrip("/").count("/") > 2 else f"{address.rstrip('/')}/metrics"
    return f"http://{address}/metrics"


def scrape(address: str) -> Snapshot:
    """The metrics of a server now. Raises ScrapeError. Blocks for TIMEOUT_S at most, however slowly it answers."""
    return Snapshot.of(fetch(address, TIMEOUT_S), time.monotonic())


def fetch(address: str, timeout_s: float = TIMEOUT_S) -> str:
    """The text of a server's metrics now. Raises ScrapeError. Blocks for ``timeout_s`` at most."""
    request = _Request(url_of(address), timeout_s)
    # In a thread, since no timeout of a socket holds for the look-up of a name and all parts of an answer together.
    reading = threading.Thread(target=request.run, name="scrape", daemon=True)
    reading.start()
    reading.join(timeout_s)
    if reading.is_alive():
        request.give_up()
        raise ScrapeError(f"no whole answer within {timeout_s:g} s")
    return request.text()


class _Request:
    """One GET straight to the server, whatever proxy the environment names; redirects are not followed."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._connection, self._target = _connection(url, timeout_s)
        self._outcome: bytes | Exception = b""

    def run(self) -> None:
        """Ask, and read the answer."""
        try:
            self._connection.request("GET", self._target, headers={"Connection": "close"})
            with self._connection.getresponse() as answer:
                if answer.status != http.HTTPStatus.OK:
                    raise ScrapeError(f"it answers {answer.status}")
                body = answer.read(_MAX_BYTES + 1)
            if len(body) > _MAX_BYTES:
                raise ScrapeError(f"what answers there is longer than {_MAX_BYTES // 2**20} MiB")
            self._outcome = body
        except Exception as error:  # handed over to the thread that waits
            self._outcome = error
        finally:
            self._connection.close()

    def give_up(self) -> None:
        """End the thread that reads, without waiting for it."""
        if (connected := self._connection.sock) is not None:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def text(self) -> str:
        """What was read. Raises ScrapeError."""
        match self._outcome:
            case bytes() as body:
                try:
                    return body.decode()
                except UnicodeError:
                    raise ScrapeError("what answers there are no metrics") from None
            case ScrapeError() as error:
                raise error
            case http.client.InvalidURL():
                raise ScrapeError(_NO_ADDRESS)
            case OSError() as error:
                text = error.strerror or str(error) or type(error).__name__
                raise ScrapeError(" ".join(text.split()).lower()) from None
            case UnicodeError() | ValueError() as error:
                raise ScrapeError(" ".join(str(error).split()).lower()) from None
            case error:
                # http.client's own, which are no OSErrors: it speaks something else.
                raise ScrapeError(f"what answers there is no HTTP server ({type(error).__name__})") from None


def _connection(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """A connection that is not open yet, and what to ask for."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
        if host and parts.scheme in ("http", "https"):
            make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            return make(host, port, timeout=timeout_s), target
    except (ValueError, http.client.InvalidURL):
        pass
    raise ScrapeError(_NO_ADDRESS)
