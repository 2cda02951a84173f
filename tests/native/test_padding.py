from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import Pair
from transformers import PreTrainedTokenizerFast

from tokenwire import _native

Side = Literal["left", "right"]
SIDES: list[Side] = ["left", "right"]


@pytest.fixture(scope="module")
def reference(chat_pair: Pair) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=chat_pair.reference, pad_token="<|endoftext|>")


@given(
    rows=st.lists(st.lists(st.integers(0, 2**31), max_size=9), min_size=1, max_size=5),
    side=st.sampled_from(SIDES),
    multiple_of=st.integers(1, 8),
)
def test_pad_equals_the_reference(
    reference: PreTrainedTokenizerFast, rows: list[list[int]], side: Side, multiple_of: int
) -> None:
    expected = reference.pad({"input_ids": rows}, padding_side=side, pad_to_multiple_of=multiple_of)
    pad_token_id = reference.pad_token_id
    padded = _native.pad(
        [np.array(row, np.int64) for row in rows], pad_token_id=pad_token_id, side=side, multiple_of=multiple_of
    )
    assert padded.input_ids.tolist() == expected["input_ids"]
    assert padded.attention_mask.tolist() == expected["attention_mask"]
    mask = padded.attention_mask
    assert np.array_equal(padded.position_ids, (mask.cumsum(-1) - 1) * mask)
    arrays = (padded.input_ids, padded.attention_mask, padded.position_ids)
    assert {(array.dtype.name, array.flags.c_contiguous) for array in arrays} == {("int64", True)}


def test_rows_with_a_stride_and_no_rows() -> None:
    padded = _native.pad([np.arange(6)[::2]], pad_token_id=9, side="left", multiple_of=4)
    assert padded.input_ids.tolist() == [[9, 0, 2, 4]]
    assert _native.pad([], pad_token_id=0, side="left").input_ids.shape == (0, 0)


def test_every_violation_is_named() -> None:
    with pytest.raises(_native.InvalidParametersError) as caught:
        _native.pad([np.array([1, -5])], pad_token_id=-1, side="left", multiple_of=0)
    assert [(field, value) for field, _, value in caught.value.violations] == [
        ("pad_token_id", "-1"),
        ("multiple_of", "0"),
        ("rows[0]", "-5"),
    ]
    with pytest.raises(_native.InvalidParametersError, match="'left' or 'right'"):
        _native.pad([], pad_token_id=0, side="middle")  # type: ignore[arg-type]
    with pytest.raises(_native.InvalidParametersError, match="multiple_of"):
        _native.pad([], pad_token_id=0, side="left", multiple_of=2**40)
