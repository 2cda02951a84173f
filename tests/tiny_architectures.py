"""A tiny random model of every causal language model class that transformers knows, made from its configuration class.

``build("qwen3_moe")`` gives two layers (or one of each kind, where layers have kinds) of hidden size 32. The sizes come
from one table of field names, applied to whichever fields the configuration has; a second table has what a family needs
beside that. Whatever limits what a token sees (windows, chunks, numbers of selected keys) is smaller than the prompts
of the tests, so that it acts; with ``wide_limits`` it stays as the class has it, as in a real checkpoint.
"""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 96
CONTEXT_LENGTH = 64
_MOST_PARAMETERS = 1_000_000

_SIZES: dict[str, Any] = {
    # vocabulary and special tokens
    **dict.fromkeys(
        ("vocab_size", "unpadded_vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), VOCAB_SIZE
    ),
    **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), VOCAB_SIZE),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "decoder_start_token_id"), 0),
    "eos_token_id": 1,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
    "begin_suppress_tokens": None,
    "suppress_tokens": None,
    # width
    **dict.fromkeys(
        (
            "hidden_size",
            "n_embd",
            "d_model",
            "embedding_size",
            "input_embedding_size",
            "output_embedding_size",
            "word_embed_proj_dim",
            "lru_width",
            "embedding_dim",
            "emb_dim",
            "pronunciation_embed_dim",
            "shape_embed_dim",
            "attention_hidden_size",
            "backbone_hidden_size",
            "router_hidden_size",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "dim_ff",
            "dff",
            "ffn_dim",
            "ffn_hidden_size",
            "d_inner",
            "dense_intermediate_size",
            "feed_forward_size",
            "block_ffn_dim",
        ),
        64,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "expert_ffn_hidden_size",
            "moe_shared_expert_intermediate_size",
            "intermediate_size_mlp",
        ),
        16,
    ),
    "block_multiple_of": 16,
    # depth
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "decoder_layers",
            "encoder_layers",
            "num_decoder_layers",
            "num_encoder_layers",
            "num_blocks",
            "num_layers_per_stack",
        ),
        2,
    ),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("num_kv_shared_layers", "max_window_layers", "num_nextn_predict_layers"), 0),
    # heads
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_decoder_attention_heads",
            "num_encoder_attention_heads",
            "attention_heads",
            "swa_num_attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(
        (
            "head_dim",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
            "swa_head_dim",
            "kv_channels",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_head_dim",
            "global_head_dim",
            "swa_v_head_dim",
            "dim_head",
            "d_head",
            "index_head_dim",
            "rotary_dim",
            "query_pre_attn_scalar",
        ),
        8,
    ),
    "attention_head_dim": 16,
    "qk_head_dim": 16,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    **dict.fromkeys(("index_n_heads", "linear_num_key_heads", "n_mamba_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    # experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    "moe_num_shared_experts": 1,
    "moe_num_active_primary_experts": 2,
    "zero_expert_num": 2,
    # recurrent parts
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank", "adapter_rank", "laurel_rank", "gated_norm_rank"), 4),
    "mamba_d_ssm": 64,
    # positions
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "context_length"),
        CONTEXT_LENGTH,
    ),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "model_max_length"), CONTEXT_LENGTH),
    "original_max_position_embeddings": CONTEXT_LENGTH,
    # spread of the weights: wide enough that greedy tokens depend on the whole context
    **dict.fromkeys(("initializer_range", "init_std"), 0.15),
    # dropout has no effect in eval mode; what a decoder must be told to be
    "is_decoder": True,
    "use_cache": True,
}

_LIMITS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "sliding_window",
            "sliding_window_size",
            "attention_window_size",
            "window_size",
            "local_attention",
            "keep_window_size",
            "attention_chunk_size",
            "index_topk",
            "rel_extent",
            "token_budget",
        ),
        8,
    ),
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "log_scaling_n_floor": 8,
}
"""What a token sees, in tokens: less than the prompts of the tests have."""

FAMILIES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hrm_text": {"num_hidden_layers": ...},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 16},
    # As in its checkpoint: transformers' cache forgets behind the window, its mask does not. With a smaller window the
    # context is cut to it at start-up (test_runner_window.py).
    "moshi": {"sliding_window": CONTEXT_LENGTH},
    "phimoe": {"sliding_window": None},  # taken and not acted on
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "zamba2": {"n_mamba_heads": 4, "attention_hidden_size": 64},
    "zaya": {"num_experts_per_tok": 1},
}
"""Settings by model type, over those by field name; ``...``: the class computes the field."""


class CannotBuildError(Exception):
    """There is no tiny model of this type; the message says why."""


def model_types() -> dict[str, str]:
    """The first model type of each class that AutoModelForCausalLM knows, with the class, ordered by class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    first: dict[str, str] = {}
    # A type of text alone before the one that wraps it.
    for model_type, name in sorted(
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items(), key=lambda item: not item[0].endswith("_text")
    ):
        names = (name,) if isinstance(name, str) else name
        first.setdefault(names[0], model_type)
    return {model_type: name for name, model_type in sorted(first.items(), key=lambda item: item[0].lower())}


def config(model_type: str, *, wide_limits: bool = False) -> Any:
    """The tiny configuration of ``model_type``."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    base = kind()
    known = base.to_dict()
    if "text_config" in known:
        raise CannotBuildError("takes images or sound beside text: its text part is a class of its own")
    sizes = _SIZES if wide_limits else _SIZES | _LIMITS
    names = {getattr(kind, "attribute_map", {}).get(name, name) for name in known} | set(known)
    settings = {name: value for name, value in sizes.items() if name in names}
    settings |= _layers(known)
    if "kv_lora_rank" in known:
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    settings |= FAMILIES.get(model_type, {})
    return kind(**{name: value for name, value in settings.items() if value is not ...})


def _layers(known: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind, and at least two."""
    lists = {
        name: known[name]
        for name in ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "indexer_types")
        if isinstance(known.get(name), list)
    }
    if not lists:
        return {}
    length = max(len(dict.fromkeys(value)) for value in lists.values())
    depth = max(2, length)
    chosen: dict[str, Any] = {"num_hidden_layers": depth}
    for name, value in lists.items():
        kinds = list(dict.fromkeys(value))
        chosen[name] = [kinds[number % len(kinds)] for number in range(depth)]
    return chosen


def build(model_type: str, *, wide_limits: bool = False, seed: int = 0) -> Any:
    """The tiny model, float32 on the CPU, in eval mode; CannotBuildError where there is none."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = config(model_type, wide_limits=wide_limits)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(settings, dtype=torch.float32).parameters())
    if size > _MOST_PARAMETERS:
        raise CannotBuildError(f"has {size:,} parameters at the smallest settings")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        # Biases that begin as zero and norms that begin as one would hide a mix-up of rows or layers.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or not parameter.any():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def has_limits(model_type: str) -> bool:
    """Whether the class has a limit of what a token sees, which ``wide_limits`` would widen."""
    return config(model_type).to_dict() != config(model_type, wide_limits=True).to_dict()
