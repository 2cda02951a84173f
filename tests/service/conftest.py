"""Fixtures for end-to-end tests: a server per tiny model, and what transformers makes of the same prompts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_models
from tests.serving import Server, running_server


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder."""
    return tiny_models.save(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[Server]:
    """A server of the tiny Llama with room for everything that a module asks for."""
    with running_server(tiny_llama, ["--kv-cache-memory", "32MiB", "--threads", "1"]) as running:
        yield running
