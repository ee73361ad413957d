"""Texts whose values have a separator, as bags."""

import tracemalloc

import numpy as np
import pyarrow as pa
import torch

from twofold.dataset.column_encoders import bag_rows, value_lists
from twofold.dataset.features import FeatureState
from twofold.dataset.tower_inputs import item_arrays, item_inputs
from twofold.dataset.vocabulary import build_value_vocabulary
from twofold.recipe.features import Features
from twofold.train.objective import _stacked

TEXTS = pa.chunked_array([["pop|rock", "rock", None, "", " rock | pop ", "|jazz"]])


def test_a_text_is_split_and_its_values_are_trimmed() -> None:
    lists = value_lists(TEXTS, "|")
    assert lists.to_pylist() == [["pop", "rock"], ["rock"], None, [], ["rock", "pop"], ["jazz"]]
    assert value_lists(lists, None) is lists


def test_the_split_values_are_rows_of_a_table() -> None:
    lists = value_lists(TEXTS, "|")
    vocabulary = build_value_vocabulary(lists)
    rows = bag_rows(lists, vocabulary).padded()
    assert rows[0].tolist() == rows[4][::-1].tolist()
    assert rows[2].tolist() == rows[3].tolist() == [0, 0]
    assert (rows[5] > 0).tolist() == [True, False]


def test_one_long_list_widens_its_own_batch_alone() -> None:
    """An item with 5,000 tags among 2,000 with two or none: as one array they would take 40 MB."""
    tags = [["a", "b"] if number % 2 else None for number in range(2_000)]
    items = pa.table({"tags": pa.array([*tags, [f"tag {number}" for number in range(5_000)]])})
    features = Features.model_validate(
        {"user": [{"kind": "history", "events": "positives"}], "item": [{"kind": "bag", "column": "tags"}]}
    )
    vocabularies = {"item.tags": build_value_vocabulary(items["tags"])}
    state = FeatureState(features, "UTC", num_known_items=len(items), vocabularies=vocabularies, scales={})
    tracemalloc.start()
    arrays = item_arrays(state, items, vectors={}, counters={})
    short, long = (
        item_inputs(state, arrays, item_rows=np.array(rows), at=np.zeros(3, np.int64))["tags"]
        for rows in ([0, 1, 3], [2_000, 1, 0])
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    assert short.tolist() == [[0, 0], [1, 2], [1, 2]]
    assert long.shape == (3, 5_000)
    assert (long > 0).sum(axis=1).tolist() == [5_000, 2, 0]
    assert _stacked([torch.from_numpy(short), torch.from_numpy(long)]).shape == (6, 5_000)
    mixed = _stacked([torch.from_numpy(long), torch.from_numpy(short)])
    assert mixed[3:].sum(dim=1).tolist() == [0, 3, 3]
