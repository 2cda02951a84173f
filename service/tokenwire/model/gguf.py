"""GGUF files: dequantized by transformers once into a safetensors folder in a cache, and loaded from there.

That makes the next start fast, and bitsandbytes quantization possible. The cache is ``$TOKENWIRE_CACHE``, or
``tokenwire`` under ``$XDG_CACHE_HOME`` (default ``~/.cache``).
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tokenwire.errors import ModelLoadError
from tokenwire.model.checkpoint import first_line
from tokenwire.model.memory import format_size

_FORMAT = "1"
"""Part of every key: a change of how files are converted changes it."""


def cache_folder() -> Path:
    """Where converted checkpoints are kept."""
    own = os.environ.get("TOKENWIRE_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "tokenwire"


def converted(file: Path, progress: Callable[[str], None]) -> Path:
    """The safetensors folder with the content of ``file``, converted now if it is not in the cache.

    A file is known again by path, size and modification time without being read; a moved or touched one by its sha256.
    Folders appear complete or not at all.
    """
    _check_magic(file)
    root = cache_folder() / "gguf"
    status = file.stat()
    stamp = hashlib.sha256(f"{_FORMAT}:{file.resolve()}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()
    known = root / "seen" / stamp
    try:
        folder = root / known.read_text().strip()
        if (folder / "config.json").is_file():
            return folder
    except OSError:
        pass
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    name = f"{file.stem}-{_FORMAT}-{digest[:32]}"
    folder = root / name
    try:
        if not (folder / "config.json").is_file():
            progress(f"converting {file.name} to safetensors, once, into {root}")
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".converting-", dir=root) as work:
                target = Path(work) / "model"
                _convert(file, target)
                _publish(target, folder)
        known.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=known.parent, delete=False) as note:
            note.write(name)
        Path(note.name).replace(known)
    except OSError as error:
        raise ModelLoadError(
            f"{file}: cannot write the converted checkpoint under {root} ({first_line(error)}); "
            "set TOKENWIRE_CACHE to a folder with room"
        ) from error
    return folder


def _check_magic(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelLoadError(f"{file}: cannot be read ({first_line(error)})") from error
    if magic != b"GGUF":
        raise ModelLoadError(f"{file}: not a GGUF file; give a checkpoint folder, a GGUF file or a hub id")


def _convert(file: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Dequantized values fill float32: as float32 they are exact.
    needed = 4 * _count_values(file)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ModelLoadError(
            f"{file}: converted it takes {format_size(needed)}, {format_size(free)} are free under {cache_folder()}; "
            "set TOKENWIRE_CACHE to a folder with room"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:
        raise ModelLoadError(f"{file}: transformers cannot read this GGUF file ({first_line(error)})") from error
    # Left by the reader; with them the folder would count as a GGUF-quantized model, which cannot be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _count_values(file: Path) -> int:
    from gguf import GGUFReader

    try:
        return sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    except Exception as error:
        raise ModelLoadError(f"{file}: broken or truncated GGUF file ({first_line(error)}); fetch it again") from error


def _publish(source: Path, folder: Path) -> None:
    try:
        source.replace(folder)
    except OSError:
        # Another process converted the same file meanwhile: its folder has the same content.
        if not (folder / "config.json").is_file():
            raise
