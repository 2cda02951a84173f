"""Rotary frequencies that depend on the longest sequence of a batch: the context ends before they change."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tests.parity.runner_loop import Sequence, drive, generate, load_runner, prompts
from tokenwire.errors import ModelLoadError

ORIGINAL = 48
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": tiny_models.CONTEXT_LENGTH / ORIGINAL,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0] * 8,
    "long_factor": [1.5 + number for number in range(8)],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def save(folder: Path, rope: dict[str, Any]) -> Path:
    """The tiny Llama with other rotary parameters."""
    file = tiny_models.save(folder, "llama") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_parameters": rope}))
    return folder


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "longrope", LONGROPE)


@pytest.mark.parametrize("path", ["auto", "padded"])
def test_longest_sequence_leaves_its_batch_mates_alone(path: str, longrope: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    _, runner = load_runner(longrope, engine={"forward_path": path})
    assert runner.forward_path == ("paged" if path == "auto" else "padded")
    peer = AutoModelForCausalLM.from_pretrained(longrope, dtype=torch.float32).eval()
    texts = prompts([runner.context_length - 8, 5])
    sequences = [Sequence(number, prompt, 8) for number, prompt in enumerate(texts)]
    drive(runner, sequences)
    assert [sequence.tokens for sequence in sequences] == [generate(peer, prompt, 8) for prompt in texts]


def test_context_ends_where_the_frequencies_change(longrope: Path) -> None:
    from tokenwire.config import EngineConfig, ModelConfig
    from tokenwire.model.loader import load

    config, notes = ModelConfig(model=str(longrope), device="cpu"), []
    assert load(config, EngineConfig(), progress=notes.append).context_length == ORIGINAL
    assert any(f"context lowered from {tiny_models.CONTEXT_LENGTH} to {ORIGINAL} tokens" in note for note in notes)
    assert load(config, EngineConfig(max_context=40), progress=notes.append).context_length == 40
    with pytest.raises(ModelLoadError, match=f"max_context is 49, but it can be at most {ORIGINAL}"):
        load(config, EngineConfig(max_context=49), progress=notes.append)


@pytest.mark.parametrize("rope", [DYNAMIC, YARN], ids=["dynamic", "yarn"])
def test_context_that_needs_no_limit(rope: dict[str, Any], tmp_path: Path) -> None:
    """dynamic changes only beyond max_position_embeddings, which no context exceeds; yarn never."""
    loaded, _ = load_runner(save(tmp_path / "model", rope))
    assert loaded.model.config.rope_parameters["rope_type"] == rope["rope_type"]
    assert loaded.context_length == tiny_models.CONTEXT_LENGTH
