"""Texts whose values have a separator, as bags."""

import pyarrow as pa

from twofold.dataset.column_encoders import bag_rows, value_lists
from twofold.dataset.vocabulary import build_value_vocabulary

TEXTS = pa.chunked_array([["pop|rock", "rock", None, "", " rock | pop ", "|jazz"]])


def test_a_text_is_split_and_its_values_are_trimmed() -> None:
    lists = value_lists(TEXTS, "|")
    assert lists.to_pylist() == [["pop", "rock"], ["rock"], None, [], ["rock", "pop"], ["jazz"]]
    assert value_lists(lists, None) is lists


def test_the_split_values_are_rows_of_a_table() -> None:
    lists = value_lists(TEXTS, "|")
    vocabulary = build_value_vocabulary(lists)
    rows = bag_rows(lists, vocabulary)
    assert rows[0].tolist() == rows[4][::-1].tolist()
    assert rows[2].tolist() == rows[3].tolist() == [0, 0]
    assert (rows[5] > 0).tolist() == [True, False]
