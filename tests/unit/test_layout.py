"""Weights in another layout are the same weights."""

import pytest


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_arranged_model_gives_the_same_logits(bias: bool, tied: bool) -> None:
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    from tokenwire.model.layout import BlockedHead, arrange_weights_inplace

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=7001, tie_word_embeddings=tied, **sizes)).eval()
    if bias:
        torch.nn.init.normal_(model.lm_head.bias)
    ids = torch.randint(0, 7001, (2, 9))
    with torch.inference_mode():
        before = model(ids).logits
        arrange_weights_inplace(model)
        assert isinstance(model.get_output_embeddings(), BlockedHead)
        after = model(ids).logits
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(ids, logits_to_keep=1).logits, before[:, -1:], atol=1e-5, rtol=1e-5)


def test_bfloat16_and_quantized_weights_are_left_alone() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tokenwire.model.layout import arrange_weights_inplace

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=7001, **sizes)).to(torch.bfloat16)
    before = {name: parameter.stride() for name, parameter in model.named_parameters()}
    arrange_weights_inplace(model)
    assert {name: parameter.stride() for name, parameter in model.named_parameters()} == before
