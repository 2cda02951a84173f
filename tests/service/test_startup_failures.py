"""What cannot work ends `tokenwire serve` with one clear line: exit code 1 for the model, 2 for settings."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import ROOT, clean_environment, serve_command


def serve(*flags: str, port: int = 0) -> tuple[int, str]:
    """Exit code and standard error of a `serve` that must end by itself."""
    done = subprocess.run(
        serve_command("--port", str(port), *flags),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def errors(stderr: str) -> list[str]:
    """The events logged as errors; every line must be a log record, so a stack trace fails here."""
    records = [json.loads(line) for line in stderr.splitlines()]
    return [record["event"] for record in records if record["level"] == "error"]


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
    assert code == 1
    (error,) = errors(stderr)
    assert said in error
    assert str(folder) in error


def test_wrong_path() -> None:
    code, stderr = serve("--model", "./no/such/folder")
    assert code == 1
    (error,) = errors(stderr)
    assert "no/such/folder" in error


def test_port_in_use(tiny_llama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, stderr = serve("--model", str(tiny_llama), port=port)
    assert code == 2
    (error,) = errors(stderr)
    assert str(port) in error


def test_cache_that_cannot_hold_one_block(tiny_llama: Path) -> None:
    code, stderr = serve("--model", str(tiny_llama), "--kv-cache-memory", "1KiB")
    assert code == 1
    (error,) = errors(stderr)
    assert "1 KiB" in error


def test_draft_model_that_is_not_there_or_speaks_another_language(tiny_llama: Path, tmp_path: Path) -> None:
    code, stderr = serve("--model", str(tiny_llama), "--draft-model", "./no/such/folder")
    assert code == 1
    (error,) = errors(stderr)
    assert "no/such/folder" in error
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    code, stderr = serve("--model", str(tiny_llama), "--draft-model", str(folder))
    assert code == 1
    (error,) = errors(stderr)
    assert "whose tokenizer differs" in error
    assert str(folder) in error
