"""A GGUF file is converted once, is found again, and gives the weights and the tokenizer that it holds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_models
from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.errors import ModelLoadError


def write_gguf(file: Path) -> Any:
    """The tiny Llama as a float32 GGUF file, as llama.cpp's converter lays it out; returns the model."""
    from gguf import GGUFWriter

    model, tokenizer = tiny_models.build_model("llama"), tiny_models.build_tokenizer()
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    pieces = [tokenizer.convert_ids_to_tokens(number) for number in range(tiny_models.TOKENIZER_VOCAB_SIZE)]
    pieces += [f"[unused{number}]" for number in range(config.vocab_size - len(pieces))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if number < 4 else 1 for number in range(len(pieces))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tiny_models.BOS_ID)
    writer.add_eos_token_id(tiny_models.EOS_ID)
    writer.add_pad_token_id(tiny_models.PAD_ID)
    writer.add_chat_template(tiny_models.CHAT_TEMPLATE)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for number in range(config.num_hidden_layers):
        names |= {f"model.layers.{number}.{ours}": f"blk.{number}.{theirs}" for ours, theirs in parts.items()}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                # llama.cpp rotates neighbouring pairs, transformers the two halves of a head.
                values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names[name.removesuffix(".weight")] + ".weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def load(file: Path, phases: list[str], **settings: Any) -> Any:
    from tokenwire.model.loader import load

    return load(ModelConfig(model=str(file), device="cpu", **settings), EngineConfig(), progress=phases.append)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENWIRE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_convert_once_and_find_again(
    tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    file = tmp_path / "tiny.F32.gguf"
    model = write_gguf(file)
    phases: list[str] = []
    loaded = load(file, phases)
    assert [phase.split()[0] for phase in phases] == ["converting", "loading"]
    assert (loaded.model_id, loaded.quantization, loaded.vocab_size) == ("tiny.F32", "none", 512)
    assert (loaded.eos_token_ids, loaded.context_length) == ((tiny_models.EOS_ID,), tiny_models.CONTEXT_LENGTH)
    assert loaded.chat_templates == {"default": tiny_models.CHAT_TEMPLATE}
    ids = torch.tensor([[9, 80, 300, 41]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr("tokenwire.model.gguf._convert", refuse)
    assert load(file, phases, quantize="nf4").quantization == "nf4"
    moved = tmp_path / "moved" / file.name
    moved.parent.mkdir()
    shutil.copy(file, moved)
    load(moved, phases)
    assert not [path for path in (cache / "gguf").iterdir() if path.name.startswith(".")]


def test_changed_file_is_converted_again(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    load(file, [])
    content = bytearray(file.read_bytes())
    content[-4:] = np.float32(0.5).tobytes()
    file.write_bytes(content)
    phases: list[str] = []
    load(file, phases)
    assert phases[0].startswith("converting")


@pytest.mark.usefixtures("cache")
def test_broken_files(tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        load(text, [])
    whole, cut = tmp_path / "whole.gguf", tmp_path / "cut.gguf"
    write_gguf(whole)
    cut.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ModelLoadError, match="broken or truncated GGUF file") as caught:
        load(cut, [])
    assert str(cut) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_with_gguf_only(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match=r"give the file itself, as .*a\.gguf"):
        load(tmp_path, [])


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "blocker").write_text("a file where a folder should be")
    monkeypatch.setenv("TOKENWIRE_CACHE", str(tmp_path / "blocker"))
    with pytest.raises(ModelLoadError, match="set TOKENWIRE_CACHE"):
        load(tmp_path / "tiny.gguf", [])
