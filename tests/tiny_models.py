"""Tiny random-weight checkpoints of real architectures, with a tiny trained tokenizer, for tests without a network.

``save(folder, "llama")`` writes what ``from_pretrained`` reads: config.json, model.safetensors, tokenizer.json,
tokenizer_config.json with a chat template, generation_config.json. The same seed gives the same weights. torch and
transformers are imported when a function is called, so importing this module is cheap.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PAGED_FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "gpt2", "mixtral")
"""Architectures that run on the paged attention hook."""

PADDED_FAMILIES = ("bloom", "falcon")
"""Architectures that accept an attention function and never call it: the padded path."""

CONTEXT_LENGTH = 256
"""Positions of every tiny model."""

MODEL_VOCAB_SIZE = 512
"""Columns of the logits: more than the tokenizer knows, as in many real checkpoints."""

TOKENIZER_VOCAB_SIZE = 500

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
BOS_ID, IM_START_ID, EOS_ID, PAD_ID = range(4)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('A system message must be the first.') }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_TRAINING_TEXT = (
    "The quick brown fox jumps over the lazy dog, and then the dog chases the fox through the forest.",
    "A service that streams tokens has to stop at the right place: not before the stop string, not after it.",
    "What is the capital of France? The capital of France is Paris. It lies on the river Seine.",
    "Stop, stopped, stopping, opera, operator, topper, the last step of the stepper at the top.",
    "system user assistant tool You are a helpful assistant. Hello, how are you today? I am fine, thank you!",
    "def step(self):\n    return [row for row in self.rows if not row.finished]\n",
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}',
    "Zwölf große Boxkämpfer jagen Viktor quer über den Sylter Deich. Où est la bibliothèque ? ¿Dónde está?",
    "数字 1 2 3 4 5 6 7 8 9 10 100 1000 2024; 日本語の文章もあります。 Emoji: 🙂 🚀 👩‍👩‍👧",
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 500 tokens with ChatML markers and a chat template that refuses a late system message."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[BOS_ID],
        eos_token=SPECIAL_TOKENS[EOS_ID],
        pad_token=SPECIAL_TOKENS[PAD_ID],
        additional_special_tokens=[SPECIAL_TOKENS[IM_START_ID]],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _config(family: str) -> Any:
    import transformers

    ids = {
        "vocab_size": MODEL_VOCAB_SIZE,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        # Wide enough that greedy tokens have no near ties and depend on the whole context.
        "initializer_range": 0.25,
    }
    decoder = {
        **ids,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH,
    }
    match family:
        case "llama":
            return transformers.LlamaConfig(**decoder)
        case "qwen3":
            return transformers.Qwen3Config(**decoder, head_dim=32)
        case "gemma2":
            # Logits of scale 1 would never reach the softcap of 50: a small one makes a missing softcap visible.
            return transformers.Gemma2Config(
                **decoder,
                tie_word_embeddings=False,  # tied and scaled by sqrt(hidden), the last token would repeat for ever
                head_dim=32,
                query_pre_attn_scalar=16,
                sliding_window=8,
                attn_logit_softcapping=2.0,
                final_logit_softcapping=30.0,
            )
        case "gemma3":
            return transformers.Gemma3TextConfig(
                **decoder,
                tie_word_embeddings=False,  # tied and scaled by sqrt(hidden), the last token would repeat for ever
                head_dim=32,
                query_pre_attn_scalar=16,
                sliding_window=8,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            )
        case "mixtral":
            return transformers.MixtralConfig(**decoder, num_local_experts=4, num_experts_per_tok=2)
        case "gpt2":
            return transformers.GPT2Config(**ids, n_embd=64, n_layer=3, n_head=4, n_positions=CONTEXT_LENGTH)
        case "bloom":
            return transformers.BloomConfig(**ids, hidden_size=64, n_layer=3, n_head=4, seq_length=CONTEXT_LENGTH)
        case "falcon":
            return transformers.FalconConfig(
                **ids,
                hidden_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT_LENGTH,
            )
        case _:
            raise ValueError(f"no tiny model of family {family!r}")


def build_model(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A random model of 3 layers and hidden size 64, float32 on the CPU, in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(family), dtype=torch.float32)
        # Zero-initialised biases and one-initialised norms would hide a mix-up of rows or layers.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    generation_config: dict[str, Any] | None = None,
    chat_template: bool = True,
) -> Path:
    """Write a complete checkpoint folder and return it. ``generation_config``: further entries of that file."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = build_model(family, seed=seed)
    for name, value in (generation_config or {}).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    tokenizer = build_tokenizer()
    if not chat_template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return folder
