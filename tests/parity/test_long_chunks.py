"""A long chunk attends in parts; the result is that of the whole."""

import pytest


@pytest.mark.parametrize("lengths", [(257,), (384,), (513,), (1, 1, 300, 700), (260, 5)])
def test_parts_equal_the_whole(lengths: tuple[int, ...]) -> None:
    import torch

    from tokenwire.model.attention import PagedContext, paged, paged_attention
    from tokenwire.model.batch import ForwardBatch
    from tokenwire.model.kv_cache import KVCache, LayerShape
    from tokenwire.model.step import Step

    torch.manual_seed(0)
    heads, kv_heads, dim, total = 4, 2, 8, sum(lengths)
    query, key, value = (torch.randn(1, count, total, dim) for count in (heads, kv_heads, kv_heads))
    module = torch.nn.Module()
    module.layer_idx = 0  # type: ignore[assignment]
    cache = KVCache([LayerShape(kv_heads, dim, dim, torch.float32, torch.device("cpu"))], 4 * 64, 16)
    tables = [list(range(64 * row, 64 * row + 64)) for row in range(len(lengths))]
    batch = ForwardBatch(
        list(range(len(lengths))),
        [[0] * length for length in lengths],
        [0] * len(lengths),
        tables,
        [True] * len(lengths),
    )
    with paged(PagedContext(Step(batch, 16), cache)):
        out, _ = paged_attention(module, query, key, value, None, scaling=0.3)
    start = 0
    for length in lengths:
        tokens = slice(start, start + length)
        scores = query[:, :, tokens] @ key[:, :, tokens].repeat_interleave(2, 1).transpose(2, 3) * 0.3
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        expected = (scores.softmax(-1) @ value[:, :, tokens].repeat_interleave(2, 1)).transpose(1, 2)
        torch.testing.assert_close(out[:, tokens], expected, atol=1e-5, rtol=1e-5)
        start += length
