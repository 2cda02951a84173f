"""Models beyond the shared tiny families: recurrent and hybrid state, attention sinks, biases instead of positions."""

from typing import Any

import pytest

from tests.parity.runner_loop import Sequence, drive, generate, prompts
from tests.tiny_models import CONTEXT_LENGTH, MODEL_VOCAB_SIZE

_IDS = {"vocab_size": MODEL_VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
_WIDE = {**_IDS, "initializer_range": 0.25}
_DECODER = {
    **_WIDE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
}
_EXPERTS = {"num_experts_per_tok": 2}

CASES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    # name: config class, settings, forward path, whether a prompt may be computed in chunks
    "mamba": (
        "MambaConfig",
        {**_WIDE, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 8, "time_step_rank": 4},
        "padded",
        False,
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_DECODER,
            **_EXPERTS,
            "head_dim": 32,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        "padded",
        False,
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            **_WIDE,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": CONTEXT_LENGTH,
        },
        "padded",
        True,
    ),
    "mpt": (
        "MptConfig",
        {**_WIDE, "d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": CONTEXT_LENGTH},
        "padded",
        True,
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            **_DECODER,
            **_EXPERTS,
            "head_dim": 16,
            "num_local_experts": 4,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "paged",
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str) -> None:
    import torch
    import transformers

    from tokenwire.config import EngineConfig
    from tokenwire.model.loader import LoadedModel
    from tokenwire.model.runner import make_runner

    config_class, settings, path, chunked = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    texts = prompts([1, 5, 20])
    expected = [generate(model, prompt, 8) for prompt in texts]
    loaded = LoadedModel(
        path=name,
        model=model,
        config=config,
        model_id=name,
        revision="",
        architecture=type(model).__name__,
        quantization="none",
        dtype="float32",
        device_map={"": "cpu"},
        parameter_count=0,
        context_length=CONTEXT_LENGTH,
        vocab_size=MODEL_VOCAB_SIZE,
        special_tokens={},
        bos_token_id=0,
        eos_token_ids=(2,),
        pad_token_id=3,
        tokenizer_json="",
        chat_templates={},
        generation_config={},
    )
    runner = make_runner(loaded, EngineConfig(block_size=4, threads=1, kv_cache_memory="16MiB"), lambda _: None)
    assert (runner.forward_path, runner.supports_chunked_prefill) == (path, chunked)
    sequences = [Sequence(number, prompt, 8, starts_at_step=number) for number, prompt in enumerate(texts)]
    drive(runner, sequences, chunk=3 if chunked else None)
    assert [sequence.tokens for sequence in sequences] == expected
