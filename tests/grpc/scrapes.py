"""Scrapes of a server's metrics."""

import asyncio
from collections.abc import Callable

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tokenwire.telemetry.snapshots import Snapshot, fetch

PATIENCE_S = 60.0


class Scrape:
    """The samples of one scrape, and the text that they were read from."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = Snapshot.of(text, at=0.0)

    def value(self, name: str, **labels: str) -> float:
        """The value of one sample, or the sum of several; 0 where there is none."""
        return self.samples.value(name, **labels)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of every sample of a name."""
        return [labels for labels, _ in self.samples.labelled(name)]

    @property
    def families(self) -> dict[str, Metric]:
        """By name, with type and help."""
        return {family.name: family for family in text_string_to_metric_families(self.text)}


def scrape(address: str | None) -> Scrape:
    return Scrape(fetch(str(address), PATIENCE_S))


async def scraped(address: str | None) -> Scrape:
    """As ``scrape``, while the server runs on this event loop."""
    return await asyncio.to_thread(scrape, address)


async def until(address: str | None, condition: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape that ``condition`` holds for."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition(found := await scraped(address)):  # noqa: ASYNC110  (it is asked over a port)
            await asyncio.sleep(0.05)
    return found
