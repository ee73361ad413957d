"""The matrix that trees read: its columns by name, against a table written by hand."""

import numpy as np
import pytest

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import item_batches, query_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.model.trees import category_columns, column_names, item_columns, pair_columns, user_columns
from twofold.recipe.features import Features
from twofold.recipe.ranker import tree_features

TOLD = Features.model_validate(
    {
        "user": [
            {"kind": "history", "events": "positives", "max_length": 7},
            {"kind": "time", "part": "hour"},
            {"kind": "profile", "column": "taste", "length": 2},
            {"kind": "counter", "key": "user_id", "statistic": "liked", "hours": 24},
        ],
        "item": [
            {"kind": "id"},
            {"kind": "category", "column": "creator"},
            {"kind": "bag", "column": "tags"},
            {"kind": "number", "column": "length_s", "scale": "log", "hidden_dim": 4},
            {"kind": "age"},
        ],
    }
)


def test_columns_are_those_of_numbers_categories_and_the_clock():
    read = tree_features(TOLD)
    assert column_names(read) == (
        "user.hour",
        "user.taste.0",
        "user.taste.1",
        "user.user_id_liked_24h",
        "item.creator",
        "item.length_s",
        "item.age",
        "score",
        "place",
    )
    assert [column_names(read)[place] for place in category_columns(read)] == ["user.hour", "item.creator"]
    assert tree_features(read) == read


def test_a_line_is_a_pair_the_users_columns_first():
    users = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    items = np.array([[[5.0], [6.0], [7.0]], [[8.0], [9.0], [10.0]]], np.float32)
    score, places = np.array([[0.5, 0.4, 0.3], [0.9, 0.8, 0.7]], np.float32), np.array([[0, 1, 2], [2, 1, 0]])
    expected = np.array(
        [
            [1, 2, 5, 0.5, 0],
            [1, 2, 6, 0.4, 1],
            [1, 2, 7, 0.3, 2],
            [3, 4, 8, 0.9, 2],
            [3, 4, 9, 0.8, 1],
            [3, 4, 10, 0.7, 0],
        ],
        np.float32,
    )
    np.testing.assert_array_equal(pair_columns(users, items, score, places), expected)
    assert pair_columns(users[:, :0], items, score, places).shape == (6, 3)  # of users it may know nothing


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", utc_offset_h=8)
    return load_dataset(folder / "dataset", tree_features(FEATURES))


def test_both_sides_are_what_a_tower_would_read_of_them(dataset):
    names = column_names(dataset.features.features)
    at, rows = int(dataset.events.at.max()) + 1, np.arange(len(dataset.items))
    users = user_columns(dataset, np.arange(3), np.full(3, at))
    items = item_columns(dataset, rows, np.full(len(rows), at))
    told = dict(zip(names, [*users.T, *items.T], strict=False))
    assert [*told, "score", "place"] == list(names)
    (of_users,), (of_items,) = query_batches(dataset, np.arange(3), np.full(3, at)), item_batches(dataset, at)
    shares = of_users["positives_clusters_look"].numpy()
    for number in range(3):
        np.testing.assert_array_equal(told[f"user.positives_clusters_look.{number}"], shares[:, number])
    for name in ("weekday", "language", "years", "user_id_like_24h"):
        np.testing.assert_array_equal(told[f"user.{name}"], of_users[name])
    for name in ("language", "length_s", "age", "item_id_like_72h", "creator_watch_s_life"):
        np.testing.assert_array_equal(told[f"item.{name}"], of_items[name])
