"""The gate opens for what the hook computes right, and stays closed, with a reason, for everything else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.runner_loop import Sequence, drive, generate, load_runner, prompts
from tests.tiny_models import MODEL_VOCAB_SIZE, build_model


def gate_reason(model: Any) -> str:
    from tokenwire.model.gate import GateError, open_paged_path

    with pytest.raises(GateError) as caught:
        open_paged_path(model, MODEL_VOCAB_SIZE, quantization="none")
    return str(caught.value)


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_class_without_attention_backends(family: str) -> None:
    assert "does not support attention backends" in gate_reason(build_model(family))


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_class_that_only_claims_support(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap: it takes the implementation and never calls it."""
    model = build_model(family)
    monkeypatch.setattr(type(model), "_supports_attention_backend", True)
    reason = gate_reason(model)
    assert "called for layers [] of 3" in reason or "raised" in reason


def test_other_layer_types() -> None:
    model = build_model("qwen3")
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert "linear_attention" in gate_reason(model)


def test_window_that_the_model_does_not_pass() -> None:
    model = build_model("gemma3")
    model.model.layers[0].self_attn.sliding_window = None
    assert "layer 0 attends with window None, its configuration says 8" in gate_reason(model)


def test_layer_called_twice() -> None:
    model = build_model("llama")
    model.model.layers[1].self_attn.layer_idx = 0
    assert "called for layers [0, 0, 2] of 3" in gate_reason(model)


@pytest.fixture
def broken_hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hook with one mistake in it."""
    from tokenwire.model import attention, step

    if request.param == "scaling":
        original = attention.paged_attention
        monkeypatch.setattr(attention, "paged_attention", lambda *a, **k: original(*a, **(k | {"scaling": 0.01})))
    elif request.param == "slots":
        built = step.Step.slots_on
        monkeypatch.setattr(step.Step, "slots_on", lambda self, device: built(self, device).roll(1))
    elif request.param == "window":
        original_window = attention.paged_attention
        monkeypatch.setattr(
            attention, "paged_attention", lambda *a, **k: original_window(*a, **(k | {"sliding_window": 7}))
        )
    elif request.param == "nan":
        monkeypatch.setattr(
            attention,
            "paged_attention",
            lambda module, query, *a, **k: (query.transpose(1, 2).contiguous() * float("nan"), None),
        )
    yield
    monkeypatch.undo()
    attention.register()


@pytest.mark.parametrize("broken_hook", ["scaling", "slots", "window", "nan"], indirect=True)
@pytest.mark.usefixtures("broken_hook")
def test_self_test_notices_a_wrong_hook() -> None:
    model = build_model("gemma3")
    before = model.config._attn_implementation
    assert "packed logits of Gemma3ForCausalLM differ from plain ones" in gate_reason(model)
    assert model.config._attn_implementation == before


def test_setting_forces_the_padded_path(checkpoint: Callable[[str], Path]) -> None:
    """And it gives the same tokens, with sliding windows too."""
    import torch
    from transformers import AutoModelForCausalLM

    _, runner = load_runner(checkpoint("gemma3"), engine={"forward_path": "padded"})
    assert (runner.forward_path, runner.forward_path_reason) == ("padded", "forward_path is set to padded")
    peer = AutoModelForCausalLM.from_pretrained(checkpoint("gemma3"), dtype=torch.float32).eval()
    texts = prompts([3, 20, 11])
    sequences = [Sequence(number, prompt, 10, starts_at_step=2 * number) for number, prompt in enumerate(texts)]
    drive(runner, sequences, chunk=6)
    assert [sequence.tokens for sequence in sequences] == [generate(peer, prompt, 10) for prompt in texts]


@pytest.mark.parametrize("path", ["auto", "padded"])
def test_nan_of_one_sequence_stays_with_it(path: str, checkpoint: Callable[[str], Path]) -> None:
    """A row that fails poisons neither its batch mates nor whoever gets its blocks next."""
    loaded, runner = load_runner(checkpoint("llama"), engine={"forward_path": path, "kv_cache_memory": "64KiB"})
    texts = prompts([6, 9, 14])
    clean = [Sequence(number, prompt, 6) for number, prompt in enumerate(texts)]
    drive(runner, clean)
    poison = next(token for token in range(8, MODEL_VOCAB_SIZE) if not any(token in s.prompt + s.tokens for s in clean))
    embedding = loaded.model.get_input_embeddings().weight.data
    embedding[poison] = float("nan")
    again = [Sequence(number, prompt, 6) for number, prompt in enumerate(texts)]
    drive(runner, [*again, Sequence(9, [poison] * 30, 2)])
    assert [sequence.tokens for sequence in again] == [sequence.tokens for sequence in clean]
    later = [Sequence(number + 20, prompt, 6) for number, prompt in enumerate(texts)]
    drive(runner, later, chunk=4)
    assert [sequence.tokens for sequence in later] == [sequence.tokens for sequence in clean]
    assert all(np.isfinite(row).all() for sequence in later for row in sequence.logits)


@pytest.mark.parametrize(("softcap", "sinks"), [(None, True), (2.0, False), (2.0, True)])
def test_explicit_attention_equals_its_definition(softcap: float | None, sinks: bool) -> None:
    """Soft cap and sinks against the formula written out over one unpacked sequence."""
    import torch

    from tokenwire.model.attention import PagedContext, paged, paged_attention
    from tokenwire.model.batch import ForwardBatch
    from tokenwire.model.kv_cache import KVCache, LayerShape
    from tokenwire.model.step import Step

    torch.manual_seed(0)
    length, heads, kv_heads, dim = 11, 4, 2, 8
    query, key, value = (torch.randn(1, count, length, dim) for count in (heads, kv_heads, kv_heads))
    sink = torch.randn(heads) if sinks else None
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    cache = KVCache([LayerShape(kv_heads, dim, dim, torch.float32, torch.device("cpu"))], 8, 4)
    outputs = []
    for start, stop in ((0, 6), (6, 10), (10, 11)):
        step = Step(ForwardBatch([0], [[0] * (stop - start)], [start], [[5, 1, 3]], [True]), 4)
        with paged(PagedContext(step, cache)):
            part, _ = paged_attention(
                module,
                query[:, :, start:stop],
                key[:, :, start:stop],
                value[:, :, start:stop],
                None,
                scaling=0.3,
                softcap=softcap,
                s_aux=sink,
            )
        outputs.append(part)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    if sink is not None:
        scores = torch.cat([scores, sink.view(1, heads, 1, 1).expand(1, heads, length, 1)], -1)
    weights = scores.softmax(-1)[..., :length]
    expected = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, atol=1e-5, rtol=1e-5)
