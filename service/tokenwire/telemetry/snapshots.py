"""Scrapes read back: figures of one server, and rates between two scrapes."""

import math
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tokenwire.telemetry import metrics
from tokenwire.telemetry.metrics import Metric

TIMEOUT_S = 5.0
"""Seconds in which a server must answer a scrape."""
_MAX_BYTES = 4 * 1024 * 1024

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Straight to the server, whatever proxy the environment names for the world outside."""

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
        except (ValueError, KeyError, IndexError):
            raise ScrapeError("what answers there are no metrics") from None
        if metrics.REQUESTS_RUNNING.name not in samples:
            raise ScrapeError("what answers there are not tokenwire's metrics")
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
    """The metrics of a server now. Raises ScrapeError."""
    return Snapshot.of(fetch(address), time.monotonic())


def fetch(address: str, timeout_s: float = TIMEOUT_S) -> str:
    """The text of a server's metrics now. Raises ScrapeError."""
    try:
        with _opener.open(url_of(address), timeout=timeout_s) as answer:
            text: str = answer.read(_MAX_BYTES).decode()
            return text
    except urllib.error.HTTPError as error:
        raise ScrapeError(f"it answers {error.code}") from None
    except urllib.error.URLError as error:
        reason = error.reason
        why = (reason.strerror or str(reason)) if isinstance(reason, OSError) else str(reason)
        raise ScrapeError(why.lower()) from None
    except (OSError, UnicodeError, ValueError) as error:
        raise ScrapeError(" ".join(str(error).split()).lower() or type(error).__name__) from None
    except Exception as error:
        # http.client's own, which are no OSErrors: it speaks something else.
        raise ScrapeError(f"what answers there is no HTTP server ({type(error).__name__})") from None
