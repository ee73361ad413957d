"""Columns of any type → values with a name."""

import numpy as np
import pyarrow as pa

from twofold.explain.facets import facets_of
from twofold.tables import DAY_MS


def test_every_type_of_column_has_its_values():
    table = pa.table(
        {
            "creator": ["a", None, "b", "a"],
            "tags": [["x", "y"], [], None, ["y"]],
            "is_new": [True, False, None, True],
            "parts": [1, 2, 2, None],
            "vector": pa.array([[[1.0]], [[2.0]], None, []], pa.list_(pa.list_(pa.float64()))),
            "nothing": pa.nulls(4, pa.string()),
            "uploaded_at": [0, DAY_MS, DAY_MS, None],
        }
    )
    found = {facet.name: facet for facet in facets_of(table)}
    assert set(found) == {"creator", "tags", "is_new", "parts", "uploaded_at"}
    pairs = {name: [(int(line), each.values[code]) for line, code in zip(each.lines, each.codes, strict=True)]
             for name, each in found.items()}  # fmt: skip
    assert pairs["creator"] == [(0, "a"), (2, "b"), (3, "a")]
    assert pairs["tags"] == [(0, "x"), (0, "y"), (3, "y")]
    assert pairs["is_new"] == [(0, "true"), (1, "false"), (3, "true")]
    assert pairs["parts"] == [(0, "1"), (1, "2"), (2, "2")]
    assert pairs["uploaded_at"] == [(0, "1970-01-01"), (1, "1970-01-02"), (2, "1970-01-02")]
    assert found["tags"].first(4, most=9) == ("x", "–", "–", "y")


def test_many_numbers_are_fifths_and_numbers_of_things_are_names():
    numbers = np.arange(100)
    measured, named, moment = facets_of(pa.table({"plays": numbers, "author_id": numbers, "made_at": numbers * DAY_MS}))
    assert np.bincount(measured.codes).tolist() == [20] * 5
    assert measured.values[0] == "0 to 19.8"  # a fifth of the way from 0 to 99
    assert measured.first(100, most=9)[0] == "1: 0 to 19.8"
    assert len(named.values) == 100
    assert moment.values[0] == "1970-01-01 to 1970-01-20"
    assert named.first(100, most=2).count("other") == 98


def test_not_a_number_is_no_value():
    (facet,) = facets_of(pa.table({"plays": [1.0, float("nan"), None, float("inf")]}))
    assert facet.lines.tolist() == [0]
