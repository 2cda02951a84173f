"""A front that can be killed: `python front_of_fake_engine.py WHAT`. Standard error gets the engine's pid when WHAT is.

WHAT is loading, idle, or computing (a forward pass that does not end).
"""

import asyncio
import sys
from pathlib import Path

from fake_engine import HANG_TOKEN
from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.engine.process import EngineProcess
from tokenwire.engine.settings import GenerationSettings


async def main(what: str) -> None:
    model = ModelConfig(model="hang" if what == "loading" else "ok")
    command = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
    engine = EngineProcess(model, EngineConfig(), max_queued=8, command=command)
    await engine.start()
    if what == "idle":
        sys.stderr.write(f"{engine.pid}\n")
        sys.stderr.flush()
    else:
        # The engine itself tells when it has begun.
        engine.submit([HANG_TOKEN], GenerationSettings(max_new_tokens=1))
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
