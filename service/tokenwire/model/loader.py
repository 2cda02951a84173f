"""Loads a checkpoint: a folder with safetensors, a GGUF file, or a hub id. No remote code, no pickle.

Local checkpoints make no outgoing connection. Whatever goes wrong is a ModelLoadError with one line for the operator.
"""

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.errors import ModelLoadError, TokenwireError
from tokenwire.model import gguf
from tokenwire.model.checkpoint import (
    Checkpoint,
    check_architecture,
    check_folder,
    find,
    first_line,
    read_json,
    weight_sizes,
)
from tokenwire.model.memory import format_size, free_memory, is_out_of_memory
from tokenwire.model.quantization import BYTES_PER_VALUE, bitsandbytes_config, describe, parameter_count

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_UNBOUNDED_CONTEXT = 2048
"""Context of a model whose configuration names no limit (ALiBi, recurrent), when the operator names none either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in eval mode, and everything about it that the service tells or needs."""

    path: str
    """What was loaded, for messages."""
    model: PreTrainedModel
    config: Any
    """The model's transformers configuration."""
    model_id: str
    revision: str
    """Commit, empty where none is known."""
    architecture: str
    quantization: str
    """none, nf4, fp4, int8, or the method of a checkpoint that came quantized."""
    dtype: str
    """Of unquantized weights: float32, bfloat16 or float16."""
    device_map: dict[str, str]
    parameter_count: int
    context_length: int
    vocab_size: int
    """Columns of the logits."""
    special_tokens: dict[str, str]
    """Variables of the chat template: bos_token, eos_token, pad_token, unk_token."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Ids that end generation, as transformers' generate takes them from the generation config."""
    pad_token_id: int | None
    tokenizer_json: str
    """tokenizer.json as transformers uses it, post-processor included."""
    chat_templates: dict[str, str]
    """By name; an only one is called default."""
    generation_config: dict[str, Any]
    """What the checkpoint's generation_config.json sets."""


