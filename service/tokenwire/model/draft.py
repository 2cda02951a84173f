"""The draft model: a small model with the served model's tokenizer, whose tokens the served one verifies.

It runs on the paged path beside the served model, with a KV cache of its own for as many tokens.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.errors import ModelLoadError
from tokenwire.model.gate import GateError, open_paged_path
from tokenwire.model.kernels import Kernels
from tokenwire.model.kv_cache import KVCache, LayerShape
from tokenwire.model.layers import prepare_layers_inplace
from tokenwire.model.loader import LoadedModel, load
from tokenwire.model.memory import is_out_of_memory
from tokenwire.model.padded import PaddedRunner
from tokenwire.model.paged import PagedRunner


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A draft model whose attention goes through the hook."""

    loaded: LoadedModel
    shapes: list[LayerShape]
    """What its layers cache per token, for the size of both KV caches."""


def load_draft(
    config: ModelConfig,
    engine: EngineConfig,
    target: LoadedModel,
    progress: Callable[[str], None],
    *,
    kernels: Kernels | None = None,
) -> LoadedDraft | None:
    """Load ``config.draft_model`` with the device, dtype and quantization of the served model ``target``.

    None where none is configured. ModelLoadError where it cannot be loaded, has another tokenizer, or cannot run on the
    paged path. ``kernels`` as for `runner.make_runner`.
    """
    if config.draft_model is None:
        return None
    own = replace(config, model=config.draft_model, model_id=None, revision=None, draft_model=None)
    # The context is the served model's to bound: sequences longer than the draft model's own get no drafts.
    loaded = load(own, replace(engine, max_context=None), progress=progress)
    _check_same_vocabulary(loaded, target)
    prepare_layers_inplace(loaded, engine, progress, kernels)
    progress("checking the draft model")
    try:
        shapes = open_paged_path(loaded.model, loaded.vocab_size, quantization=loaded.quantization)
    except GateError as error:
        raise ModelLoadError(f"{loaded.path}: cannot be a draft model, which runs on the paged path: {error}") from None
    return LoadedDraft(loaded, shapes)


def make_draft_runner(draft: LoadedDraft, target: PagedRunner | PaddedRunner) -> PagedRunner:
    """The draft model's runner, whose cache has as many blocks as that of ``target``. Raises ModelLoadError."""
    loaded = draft.loaded
    if not target.supports_drafts:
        raise ModelLoadError(
            f"{loaded.path}: no use as a draft model: the served model runs on the {target.forward_path} path "
            f"({target.forward_path_reason}), which takes no drafts"
        )
    try:
        cache = KVCache(draft.shapes, target.num_blocks, target.block_size)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ModelLoadError(
            f"{loaded.path}: out of memory while the draft model's KV cache was set up; lower kv_cache_memory"
        ) from error
    return PagedRunner(
        loaded.model,
        cache,
        vocab_size=loaded.vocab_size,
        context_length=min(loaded.context_length, target.context_length),
    )


def _check_same_vocabulary(draft: LoadedModel, target: LoadedModel) -> None:
    """Raise ModelLoadError unless every id stands for the same token in both tokenizers."""
    if draft.tokenizer_json == target.tokenizer_json:
        return
    pairs = zip_longest(_tokens_by_id(draft.tokenizer_json), _tokens_by_id(target.tokenizer_json))
    for token_id, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            raise ModelLoadError(
                f"{draft.path}: cannot be the draft model of {target.path}, whose tokenizer differs: token {token_id} "
                f"is {_shown(theirs)} there and {_shown(ours)} here"
            )


def _tokens_by_id(tokenizer_json: str) -> list[str | None]:
    from tokenizers import Tokenizer

    vocabulary: dict[str, int] = Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True)
    tokens: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        tokens[token_id] = token
    return tokens


def _shown(token: Any) -> str:
    return "none" if token is None else json.dumps(token)
