"""Columns as arrays: lists of numbers, and what is refused of them."""

import pyarrow as pa
import pytest

from twofold.dataset.column_encoders import profiles
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
