"""How a refusal shows the value that it refuses."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from tokenwire.errors import spelled


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float32_is_shown_as_short_as_it_can_be(value: float) -> None:
    shown = spelled(value)
    assert struct.pack("f", float(shown)) == struct.pack("f", value)
    assert len(shown) <= len(repr(value))


@given(st.floats())
def test_any_float_is_shown(value: float) -> None:
    assert float(spelled(value)) == value or value != value or abs(float(spelled(value)) / value - 1) < 1e-6


def test_values_are_shown_as_protobuf_writes_them() -> None:
    shown = {
        "0.7": struct.unpack("f", struct.pack("f", 0.7))[0],
        "0.1": 0.1,
        "1e+300": 1e300,
        "nan": float("nan"),
        "unset": None,
        "true": True,
        "[1, false]": (1, False),
        "'a'": "a",
    }
    assert {key: spelled(value) for key, value in shown.items()} == {key: key for key in shown}
