"""Columns as arrays: lists of numbers, and what is refused of them."""

import numpy as np
import pyarrow as pa
import pytest

from twofold.dataset.column_encoders import Scale, fit_scale, numbers, profiles
from twofold.errors import DataError


@pytest.mark.parametrize("type_", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float32())])
def test_lists_become_lines_and_null_becomes_zeros(type_):
    column = pa.chunked_array([pa.array([[1.0, 2.0], None], type_), pa.array([[3.0, 4.0]], type_)])
    assert profiles(column, 2, name="rhythm").tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([[1.0, 2.0], [1.0]], "of 1 numbers, of all of which 0 are NULL, NaN or infinite"),
        ([[1.0, None]], "of 2 numbers, of all of which 1 are NULL, NaN or infinite"),
    ],
)
def test_lists_of_another_length_and_holes_are_refused(values, found):
    with pytest.raises(DataError, match=rf"column rhythm holds lists {found}.* has length: 2\. Write"):
        profiles(pa.chunked_array([pa.array(values, pa.list_(pa.float64()))]), 2, name="rhythm")


@pytest.mark.parametrize(
    ("values", "scale", "message"),
    [
        (
            [-3.5, 1.0, 2.0],
            "log",
            r"the column price has negative numbers, down to -3\.5, .* Write scale: standard, or",
        ),
        (
            [1.0, 1e39, 2.0],
            "standard",
            r"the column price goes from 0 to 1e\+39, and a feature reads numbers up to 3\.4",
        ),
    ],
)
def test_numbers_that_a_feature_cannot_hold_are_refused(values, scale, message):
    with pytest.raises(DataError, match=message):
        numbers(pa.chunked_array([values]), is_log=scale == "log", name="price")


def test_a_number_far_beyond_those_of_training_keeps_a_vector_finite() -> None:
    """A new item may have the largest float for what is unknown; the lengths of vectors are sums of squares."""
    scale = fit_scale([np.array([1, 2, 3], np.float32)])
    found = scale.apply(np.array([3.4e38, -3.4e38, 2, np.nan, 1e5], np.float32))
    assert found.tolist() == pytest.approx([1e6, -1e6, 0, 0, (1e5 - 2) / (2 / 3) ** 0.5])
    assert Scale(-3e38, 1e-46).apply(np.array([3e38], np.float32)).tolist() == [1e6]
