"""Token healing: the answer's text begins behind the text of the token that was taken off the prompt."""

import random

import numpy as np
from tokenizer_kinds import Pair

from tokenwire import _native


def test_text_begins_behind_the_dropped_token(pair: Pair) -> None:
    tokenizer = pair.native
    generator = random.Random(3)
    width = tokenizer.vocab_size
    plain = sorted(set(range(width)) - set(tokenizer.special_token_ids))
    # The healed token is none of them.
    stopping = _native.StoppingParams(vocab_size=width, max_new_tokens=2)
    sampling = _native.SamplingParams(vocab_size=width)
    sampler = _native.Sampler()
    healed = 0
    for dropped in plain:
        if not tokenizer.is_healable(dropped):
            continue
        extensions = tokenizer.extensions(dropped).tolist()
        for first in generator.choices(extensions, k=30):
            tokens = [first, *generator.choices(plain, k=2)]
            generation = _native.Generation(tokenizer, [plain[0]], sampling, stopping, healed_token_id=dropped)
            text = ""
            for token in tokens:
                row = np.zeros((1, width), dtype=np.float32)
                row[0, token] = 9
                (emission,) = sampler.step(row, [generation])
                assert emission.token_id == token
                text += emission.text
            whole, given = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (tokens, [dropped]))
            if whole.startswith(given):
                assert text == whole.removeprefix(given)
                healed += 1
            # Otherwise the decoder joins them, and only what is not the prompt's is shown.
            assert whole.endswith(text)
    assert healed > 50


def test_where_nothing_else_extends_the_token_nothing_changes(pair: Pair) -> None:
    tokenizer = pair.native
    width = tokenizer.vocab_size
    stopping = _native.StoppingParams(vocab_size=width, max_new_tokens=3)
    row = np.random.default_rng(0).normal(size=width).astype(np.float32)
    alone = [token for token in range(width) if not tokenizer.is_healable(token)]
    assert set(tokenizer.special_token_ids) < set(alone)
    for dropped in (*alone[:50], *tokenizer.special_token_ids, width, -1):
        generation = _native.Generation(
            tokenizer, [0], _native.SamplingParams(vocab_size=width), stopping, healed_token_id=dropped
        )
        assert np.array_equal(_native.Sampler().processed_logits(row, generation), row)
