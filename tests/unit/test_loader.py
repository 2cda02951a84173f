"""What a checkpoint folder becomes, and what is said of one that cannot be loaded."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.errors import ModelLoadError


def load(model: Path | str, *, engine: dict[str, Any] | None = None, **settings: Any) -> Any:
    from tokenwire.model.loader import load

    config = ModelConfig(**{"model": str(model), "device": "cpu"} | settings)
    return load(config, EngineConfig(**(engine or {})), progress=lambda _: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    return tiny_models.save(folder, "llama", generation_config={"repetition_penalty": 1.1})


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(good, tmp_path / "copy"))


def test_description(good: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a local checkpoint made an outgoing connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = load(good)
    assert (loaded.model_id, loaded.architecture, loaded.quantization) == ("tiny-llama", "LlamaForCausalLM", "none")
    assert (loaded.dtype, loaded.device_map) == ("float32", {"": "cpu"})
    assert (loaded.vocab_size, loaded.context_length) == (tiny_models.MODEL_VOCAB_SIZE, tiny_models.CONTEXT_LENGTH)
    assert loaded.eos_token_ids == (tiny_models.EOS_ID,)
    assert (loaded.bos_token_id, loaded.pad_token_id) == (tiny_models.BOS_ID, tiny_models.PAD_ID)
    assert loaded.special_tokens["eos_token"] == "<|im_end|>"
    assert loaded.special_tokens["bos_token"] == "<|endoftext|>"
    assert loaded.chat_templates == {"default": tiny_models.CHAT_TEMPLATE}
    assert loaded.generation_config["repetition_penalty"] == 1.1
    assert loaded.generation_config["eos_token_id"] == tiny_models.EOS_ID
    assert not loaded.model.training
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_tokenizer_is_the_one_transformers_uses(good: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.from_str(load(good).tokenizer_json), AutoTokenizer.from_pretrained(good)
    for text in ("Hello, how are you?", " leading space", "<|im_start|>user\nhi<|im_end|>", "数字 🙂"):
        assert ours.encode(text).ids == theirs(text).input_ids


def test_settings_override(good: Path) -> None:
    loaded = load(good, model_id="mine", dtype="bfloat16", engine={"max_context": 100})
    assert (loaded.model_id, loaded.dtype, loaded.context_length) == ("mine", "bfloat16", 100)


def test_several_eos_ids(copy: Path) -> None:
    edit_json(copy / "generation_config.json", eos_token_id=[2, 0])
    assert load(copy).eos_token_ids == (2, 0)


def test_no_chat_template(tmp_path: Path) -> None:
    assert load(tiny_models.save(tmp_path / "raw", chat_template=False)).chat_templates == {}


@pytest.mark.parametrize("as_files", [True, False])
def test_several_chat_templates(copy: Path, as_files: bool) -> None:
    """In both forms in which transformers saves them."""
    tokenizer = tiny_models.build_tokenizer()
    templates = {"default": "a", "tool_use": "b\n", "rag": "{# é #}"}
    tokenizer.chat_template = templates
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(copy, save_jinja_files=as_files)
    assert (copy / "additional_chat_templates" / "rag.jinja").is_file() == as_files
    assert load(copy).chat_templates == templates


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def drop_tensor(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json, so this is not a model folder"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "unknown architecture": (
        lambda f: edit_json(f / "config.json", model_type="llama99"),
        "does not know the architecture 'llama99'",
    ),
    "remote code": (
        lambda f: edit_json(f / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"}),
        "Python code inside the checkpoint (auto_map)",
    ),
    "not a causal model": (
        lambda f: edit_json(f / "config.json", model_type="t5"),
        "'t5' is not a causal language model",
    ),
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), "broken or truncated safetensors file"),
    "weights are text": (lambda f: (f / "model.safetensors").write_text("no weights"), "broken or truncated"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors: missing"),
    "pickle": (to_pickle, "pytorch_model.bin, a pickle"),
    "missing tensor": (drop_tensor, "lacks 1 weights of its architecture, as model.layers.1.mlp.up_proj.weight"),
    "wrong shape": (lambda f: edit_json(f / "config.json", intermediate_size=96), "cannot be loaded"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"a": 1}'), "tokenizer cannot be loaded"),
    "tokenizer is no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "not readable as JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoint(name: str, copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, expected = BROKEN[name]
    damage(copy)
    with pytest.raises(ModelLoadError) as caught:
        load(copy)
    message = str(caught.value)
    assert expected in message
    assert str(copy) in message
    assert "\n" not in message
    assert capfd.readouterr().err == ""


LOOKED_THROUGH = [
    "no config",
    "config is no JSON",
    "truncated weights",
    "no weights",
    "missing shard",
    "pickle",
    "no tokenizer",
    "tokenizer is no JSON",
]


def test_files_are_looked_through_before_heavy_imports(copy: Path, tmp_path: Path) -> None:
    """The engine process refuses these within a second, not after the seconds that torch takes to import."""
    folders = []
    for name in LOOKED_THROUGH:
        folders.append(Path(shutil.copytree(copy, tmp_path / name)))
        BROKEN[name][0](folders[-1])
    (tmp_path / "text.gguf").write_text("no model")
    program = (
        "import sys\n"
        "from tokenwire.config import EngineConfig, ModelConfig\n"
        "from tokenwire.engine.build import build\n"
        "from tokenwire.engine.protocol import Start\n"
        "from tokenwire.errors import ModelLoadError\n"
        "for model in sys.argv[1:]:\n"
        "    try:\n"
        "        build(Start(ModelConfig(model=model), EngineConfig()), lambda phase: None)\n"
        "    except ModelLoadError as error:\n"
        "        print(error)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    models = [*map(str, folders), str(tmp_path / "text.gguf"), str(tmp_path / "nowhere")]
    done = subprocess.run(
        [sys.executable, "-c", program, *models], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    expected = [BROKEN[name][1] for name in LOOKED_THROUGH] + ["not a GGUF file", "no such file or folder"]
    for line, said, model in zip(done.stdout.splitlines(), expected, models, strict=True):
        assert said in line
        assert model in line


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere.gguf", "a/b/c"])
def test_missing_path(name: str) -> None:
    with pytest.raises(ModelLoadError, match="no such file or folder"):
        load(name)


def test_hub_id(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests name the id; the revision is the commit, whatever name the operator gave it."""
    asked: list[tuple[str, str | None]] = []
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(good, tmp_path / "models--someone--something" / "snapshots" / commit)

    def download(model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load("someone/something", revision="main")
    assert asked == [("someone/something", "main")]
    assert (loaded.model_id, loaded.revision) == ("someone/something", commit)
    assert load("someone/something", model_id="mine").model_id == "mine"


def test_local_folder_tells_no_commit(good: Path) -> None:
    assert load(good, revision="main").revision == ""


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="cannot be downloaded from the hub") as caught:
        load("someone/something")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "engine", "expected"),
    [
        ({"device": "cuda:7"}, {}, "CUDA devices"),
        ({"device_map": "everywhere"}, {}, "none of auto, balanced, sequential"),
        ({"device_map": "{}"}, {}, "none of auto, balanced, sequential"),
        ({}, {"max_context": 257}, "trained for 256 positions"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], engine: dict[str, Any], expected: str, good: Path) -> None:
    with pytest.raises(ModelLoadError, match=expected):
        load(good, engine=engine, **settings)


