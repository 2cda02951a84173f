"""The servers of clients/conformance.json: `python serve_conformance.py FILE`.

Writes addresses, certificates, keys and facts to FILE once all servers are up, and serves until standard input ends or
SIGTERM comes. What it starts is gone when it ends.
"""

import asyncio
import json
import logging
import signal
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
sys.path.extend(str(Path(__file__).resolve().parent.parent / folder) for folder in ("chaos", "grpc", "unit"))

from conformance_control import serving_control
from conformance_facts import facts
from conformance_profiles import Profiles

from tests.tiny_models import save


async def until_the_end() -> None:
    """Wait for the end of standard input, or a signal."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    # Behind the servers' own handlers, which each took the place of the one before.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_reader(sys.stdin, lambda: None if sys.stdin.buffer.read1() else ended.set())
    await ended.wait()
    loop.remove_reader(sys.stdin)


async def serve(target: Path, folder: Path) -> None:
    """Serve from ``folder``, with addresses in ``target``."""
    checkpoint = save(folder / "tiny-llama")
    profiles = Profiles(folder)
    try:
        _, known = await asyncio.gather(profiles.serve_all(checkpoint), asyncio.to_thread(facts, checkpoint))
        async with serving_control(profiles) as control:
            content = {"control": control, "facts": known, "profiles": profiles.connections}
            # Whoever waits for the file finds it whole.
            half = target.with_suffix(".half")
            half.write_text(json.dumps(content))
            half.rename(target)
            await until_the_end()
    finally:
        await profiles.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="tokenwire-conformance-") as scratch:
        # The servers' warnings are what the cases are about.
        logging.basicConfig(filename=Path(scratch) / "log", level=logging.WARNING)
        asyncio.run(serve(Path(sys.argv[1]), Path(scratch)))
