"""Finds a checkpoint and looks through its files before anything is loaded, to say in one line what is wrong.

`find` needs neither torch nor transformers, whose imports take seconds: a wrong path is refused before them.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwire.errors import ModelLoadError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "vocab.txt", "merges.txt"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What ``--model`` names."""

    path: Path
    """A folder with config.json, or a GGUF file."""
    name: str
    """The hub id; for a local one the last part of its path, without ``.gguf``."""
    commit: str
    """Commit of a hub id; empty for a local path, which tells none."""


def first_line(error: BaseException) -> str:
    """What an exception says, without the pages that some libraries add."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def find(model: str, revision: str | None, progress: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that ``model`` names, its files looked through; ModelLoadError when they cannot be a model.

    A hub id is downloaded (safetensors and text files only). What only transformers can tell is left to
    `check_architecture`.
    """
    found = _locate(model, revision, progress)
    try:
        if found.path.is_file():
            _check_magic(found.path)
        else:
            check_folder(found.path)
    except OSError as error:
        raise ModelLoadError(f"{found.path}: cannot be read ({first_line(error)})") from error
    return found


def _locate(model: str, revision: str | None, progress: Callable[[str], None]) -> Checkpoint:
    path = Path(model).expanduser()
    if path.exists():
        return Checkpoint(path, path.stem if path.suffix == ".gguf" else path.resolve().name, "")
    if model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.endswith(".gguf"):
        raise ModelLoadError(f"{model}: no such file or folder; give a checkpoint folder, a GGUF file or a hub id")
    progress(f"downloading {model}")
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        folder = Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise ModelLoadError(
            f"{model}: no such folder here, and it cannot be downloaded from the hub ({first_line(error)}); "
            "check the name, the network, and HF_TOKEN for a gated model"
        ) from error
    # The hub's cache names a snapshot's folder by its commit.
    return Checkpoint(folder, model, folder.name)


def _check_magic(file: Path) -> None:
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ModelLoadError(f"{file}: not a GGUF file; give a checkpoint folder, a GGUF file or a hub id")


def check_folder(folder: Path) -> None:
    """Check that ``folder`` holds a readable config.json, whole safetensors files and a tokenizer."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        gguf = sorted(folder.glob("*.gguf"))
        if gguf:
            raise ModelLoadError(f"{folder}: holds GGUF files but no config.json; give the file itself, as {gguf[0]}")
        raise ModelLoadError(f"{folder}: no config.json, so this is not a model folder")
    if not isinstance(read_json(config_file).get("model_type"), str):
        raise ModelLoadError(f"{config_file}: no model_type, so this is not a transformers model")
    _check_weights(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelLoadError(f"{folder}: no tokenizer.json; save the model's tokenizer into this folder")
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from ``file``; ModelLoadError with the place of the mistake when it is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file}: not readable as JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file}: holds no JSON object")
    return value


def weight_sizes(folder: Path) -> dict[str, int]:
    """Number of values of each tensor in the folder's safetensors files."""
    from safetensors import SafetensorError, safe_open

    sizes: dict[str, int] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    size = 1
                    for extent in tensors.get_slice(name).get_shape():
                        size *= extent
                    sizes[name] = size
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"{file}: broken or truncated safetensors file ({first_line(error)}); fetch it again"
            ) from error
    return sizes


def check_architecture(folder: Path, config: dict[str, Any]) -> None:
    """Check that transformers knows the model of ``config``, the folder's config.json, as a causal language model."""
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING_NAMES:
        if config.get("auto_map"):
            raise ModelLoadError(
                f"{folder}: architecture {model_type!r} is Python code inside the checkpoint (auto_map), "
                "which is never run"
            )
        raise ModelLoadError(f"{folder}: this version of transformers does not know the architecture {model_type!r}")
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelLoadError(f"{folder}: {model_type!r} is not a causal language model")


def _check_weights(folder: Path) -> None:
    if not _weight_files(folder):
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
        if pickled:
            raise ModelLoadError(
                f"{folder}: weights are in {pickled[0]}, a pickle that can run code and is never loaded; "
                "convert them to safetensors"
            )
        raise ModelLoadError(f"{folder}: no model.safetensors, nor an index of such files")
    weight_sizes(folder)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelLoadError(f"{index}: has no weight_map")
        files = [folder / str(name) for name in sorted({str(name) for name in weight_map.values()})]
        for file in files:
            if not file.is_file():
                raise ModelLoadError(f"{file}: missing, though {index.name} names it; fetch the rest of the model")
        return files
    single = folder / "model.safetensors"
    return [single] if single.is_file() else []