def test_model_larger_than_memory(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire.model.loader.free_memory", lambda _: 300 * 1024)
    with pytest.raises(ModelLoadError, match=r"take at least \d+ KiB, but cpu has 300 KiB free"):
        load(good)
    assert load(good, quantize="nf4").quantization == "nf4"


def test_device_map_as_json(good: Path) -> None:
    assert load(good, device_map='{"": "cpu"}').device_map == {"": "cpu"}


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({"kv_cache_memory": "1KiB"}, "kv_cache_memory is 1 KiB, but one block of 16 tokens takes"),
        ({"kv_cache_fraction": 1e-9}, "of the free memory"),
        ({"kv_cache_memory": "900TiB", "max_running": 10**9}, "are free"),
    ],
)
def test_cache_that_does_not_fit(engine: dict[str, Any], expected: str, good: Path) -> None:
    from tokenwire.model.runner import make_runner

    with pytest.raises(ModelLoadError, match=expected):
        make_runner(load(good), EngineConfig(threads=1, **engine), lambda _: None)


def test_cache_size(good: Path) -> None:
    """Never more than max_running contexts can use; a small one lowers the context to what it holds."""
    from tokenwire.model.runner import make_runner

    notes: list[str] = []
    roomy = make_runner(load(good), EngineConfig(threads=1, max_running=3), notes.append)
    assert (roomy.num_blocks, roomy.block_size, roomy.context_length) == (3 * 256 // 16, 16, 256)
    assert not any("lowered" in note for note in notes)
    # 3 layers x 2 heads x 16 dimensions x keys and values x 4 bytes = 768 bytes per token.
    engine = EngineConfig(threads=1, kv_cache_memory=str(768 * 16 * 5 + 100))
    small = make_runner(load(good), engine, notes.append)
    assert (small.num_blocks, small.context_length) == (5, 80)
    assert any("context lowered from 256 to 80 tokens" in note for note in notes)


def test_cores_where_there_is_no_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    from tokenwire.model.memory import usable_cores

    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert usable_cores() == 1


def test_control_group_limits(tmp_path: Path) -> None:
    from tokenwire.model.memory import _cgroup_headrooms

    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert _cgroup_headrooms(tmp_path) == [400000]
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_headrooms(tmp_path) == []
