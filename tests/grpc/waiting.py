"""Waiting for what gives no event: it is looked at again and again, for as long as it is worth."""

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Wait for ``condition``; returns the seconds that it took. Raises TimeoutError after ``timeout_s``."""
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (several places change it, often in another process)
            await asyncio.sleep(0.01)
    return time.monotonic() - began
