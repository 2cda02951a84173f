"""Scrapes of a server's metrics."""

import asyncio
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

PATIENCE_S = 60.0


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """The value of one sample; 0 where there is none."""
        return self._samples.get((name, tuple(sorted(labels.items()))), 0.0)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of every sample of a name."""
        return [dict(labels) for each, labels in self._samples if each == name]


def scrape(address: str | None) -> Scrape:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE_S) as answer:
        assert answer.status == 200
        return Scrape(answer.read().decode())


async def scraped(address: str | None) -> Scrape:
    """As ``scrape``, while the server runs on this event loop."""
    return await asyncio.to_thread(scrape, address)


async def until(address: str | None, condition: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape that ``condition`` holds for."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition(found := await scraped(address)):  # noqa: ASYNC110  (it is asked over a port)
            await asyncio.sleep(0.05)
    return found
