"""The examples run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import FakeServer

EXAMPLES = Path(__file__).resolve().parents[2] / "clients" / "python" / "examples"
EXPECTED = {
    "quickstart.py": ["tiny: LlamaForCausalLM, nf4 on cpu", "echo: The capital of France is", "ended by stop_string"],
    "stream_chat.py": [
        "> What is a tokenizer?\nyou said: What is a tokenizer?\n",
        "you said: And what is a KV cache?\n",
    ],
    "batch.py": ["'One, two, three,': 'echo: One, two, three,'", "'': failed: prompt.text: must not be empty"],
}


def test_every_example_is_expected() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(server: FakeServer, name: str) -> None:
    environment = os.environ | {"TOKENWIRE_ADDRESS": server.target}
    shown = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    assert shown.stderr == ""
    for text in EXPECTED[name]:
        assert text in shown.stdout
