"""The server under measurement, and the checkpoint that its peers load."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.serving import ROOT, running_server
from tokenwire.model.gguf import convert

GGUF = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Service:
    """A running server."""

    address: str
    pid: int
    checkpoint: Path
    """The safetensors folder with the same weights."""


@contextmanager
def running_service(*, quantize: str, flags: Sequence[str] = ()) -> Iterator[Service]:
    """`tokenwire serve` with the default model, ready."""
    checkpoint = convert(GGUF)
    with running_server(GGUF, ["--quantize", quantize, *flags]) as server:
        yield Service(server.address, server.pid, checkpoint)
