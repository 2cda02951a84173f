"""What cannot work ends `tokenwire serve` with one clear line and exit code 1 or 2, before a port answers."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import ROOT, clean_environment, serve_command


def serve(*flags: str) -> tuple[int, str]:
    """Exit code and standard error of a `serve` that must end by itself."""
    done = subprocess.run(
        serve_command("--port", "0", *flags),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def break_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def name_unknown_architecture(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(model_type="no_such_model", architectures=["NoSuchForCausalLM"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_weights, "model.safetensors"),
        (remove_weights, "safetensors"),
        (remove_tokenizer, "tokenizer"),
        (break_config, "config.json"),
        (name_unknown_architecture, "no_such_model"),
    ],
)
def test_damaged_checkpoint(tiny_llama: Path, tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_llama, folder)
    damage(folder)
    code, stderr = serve("--model", str(folder))
    assert code in (1, 2)
    assert said in stderr
    assert str(folder) in stderr
    assert "Traceback" not in stderr


def test_wrong_path() -> None:
    code, stderr = serve("--model", "./no/such/folder")
    assert code in (1, 2)
    assert "no/such/folder" in stderr
    assert "Traceback" not in stderr


def test_port_in_use(tiny_llama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, stderr = serve("--model", str(tiny_llama), "--port", str(port))
    assert code in (1, 2)
    assert str(port) in stderr
    assert "Traceback" not in stderr


def test_cache_that_cannot_hold_one_block(tiny_llama: Path) -> None:
    code, stderr = serve("--model", str(tiny_llama), "--kv-cache-memory", "1KiB")
    assert code in (1, 2)
    assert "KiB" in stderr or "bytes" in stderr
    assert "Traceback" not in stderr
