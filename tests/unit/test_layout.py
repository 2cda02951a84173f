"""Weights in another layout are the same weights."""

import pytest


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_arranged_model_gives_the_same_logits(bias: bool, tied: bool) -> None:
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    from tokenwire.model.layout import PackedLinear, arrange_weights_inplace

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=7001, tie_word_embeddings=tied, **sizes)).eval()
    if bias:
        torch.nn.init.normal_(model.lm_head.bias)
    ids = torch.randint(0, 7001, (2, 9))
    with torch.inference_mode():
        before = model(ids).logits
        arrange_weights_inplace(model, lambda _: None)
        assert isinstance(model.get_output_embeddings(), PackedLinear)
        assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 7
        after = model(ids).logits
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(ids, logits_to_keep=1).logits, before[:, -1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_on_a_kernel_gives_the_same_logits(tied: bool) -> None:
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    from tokenwire.engine.kernels import native_kernels
    from tokenwire.model.kernels import KernelLinear
    from tokenwire.model.layers import use_kernel_for_head
    from tokenwire.model.quantization import parameter_count

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=7001, tie_word_embeddings=tied, **sizes)).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    count = parameter_count(model)
    ids = torch.randint(0, 7001, (2, 9))
    with torch.inference_mode():
        before = model(ids).logits
        lines: list[str] = []
        use_kernel_for_head(model, native_kernels(2).linear, lines.append)
        assert lines == []
        assert isinstance(model.get_output_embeddings(), KernelLinear)
        torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(ids, logits_to_keep=1).logits, before[:, -1:], atol=1e-5, rtol=1e-5)
    assert parameter_count(model) == count


@pytest.mark.parametrize(
    ("hidden_size", "factor", "problem"),
    [
        (32, 1.0, "in_features must be a positive multiple of 64, got 32"),
        (64, 1.001, "self-test: its kernel is off by"),
    ],
)
def test_a_head_that_no_kernel_serves_stays(hidden_size: int, factor: float, problem: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tokenwire.engine.kernels import native_kernels
    from tokenwire.model.layers import use_kernel_for_head

    make = native_kernels(1).linear
    sizes = {"hidden_size": hidden_size, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=7001, **sizes)).eval()
    head, lines = model.get_output_embeddings(), []
    use_kernel_for_head(model, lambda weight, *, bias: make(weight * factor, bias=bias), lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(f"the output head stays with torch: {problem}")
    assert model.get_output_embeddings() is head


def test_bfloat16_and_quantized_weights_are_left_alone() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tokenwire.model.layout import arrange_weights_inplace

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=7001, **sizes)).to(torch.bfloat16)
    before = list(model.modules())
    arrange_weights_inplace(model, lambda _: None)
    assert list(model.modules()) == before


def test_a_model_that_works_with_its_weights_gets_them_back() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tokenwire.model.layout import arrange_weights_inplace

    class Direct(torch.nn.Module):
        """Uses the weight of a linear layer without calling the layer."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden @ self.linear.weight.t()

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=99, **sizes)).eval()
    model.model.layers[1].mlp.up_proj = Direct(model.model.layers[1].mlp.up_proj)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids, lines = torch.randint(0, 99, (2, 9)), []
    with torch.inference_mode():
        before = model(ids).logits
        arrange_weights_inplace(model, lines.append)
        assert torch.equal(model(ids).logits, before)
    assert len(lines) == 1
    assert lines[0].startswith("linear layers stay unpacked: ")
    after = dict(model.named_parameters())
    assert weights.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