def load(
    config: ModelConfig,
    engine: EngineConfig,
    *,
    progress: Callable[[str], None],
    checkpoint: Checkpoint | None = None,
) -> LoadedModel:
    """Load what ``config`` names; ModelLoadError on any failure. ``progress`` gets a line as each phase begins.

    ``checkpoint``: what `checkpoint.find` gave for ``config``; default: it is looked for here.
    """
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    checkpoint = checkpoint or find(config.model, config.revision, progress)
    path = checkpoint.path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            folder = path
            if path.is_file():
                folder = gguf.converted(path, progress)
                check_folder(folder)
            return _load_folder(checkpoint, folder, config, engine, progress)
        except TokenwireError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise ModelLoadError(f"{path}: out of memory while loading ({first_line(error)})") from error
            raise ModelLoadError(f"{path}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error


def _load_folder(
    checkpoint: Checkpoint, folder: Path, config: ModelConfig, engine: EngineConfig, progress: Callable[[str], None]
) -> LoadedModel:
    path = checkpoint.path
    settings = read_json(folder / "config.json")
    check_architecture(folder, settings)
    device = _choose_device(config)
    dtype = _choose_dtype(config, settings, device, from_gguf=path != folder)
    if "quantization_config" in settings and config.quantize != "none":
        raise ModelLoadError(f"{path}: is quantized already; leave quantize at none")
    quantization_config = bitsandbytes_config(config, dtype)
    device_map = _parse_device_map(config, device)
    if config.device_map is None and "quantization_config" not in settings:
        _check_fits(path, folder, config, dtype, device)
    tokenizer = _load_tokenizer(path, folder)
    quantizing = "" if quantization_config is None else f" and quantizing to {config.quantize}"
    progress(f"loading{quantizing} {checkpoint.name} on {config.device_map or device}")
    result: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map=device_map,
        quantization_config=quantization_config,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model: PreTrainedModel = result[0]
    missing = sorted(result[1]["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"{path}: the checkpoint lacks {len(missing)} weights of its architecture, as {missing[0]}"
        )
    model.eval()  # type: ignore[no-untyped-call]
    context_length = _context_length(path, model.config.get_text_config(), engine, progress)
    return _describe(checkpoint, folder, config, context_length, model, tokenizer, device)


def _describe(
    checkpoint: Checkpoint,
    folder: Path,
    config: ModelConfig,
    context_length: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
) -> LoadedModel:
    generation = model.generation_config
    eos = generation.eos_token_id
    placed = getattr(model, "hf_device_map", None) or {"": device}
    return LoadedModel(
        path=str(checkpoint.path),
        model=model,
        config=model.config,
        model_id=config.model_id or checkpoint.name,
        revision=checkpoint.commit,
        architecture=type(model).__name__,
        quantization=describe(model),
        dtype=str(model.dtype).removeprefix("torch."),
        device_map={name: _device_name(place) for name, place in placed.items()},
        parameter_count=parameter_count(model),
        context_length=context_length,
        vocab_size=_vocab_size(model),
        special_tokens={
            name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)
        },
        bos_token_id=_first_not_none(generation.bos_token_id, tokenizer.bos_token_id),
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
        pad_token_id=_first_not_none(generation.pad_token_id, tokenizer.pad_token_id),
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        chat_templates=_templates(tokenizer.chat_template),
        generation_config=_generation_settings(folder, model),
    )


def _choose_device(config: ModelConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(f"device {config.device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _choose_dtype(
    config: ModelConfig, settings: dict[str, Any], device: torch.device, *, from_gguf: bool
) -> torch.dtype:
    if config.dtype != "auto":
        chosen: torch.dtype = getattr(torch, config.dtype)
        return chosen
    if device.type == "cpu" and config.device_map is None:
        return torch.float32
    # A converted GGUF file is float32 for exactness only: its weights had 4 to 16 bits.
    stored = "bfloat16" if from_gguf else settings.get("dtype") or settings.get("torch_dtype")
    found = getattr(torch, str(stored), None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _parse_device_map(config: ModelConfig, device: torch.device) -> Any:
    text = config.device_map
    if text is None:
        return {"": device}
    if text in ("auto", "balanced", "balanced_low_0", "sequential"):
        return text
    try:
        placed = json.loads(text)
    except ValueError:
        placed = None
    if not isinstance(placed, dict) or not placed:
        raise ModelLoadError(f"device_map {text!r} is none of auto, balanced, sequential or a JSON object")
    return placed


def _check_fits(path: Path, folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
    values = sum(weight_sizes(folder).values())
    needed = int(values * BYTES_PER_VALUE.get(config.quantize, dtype.itemsize))
    free = free_memory(device)
    if needed > free:
        weights = config.quantize if config.quantize != "none" else str(dtype).removeprefix("torch.")
        raise ModelLoadError(
            f"{path}: {values:,} weights as {weights} take at least {format_size(needed)}, but {device} has "
            f"{format_size(free)} free; choose a smaller model, dtype or quantization"
        )


def _load_tokenizer(path: Path, folder: Path) -> PreTrainedTokenizerFast:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelLoadError(f"{path}: its tokenizer cannot be loaded ({first_line(error)})") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelLoadError(f"{path}: its tokenizer has no tokenizer.json form; convert it to a fast tokenizer")
    return tokenizer  # type: ignore[no-any-return]


def _context_length(path: Path, config: Any, engine: EngineConfig, progress: Callable[[str], None]) -> int:
    trained = next((getattr(config, name) for name in _CONTEXT_NAMES if getattr(config, name, None)), None)
    asked = engine.max_context
    if trained is None:
        return asked or _UNBOUNDED_CONTEXT
    if asked is not None and asked > trained:
        raise ModelLoadError(f"{path}: max_context is {asked}, but the model was trained for {trained} positions")
    fixed = _fixed_rope_length(config)
    if fixed is None or (asked or trained) <= fixed:
        return int(asked or trained)
    why = f"beyond {fixed} its rotary embedding would change for every sequence of a batch"
    if asked is not None:
        raise ModelLoadError(f"{path}: max_context is {asked}, but it can be at most {fixed}: {why}")
    progress(f"context lowered from {trained} to {fixed} tokens: {why}")
    return fixed


def _fixed_rope_length(config: Any) -> int | None:
    """Positions up to which the rotary frequencies do not depend on the length of a sequence; None: they never do.

    transformers (`modeling_rope_utils.dynamic_rope_update`) chooses the frequencies of the types ``dynamic`` and
    ``longrope`` by the largest position in the whole batch, so one long sequence would change its batch mates.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    # One set for all layers, or one for each type of layer.
    sets = [entry for entry in parameters.values() if isinstance(entry, dict)] or [parameters]
    lengths = []
    for entry in sets:
        rope_type = str(entry.get("rope_type", "default"))
        if rope_type == "longrope":
            lengths.append(int(entry["original_max_position_embeddings"]))
        elif "dynamic" in rope_type:
            lengths.append(int(config.max_position_embeddings))
    return min(lengths, default=None)


def _vocab_size(model: PreTrainedModel) -> int:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    size = getattr(head, "out_features", None)
    return int(size if size is not None else model.config.get_text_config().vocab_size)


def _device_name(place: Any) -> str:
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def _first_not_none(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _templates(found: Any) -> dict[str, str]:
    """A tokenizer's ``chat_template``: a text, several by name, or none."""
    if isinstance(found, str):
        return {"default": found}
    return {name: text for name, text in (found or {}).items() if isinstance(text, str)}


def _generation_settings(folder: Path, model: PreTrainedModel) -> dict[str, Any]:
    file = folder / "generation_config.json"
    settings = read_json(file) if file.is_file() else model.generation_config.to_diff_dict()
    return {
        name: value
        for name, value in settings.items()
        if value is not None and name != "transformers_version" and not re.match("_", name)
    }
