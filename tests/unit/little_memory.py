"""An engine in a process that may have little memory: prints what came of it as JSON.

Run as a script, because the limit holds for the whole process.
"""

import json
import resource
import sys
from pathlib import Path

import torch
from engine_fakes import FakeRunner, FakeSampler, make_generation

from tokenwire.engine.engine import Engine
from tokenwire.engine.protocol import Submit
from tokenwire.engine.settings import GenerationSettings
from tokenwire.model.batch import ForwardBatch

BYTES_PER_TOKEN = 64 << 20
ROOM_TOKENS = 10
"""Tokens of a pass for which there is memory, or a little less."""


def serve(prompts: list[list[int]]) -> None:
    failed_passes = []

    def allocate(batch: ForwardBatch) -> None:
        size = sum(map(len, batch.token_ids)) * BYTES_PER_TOKEN
        try:
            torch.empty(size, dtype=torch.uint8)
        except RuntimeError as error:
            failed_passes.append(type(error).__name__)
            raise

    engine = Engine(
        FakeRunner(num_blocks=200, on_forward=allocate),
        FakeSampler(),
        make_generation,
        max_running=8,
        max_step_tokens=32,
    )
    for number, prompt in enumerate(prompts):
        engine.inbox.put((0.0, Submit(number, prompt, GenerationSettings(max_new_tokens=6))))
    tokens: list[list[int]] = [[] for _ in prompts]
    failures = []
    while not engine.inbox.empty() or engine.stats().running or engine.stats().waiting:
        outputs = engine.step()
        for delta in outputs.deltas:
            tokens[delta.request] += delta.token_ids
        failures += [failure.message for failure in outputs.failures]
    held = engine.stats().blocks_total - engine.stats().blocks_free
    result = {"tokens": tokens, "failures": failures, "failed_passes": failed_passes, "held": held}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_TOKENS * BYTES_PER_TOKEN
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    serve(json.loads(sys.argv[1]))
