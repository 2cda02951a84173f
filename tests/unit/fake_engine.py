"""An engine process without torch and without Rust: `python fake_engine.py FD`. The model's name says how it behaves.

- ``ok``: serves.
- ``refuse``: cannot be loaded, by a ModelLoadError of two lines.
- ``bug``: cannot be loaded, by an unexpected exception.
- ``panic``: cannot be loaded, by an exception that is no Exception, while a thread keeps the interpreter alive.
- ``die``: ends by itself while it loads.
- ``hang``: never finishes loading.
- ``narrow``: serves, over frames of at most 4,000 bytes.
- ``once:PATH``: serves if PATH does not exist, and creates it; otherwise cannot be loaded.

A prompt that begins with HANG_TOKEN computes forever, one with KILL_TOKEN kills the process in its first forward, and
one with RAISE_TOKEN makes that forward raise.
Whatever hangs writes the process id to standard error first.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from engine_fakes import VOCAB, FakeRunner, FakeSampler, make_generation

from tokenwire.engine import channel
from tokenwire.engine.main import Built, run
from tokenwire.engine.protocol import ModelInfo, Start
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.errors import ModelLoadError
from tokenwire.model.batch import ForwardBatch

HANG_TOKEN = 90
KILL_TOKEN = 91
RAISE_TOKEN = 92
CONTEXT = 100_000


class PanicException(BaseException):
    pass


def hang() -> None:
    sys.stderr.write(f"{os.getpid()}\n")
    sys.stderr.flush()
    threading.Event().wait()


def forward_hook(batch: ForwardBatch) -> None:
    for tokens, num_computed in zip(batch.token_ids, batch.num_computed_tokens, strict=True):
        if num_computed == 0 and tokens[0] == HANG_TOKEN:
            hang()
        if num_computed == 0 and tokens[0] == KILL_TOKEN:
            os.kill(os.getpid(), signal.SIGKILL)
        if num_computed == 0 and tokens[0] == RAISE_TOKEN:
            raise RuntimeError("injected")


def model_info(model_id: str) -> ModelInfo:
    return ModelInfo(
        model_id=model_id,
        revision="",
        architecture="Fake",
        quantization="none",
        dtype="float32",
        device_map={"": "cpu"},
        forward_path="paged",
        forward_path_reason="",
        parameter_count=0,
        context_length=CONTEXT,
        vocab_size=VOCAB,
        kv_token_capacity=CONTEXT,
        special_tokens={},
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=None,
        tokenizer_json="{}",
        chat_templates={},
        defaults=GenerationOverrides(),
        unapplied_defaults=(),
    )


def build(start: Start, progress: Callable[[str], None]) -> Built:
    progress("pretending")
    behaviour = start.model.model
    if behaviour == "refuse":
        raise ModelLoadError("no checkpoint\n  here")
    if behaviour == "bug":
        raise KeyError("embed_tokens")
    if behaviour == "panic":
        threading.Thread(target=threading.Event().wait).start()
        raise PanicException("unreachable")
    if behaviour == "die":
        os._exit(3)
    if behaviour == "hang":
        hang()
    if behaviour == "narrow":
        channel.MAX_FRAME_BYTES = 4000
    if behaviour.startswith("once:"):
        marker = Path(behaviour.removeprefix("once:"))
        if marker.exists():
            raise ModelLoadError("only once")
        marker.touch()
    runner = FakeRunner(num_blocks=CONTEXT // 4, block_size=4, context_length=CONTEXT, on_forward=forward_hook)
    return Built(runner=runner, sampler=FakeSampler(), make_generation=make_generation, info=model_info(behaviour))


if __name__ == "__main__":
    run(socket.socket(fileno=int(sys.argv[1])), build)
