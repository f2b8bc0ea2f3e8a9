from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import StoreError
from hansa.store.dtypes import BY_NAME, STORED, convert, first_not_finite, stored


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1.0, 1.0),
        (1.00390625, 1.0),  # halfway, down to even
        (1.01171875, 1.015625),  # halfway, up to even
        (1.0039064, 1.0078125),  # just above halfway
        (-1.00390625, -1.0),
        (3.3895314e38, 3.3895314e38),  # the largest bfloat16
        (3.4e38, np.inf),
        (1e-45, 0.0),
        (-0.0, -0.0),
    ],
)
def test_bfloat16_rounds_to_nearest_even(value: float, rounded: float) -> None:
    target = np.empty(1, ml_dtypes.bfloat16)
    convert(np.array([value], np.float32), target)
    found = target.astype(np.float64)[0]
    assert found == pytest.approx(rounded, rel=1e-7)
    assert np.signbit(found) == np.signbit(rounded)


@given(st.integers(0, 2**16 - 1))
def test_every_bfloat16_survives_fp32(bits: int) -> None:
    before = np.array([bits], np.uint16).view(ml_dtypes.bfloat16)
    wide, after = np.empty(1, np.float32), np.empty(1, ml_dtypes.bfloat16)
    convert(before, wide)
    assert wide.view(np.uint32)[0] == bits << 16 or np.isnan(wide[0])
    convert(wide, after)
    assert after.view(np.uint16)[0] == bits or np.isnan(wide[0])


@pytest.mark.parametrize("name", ["float64", *STORED])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_the_first_bad_number_is_found(name: str, bad: float) -> None:
    dtype = BY_NAME[name].numpy
    largest = 3.0e38 if name != "float16" else 65504.0
    good = np.array([0.0, -0.0, largest, -largest, 1e-8], np.float64).astype(dtype)
    assert first_not_finite(good) is None
    assert first_not_finite(np.append(good, np.array([bad, bad]).astype(dtype))) == 5
    assert first_not_finite(good[:0]) is None


def test_integers_are_always_finite() -> None:
    assert first_not_finite(np.array([-1, 2**31 - 1], np.int32)) is None


def test_models_are_stored_in_floats_only() -> None:
    assert stored("bfloat16").code == "BF16"
    with pytest.raises(StoreError, match="int8") as caught:
        stored("int8")
    assert "bfloat16" in str(caught.value.hint)
