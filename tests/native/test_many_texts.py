"""A thousand random id sequences and texts per kind of tokenizer: deltas, decoding, encoding and padding."""

import random
from typing import Any, Literal

import numpy as np
import pytest
from tokenizer_kinds import CORPUS, Pair, make_pair
from transformers import PreTrainedTokenizerFast

from tokenwire import _native

KINDS = ("byte-level", "byte-fallback", "wordpiece", "unigram")
NUM_SEQUENCES = 1000
SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")

Tokenizers = tuple[Pair, Any]


@pytest.fixture(scope="module", params=KINDS)
def tokenizers(request: pytest.FixtureRequest) -> Tokenizers:
    """Ours, and transformers' of the same file."""
    pair = make_pair(request.param)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=pair.reference, pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    return pair, fast


def random_ids(pair: Pair, rng: random.Random) -> list[int]:
    """Any ids, with runs of bytes and control tokens, which are the low ids, more often than chance has them."""
    size = pair.reference.get_vocab_size()
    return [rng.randrange(size if rng.random() < 0.5 else min(size, 270)) for _ in range(rng.randint(0, 40))]


@pytest.mark.parametrize("skip", [False, True], ids=["all tokens", "without special tokens"])
def test_joined_deltas_are_the_decoded_ids(tokenizers: Tokenizers, skip: bool) -> None:
    pair, fast = tokenizers
    rng = random.Random(f"{pair.name} {skip}")
    rows = [random_ids(pair, rng) for _ in range(NUM_SEQUENCES)]
    for ids, expected in zip(rows, fast.batch_decode(rows, skip_special_tokens=skip), strict=True):
        stream = _native.Detokenizer(pair.native, skip_special_tokens=skip)
        assert "".join([stream.push(token) for token in ids]) + stream.finish() == expected, ids
        assert pair.native.decode(ids, skip_special_tokens=skip) == expected, ids


def random_text(pair: Pair, rng: random.Random) -> str:
    """Decoded ids, pieces of the corpus, and characters of any plane."""
    match rng.randrange(3):
        case 0:
            return pair.native.decode(random_ids(pair, rng), skip_special_tokens=rng.random() < 0.5)
        case 1:
            text = rng.choice(CORPUS)
            start = rng.randrange(len(text))
            return text[start : start + rng.randint(0, 60)]
        case _:
            planes = [(32, 127), (0xA0, 0x250), (0x300, 0x370), (0x4E00, 0x4F00), (0x1F600, 0x1F650)]
            return "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randint(0, 20)))


@pytest.mark.parametrize("side", SIDES)
def test_encoded_and_padded_texts_are_the_tokenizers_own(
    tokenizers: Tokenizers, side: Literal["left", "right"]
) -> None:
    pair, fast = tokenizers
    rng = random.Random(f"{pair.name} {side}")
    texts = [random_text(pair, rng) for _ in range(NUM_SEQUENCES)]
    for start in range(0, NUM_SEQUENCES, 8):
        batch = texts[start : start + 8]
        expected = fast(batch, padding=True, padding_side=side, return_token_type_ids=False)
        padded = _native.pad(pair.native.encode_batch(batch), pad_token_id=fast.pad_token_id, side=side)
        assert padded.input_ids.tolist() == expected["input_ids"], batch
        assert padded.attention_mask.tolist() == expected["attention_mask"], batch
        mask = np.array(expected["attention_mask"])
        assert np.array_equal(padded.position_ids, (mask.cumsum(-1) - 1) * mask)
