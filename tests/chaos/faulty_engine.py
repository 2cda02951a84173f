"""An engine process with a runner that fails on demand: `python faulty_engine.py FD`.

All is the service's own (loop, scheduler, sampler in Rust, frames) but for the model: `engine_fakes.FakeRunner` over
bytes, which generates what depends on every token in its cache. The model's name is a JSON object, see `Options`.
The first character of a prompt says what happens to it (`Fault`); every other prompt is served plainly.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "unit"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "grpc"))

import msgspec
from engine_fakes import FakeEmission, FakeRunner
from fakes import VOCAB_SIZE, model_info

from tokenwire._native import Generation, Sampler, Tokenizer
from tokenwire.engine.generations import beam_search_factory, generation_factory
from tokenwire.engine.main import Built, run
from tokenwire.engine.protocol import Start
from tokenwire.engine.pulse import Pulse
from tokenwire.errors import ModelLoadError
from tokenwire.model.batch import ForwardBatch

POLL_S = 0.02


class Fault(Enum):
    """What a prompt that begins with this character meets."""

    HANG = "H"
    """Its first forward ends once there is a file ``release``."""
    KILL = "K"
    """Its first forward kills the process."""
    RAISE = "X"
    """Its first forward raises."""
    PREFILL = "S"
    """Each pass of its prefill takes ``slow_s`` seconds."""
    LAYERS = "L"
    """Its first forward takes ``slow_s`` seconds in which the model comes from layer to layer."""
    PANIC = "P"
    """Its first step of the sampler ends as one that panicked."""


WARM_UP = b"\0"
"""The prompt that the engine sends itself."""

NAN = "`"
"""A prompt that begins with it gets NaN logits (token 96 of `engine_fakes`)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The model's name as JSON."""

    folder: str
    """Where the file ``journal`` is written, a line per prompt whose prefill begins, and ``release`` is looked for."""
    num_blocks: int = 2048
    block_size: int = 4
    context: int = 4096
    step_s: float = 0.0
    """What every forward pass takes at least, in seconds."""
    slow_s: float = 0.0
    memory_tokens: int = 0
    """A forward of more tokens runs out of memory; 0: none does."""
    chat_templates: dict[str, str] = field(default_factory=dict)
    """By name, beside the plain one, which is called default."""
    trace: bool = False
    """Whether a file ``passes`` is written, a line per pass: the first characters of the prompts whose rows decode."""
    loads: int = 1_000_000
    """How often the model can be loaded, counted by files in ``folder``."""


@dataclass
class FaultyRunner(FakeRunner):
    """Fails as the prompts ask."""

    options: Options = field(default_factory=lambda: Options(folder="."))
    pulse: Pulse = field(default_factory=Pulse)

    def forward(self, batch: ForwardBatch) -> Any:
        if self.options.step_s:
            time.sleep(self.options.step_s)
        num_tokens = sum(map(len, batch.token_ids))
        if 0 < self.options.memory_tokens < num_tokens:
            # As a pass that got half way: what it wrote must not matter.
            super().forward(batch)
            # In the words of torch's allocator on the CPU, so that this process need not import it.
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory for {num_tokens} tokens")
        for tokens, num_computed, table in zip(
            batch.token_ids, batch.num_computed_tokens, batch.block_tables, strict=True
        ):
            if num_computed == 0:
                self._journal(bytes(token for token in tokens if token < 256))
                self._meet(chr(tokens[0]))
            elif len(tokens) > 1 and chr(self.cache[table[0]][0]) == Fault.PREFILL.value:
                time.sleep(self.options.slow_s)
        if self.options.trace:
            self._trace(batch)
        logits = super().forward(batch)
        # What was computed is not looked at any more.
        self.batches.clear()
        self.released.clear()
        return logits

    def _journal(self, prompt: bytes) -> None:
        if prompt == WARM_UP:
            return
        with (Path(self.options.folder) / "journal").open("ab") as journal:
            journal.write(prompt + b"\n")

    def _trace(self, batch: ForwardBatch) -> None:
        decoding = (
            chr(self.cache[table[0]][0])
            for tokens, num_computed, table in zip(
                batch.token_ids, batch.num_computed_tokens, batch.block_tables, strict=True
            )
            if num_computed and len(tokens) == 1
        )
        with (Path(self.options.folder) / "passes").open("a") as passes:
            passes.write("".join(decoding) + "\n")

    def _meet(self, first: str) -> None:
        match first:
            case Fault.HANG.value:
                while not (Path(self.options.folder) / "release").exists():
                    time.sleep(POLL_S)
            case Fault.KILL.value:
                os.kill(os.getpid(), signal.SIGKILL)
            case Fault.RAISE.value:
                raise RuntimeError("injected at /secret/path")
            case Fault.PREFILL.value:
                time.sleep(self.options.slow_s)
            case Fault.LAYERS.value:
                end = time.monotonic() + self.options.slow_s
                while time.monotonic() < end:
                    self.pulse.beat()
                    time.sleep(POLL_S)


class PanickySampler:
    """The sampler of the service; sequences of ``panicky`` prompts end as the extension ends one that panicked."""

    def __init__(self) -> None:
        self._sampler = Sampler(threads=1)
        self.panicky: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def step(self, logits: Any, generations: Sequence[Generation], **guidance: Any) -> Sequence[Any]:
        emissions: list[Any] = list(self._sampler.step(logits, generations, **guidance))
        for place, generation in enumerate(generations):
            if id(generation) in self.panicky:
                self.panicky.discard(id(generation))
                emissions[place] = FakeEmission(-1, error="the sampler panicked at /secret/path")
        return emissions


def build(start: Start, progress: Callable[[str], None]) -> Built:
    progress("pretending")
    options = Options(**json.loads(start.model.model))
    folder = Path(options.folder)
    number = len(list(folder.glob("load-*")))
    if number >= options.loads:
        raise ModelLoadError("the checkpoint is gone")
    (folder / f"load-{number}").touch()
    capacity = options.num_blocks * options.block_size
    info = model_info(context_length=options.context, kv_token_capacity=capacity)
    info = msgspec.structs.replace(info, chat_templates={**info.chat_templates, **options.chat_templates})
    tokenizer = Tokenizer.from_json(info.tokenizer_json)
    pulse = Pulse()
    runner = FaultyRunner(
        num_blocks=options.num_blocks,
        block_size=options.block_size,
        context_length=options.context,
        vocab_size=VOCAB_SIZE,
        options=options,
        pulse=pulse,
    )
    sampler = PanickySampler()
    make_generation = generation_factory(tokenizer, VOCAB_SIZE)

    def make_maybe_panicky(submit: Any) -> Generation:
        generation = make_generation(submit)
        if chr(submit.prompt_ids[0]) == Fault.PANIC.value:
            sampler.panicky.add(id(generation))
        return generation

    return Built(
        runner=runner,
        sampler=sampler,
        make_generation=make_maybe_panicky,
        make_beam_search=beam_search_factory(tokenizer, VOCAB_SIZE),
        info=info,
        pulse=pulse,
    )


if __name__ == "__main__":
    run(socket.socket(fileno=int(sys.argv[1])), build)
