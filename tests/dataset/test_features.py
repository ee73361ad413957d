import numpy as np
import pyarrow as pa

from twofold.dataset.features import (
    DAY_MS,
    HOUR_MS,
    fit_features,
    item_arrays,
    item_inputs,
    load_features,
    save_features,
    user_inputs,
)
from twofold.recipe.features import Features

FEATURES = Features.model_validate(
    {
        "user": [
            {"kind": "history", "of": "positives", "last": 3},
            {"kind": "time", "of": "hour"},
            {"kind": "time", "of": "weekday"},
        ],
        "item": [
            {"kind": "id"},
            {"kind": "category", "column": "maker"},
            {"kind": "bag", "column": "tags"},
            {"kind": "number", "column": "length_s", "scale": "standard"},
            {"kind": "age"},
        ],
    }
)
# rows 0 and 1 were seen in training, row 2 is cold
ITEMS = pa.table(
    {
        "item_id": [10, 20, 30],
        "maker": ["x", None, "new"],
        "tags": [["a", "b"], [], ["z", "a"]],
        "length_s": [1.0, 3.0, None],
        "uploaded_at": pa.array([0, 0, None], pa.int64()),
    }
)


def fitted(items=ITEMS):
    return fit_features(
        FEATURES,
        items,
        num_known_items=2,
        train_item_rows=np.array([0, 1]),
        train_at=np.array([0, 2 * DAY_MS]),
        utc_offset_h=8,
    )


def test_item_features_by_hand():
    state = fitted()
    inputs = item_inputs(state, item_arrays(state, ITEMS), np.array([0, 1, 2]), np.full(3, 2 * DAY_MS))
    assert inputs["id"].tolist() == [1, 2, 0]  # cold item: none
    assert inputs["maker"].tolist() == [1, 0, 0]  # NULL and unseen: none
    assert inputs["tags"].tolist() == [[1, 2], [0, 0], [0, 1]]  # z was not in training
    assert inputs["length_s"].tolist() == [-1.0, 1.0, 0.0]  # mean 2, std 1; NULL becomes the mean
    # ages 0 and 2 days: log1p = 0 and log 3, so standardised to -1 and 1; unknown upload: the mean
    np.testing.assert_allclose(inputs["age"], [1.0, 1.0, 0.0], atol=1e-6)


def test_cold_items_change_nothing_that_is_fitted():
    changed = ITEMS.set_column(1, "maker", pa.array(["x", None, "other"]))
    changed = changed.set_column(3, "length_s", pa.array([1.0, 3.0, 9e9]))
    before, after = fitted(), fitted(changed)
    assert before.scales == after.scales
    assert before.vocabularies["maker"].ids.equals(after.vocabularies["maker"].ids)


def test_user_features_by_hand():
    state = fitted()
    at = np.array([0, 17 * HOUR_MS])  # Thursday 08:00 and Friday 01:00 in Beijing
    inputs = user_inputs(
        state, positives=np.array([[0, 1, 2, 1], [-1, -1, -1, 0]]), negatives=np.zeros((2, 0), np.int64), at=at
    )
    assert inputs["positives"].tolist() == [[2, 0, 2], [0, 0, 1]]  # the newest three; item row 2 is cold
    assert inputs["hour"].tolist() == [1 + 8, 1 + 1]
    assert inputs["weekday"].tolist() == [1 + 3, 1 + 4]


def test_short_histories_are_padded_and_estimated_times_are_none():
    state = fitted()
    inputs = user_inputs(
        state,
        positives=np.array([[1]]),
        negatives=np.zeros((1, 0), np.int64),
        at=np.array([0]),
        at_is_known=np.array([False]),
    )
    assert inputs["positives"].tolist() == [[0, 0, 2]]
    assert inputs["hour"].tolist() == [0]


def test_saved_and_loaded_features_give_byte_equal_inputs(tmp_path):
    state = fitted()
    save_features(state, tmp_path)
    loaded = load_features(tmp_path)
    moments = np.full(3, 5 * DAY_MS)
    for one, other in zip(
        item_inputs(state, item_arrays(state, ITEMS), np.arange(3), moments).values(),
        item_inputs(loaded, item_arrays(loaded, ITEMS), np.arange(3), moments).values(),
        strict=True,
    ):
        assert one.tobytes() == other.tobytes()
