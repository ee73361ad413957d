"""Every kind of feature by hand; what is fitted sees nothing but the training window."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.dataset.examples import rows_at
from twofold.dataset.column_encoders import Scale, fit_scale
from twofold.dataset.counters import Counters
from twofold.dataset.features import fit_features, load_features, save_features
from twofold.dataset.tower_inputs import (
    Queries,
    UserArrays,
    item_arrays,
    item_inputs,
    save_user_attributes,
    user_inputs,
)
from twofold.recipe.features import Features
from twofold.tables import DAY_MS, HOUR_MS

FEATURES = Features.model_validate(
    {
        "vectors": {"look": {}},
        "user": [
            {"kind": "history", "events": "positives", "max_length": 3},
            {"kind": "history", "events": "positives", "max_length": 2, "vectors": "look", "pool": "concat"},
            {"kind": "clusters", "events": "positives", "vectors": "look", "max_length": 4, "num_clusters": 2},
            {"kind": "time", "part": "hour"},
            {"kind": "time", "part": "weekday"},
            {"kind": "category", "column": "maker"},
            {"kind": "number", "column": "age_years", "scale": "standard"},
            {"kind": "counter", "key": "user_id", "statistic": "like"},
        ],
        "item": [
            {"kind": "id"},
            {"kind": "category", "column": "maker"},
            {"kind": "bag", "column": "tags"},
            {"kind": "number", "column": "length_s", "scale": "standard"},
            {"kind": "age"},
            {"kind": "vector", "vectors": "look"},
            {"kind": "counter", "key": "item_id", "statistic": "like", "hours": 24},
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
LOOK = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
# users 0 and 2 teach; both have a `maker`, as items do: that of their telephone
USERS = pa.table({"user_id": [7, 8, 9], "maker": ["p", "q", "r"], "age_years": [20.0, 99.0, 40.0]})
TAUGHT = [0, 2]


def counters(lines, likes):
    """Every line but the last had two events in hour 0; `likes` says how many of them were likes."""
    ends = np.arange(1, lines + 1)
    hours = np.zeros(lines, [("hour", np.int64), ("events", np.int64), ("rate_like", np.int64)])
    hours["events"], hours["rate_like"] = 2 * ends, np.cumsum(likes)
    return Counters(np.append(ends - 1, 0), np.append(ends, 0), hours, priors={"events": 10, "rate_like": 4})


ITEM_COUNTERS = {"item_id": counters(3, [2, 0, 1])}
USER_ARRAYS = UserArrays({}, {"user_id": counters(3, [0, 1, 2])}, {"look.2": np.array([0, 1, 2, 2], np.int32)})
# What the two training rows were counted at: standardised, -1 and 1.
COUNTED = {"user_id_like_life": np.array([0.2, 0.4], np.float32), "item_id_like_24h": np.array([0.1, 0.5], np.float32)}


def fitted(items=ITEMS, users=USERS):
    return fit_features(
        FEATURES,
        items=items,
        users=users.take(TAUGHT),
        train=rows_at(item_rows=[0, 1], at=[0, 2 * DAY_MS], counter_values=COUNTED),
        num_known_items=2,
        time_zone="Asia/Shanghai",
    )


def arrays_of_items(state):
    return item_arrays(state, ITEMS, vectors={"look": LOOK}, counters=ITEM_COUNTERS)


def arrays_of_users(state, folder):
    (folder / "user_arrays").mkdir(parents=True)
    save_user_attributes(state, USERS, folder)
    attributes = {name: np.load(folder / "user_arrays" / f"{name}.npy") for name in ("maker", "age_years")}
    return UserArrays(attributes, USER_ARRAYS.counters, USER_ARRAYS.clusters)


def queries(user_rows, positives, at=HOUR_MS, **more):
    history = np.array(positives, np.int32).reshape(len(user_rows), -1)
    at = np.broadcast_to(np.array(at), len(user_rows))
    return Queries(np.array(user_rows), at, history, np.zeros((len(user_rows), 0), np.int32), **more)


def test_item_features_by_hand():
    state = fitted()
    inputs = item_inputs(state, arrays_of_items(state), item_rows=np.arange(3), at=np.full(3, 2 * DAY_MS))
    assert inputs["id"].tolist() == [1, 2, 0]  # cold item: none
    assert inputs["maker"].tolist() == [1, 0, 0]  # NULL and unseen: none
    assert inputs["tags"].tolist() == [[1, 2], [0, 0], [0, 1]]  # z was not in training
    assert inputs["length_s"].tolist() == [-1.0, 1.0, 0.0]  # mean 2, std 1; NULL becomes the mean
    # ages 0 and 2 days: log1p = 0 and log 3, so standardised to -1 and 1; unknown upload: the mean
    np.testing.assert_allclose(inputs["age"], [1.0, 1.0, 0.0], atol=1e-6)
    assert inputs["look"].tolist() == LOOK.tolist()  # cold items too
    # After two days nothing of the last 24 hours is left: the prior, .4, where mean is .3 and std .2
    np.testing.assert_allclose(inputs["item_id_like_24h"], [0.5] * 3, atol=1e-5)


def test_counters_of_items_count_the_hours_before():
    state = fitted()
    inputs = item_inputs(state, arrays_of_items(state), item_rows=np.arange(3), at=np.full(3, HOUR_MS))
    rates = (np.array([2, 0, 1]) + 20 * 0.4) / (2 + 20)
    np.testing.assert_allclose(inputs["item_id_like_24h"], (rates - 0.3) / 0.2, atol=1e-5)


def test_a_new_item_has_nothing_that_is_fitted_or_counted_on_it_alone():
    """Items 0 and 1 share a maker and a tag; maker y and tag c are those of item 2 alone, as are the ids and counts."""
    items = pa.table(
        {
            "item_id": [10, 20, 30],
            "maker": ["x", "x", "y"],
            "tags": [["a", "a"], ["a"], ["c", "b"]],
            "length_s": [1.0, 3.0, 2.0],
            "uploaded_at": [0, 0, 0],
        }
    )
    state = fit_features(
        FEATURES,
        items=items,
        users=USERS.take(TAUGHT),
        train=rows_at(item_rows=[0, 1], at=[0, 2 * DAY_MS], counter_values=COUNTED),
        num_known_items=3,
        time_zone="Asia/Shanghai",
    )
    assert state.vocabularies["item.maker"].num_known == state.vocabularies["item.tags"].num_known == 1
    arrays = item_arrays(state, items, vectors={"look": LOOK}, counters=ITEM_COUNTERS)
    rows, at = np.array([0, 1, 2, 2]), np.full(4, HOUR_MS)
    known = item_inputs(state, arrays, item_rows=rows, at=at)
    is_new = np.array([True, False, True, False])
    inputs = item_inputs(state, arrays, item_rows=rows, at=at, is_new=is_new)
    assert inputs["id"].tolist() == [0, 2, 0, 3]
    assert inputs["maker"].tolist() == [1, 1, 0, 2]
    assert inputs["tags"].tolist() == [[1, 1], [1, 0], [0, 0], [3, 2]]
    prior = (0.4 - 0.3) / 0.2  # of a counter that has counted nothing
    np.testing.assert_allclose(inputs["item_id_like_24h"][is_new], prior, atol=1e-5)
    for name in ("length_s", "age", "look"):  # they describe the item, and are known before its first event
        np.testing.assert_array_equal(inputs[name], known[name])
    for name, values in inputs.items():
        np.testing.assert_array_equal(values[~is_new], known[name][~is_new])


def test_counters_that_several_items_share_stay():
    first, end = np.array([0, 0, 5, 0]), np.array([5, 5, 9, 0])
    shared = Counters(first, end, ITEM_COUNTERS["item_id"].hours, priors={})
    assert shared.is_single.tolist() == [False, False, True, False]


def test_cold_items_and_users_who_do_not_teach_change_nothing_that_is_fitted():
    changed = ITEMS.set_column(1, "maker", pa.array(["x", None, "other"]))
    changed = changed.set_column(3, "length_s", pa.array([1.0, 3.0, 9e9]))
    users = USERS.set_column(1, "maker", pa.array(["p", "?", "r"])).set_column(2, "age_years", pa.array([20, 1e9, 40]))
    before, after = fitted(), fitted(changed, users)
    assert before.scales == after.scales
    for name, vocabulary in before.vocabularies.items():
        assert vocabulary.ids.equals(after.vocabularies[name].ids)


def test_users_and_items_of_one_column_name_have_values_of_their_own():
    state = fitted()
    assert state.vocabularies["user.maker"].ids.to_pylist() == ["p", "r"]
    assert state.vocabularies["item.maker"].ids.to_pylist() == ["x"]


def test_user_features_by_hand(tmp_path):
    state = fitted()
    requests = queries([0, 1], [[1, 2, 3, 2], [0, 0, 0, 1]], at=[0, 17 * HOUR_MS])  # Thursday 08:00, Friday 01:00 there
    inputs = user_inputs(state, arrays_of_users(state, tmp_path), requests)
    assert inputs["positives"].tolist() == [[2, 0, 2], [0, 0, 1]]  # the newest three; item row 2 is cold
    assert inputs["positives_concat_look"].tolist() == [[3, 2], [0, 1]]  # its vector is known nevertheless
    assert inputs["positives_clusters_look"].tolist() == [[0.25, 0.75], [1, 0]]
    assert inputs["hour"].tolist() == [1 + 8, 1 + 1]
    assert inputs["weekday"].tolist() == [1 + 3, 1 + 4]
    assert inputs["maker"].tolist() == [1, 0]  # user 1 does not teach
    np.testing.assert_allclose(inputs["age_years"], [-1.0, 6.9], rtol=1e-6)  # mean 30, std 10
    # In hour 0 nothing is over yet: the prior, .4; in hour 17, one of two
    np.testing.assert_allclose(
        inputs["user_id_like_life"], [(0.4 - 0.3) / 0.1, ((1 + 20 * 0.4) / 22 - 0.3) / 0.1], atol=1e-5
    )


def test_nobody_has_no_attributes_and_the_prior(tmp_path):
    state = fitted()
    inputs = user_inputs(state, arrays_of_users(state, tmp_path), queries([-1], [[]]))
    assert inputs["positives"].tolist() == [[0, 0, 0]]
    assert inputs["positives_clusters_look"].tolist() == [[0, 0]]
    assert (inputs["maker"].tolist(), inputs["age_years"].tolist()) == ([0], [0])
    np.testing.assert_allclose(inputs["user_id_like_life"], [(0.4 - 0.3) / 0.1], atol=1e-5)


def test_short_histories_are_padded_and_estimated_times_are_none(tmp_path):
    state = fitted()
    requests = queries([0], [[2]], at=0, at_is_known=np.array([False]))
    inputs = user_inputs(state, arrays_of_users(state, tmp_path), requests)
    assert inputs["positives"].tolist() == [[0, 0, 2]]
    assert inputs["hour"].tolist() == [0]


def test_what_is_known_of_the_counters_is_not_counted_again(tmp_path):
    state = fitted()
    counts = {"user_id_like_life": np.array([0.4], np.float32), "item_id_like_24h": np.array([0.7], np.float32)}
    requests = queries([0], [[]])
    inputs = user_inputs(state, arrays_of_users(state, tmp_path), requests, counts)
    np.testing.assert_allclose(inputs["user_id_like_life"], [1.0], atol=1e-5)
    item = item_inputs(state, arrays_of_items(state), item_rows=np.array([0]), at=requests.at, counts=counts)
    np.testing.assert_allclose(item["item_id_like_24h"], [2.0], atol=1e-5)


def test_saved_and_loaded_features_give_byte_equal_inputs(tmp_path):
    state = fitted()
    save_features(state, tmp_path)
    loaded = load_features(tmp_path)
    for one, other in zip(
        *(item_inputs(s, arrays_of_items(s), item_rows=np.arange(3), at=np.full(3, 5 * DAY_MS)).values()
          for s in (state, loaded)),
        strict=True,
    ):  # fmt: skip
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("cuts", [[], [1], [2, 2, 5]])
def test_a_scale_does_not_depend_on_how_the_rows_are_cut(cuts):
    values = np.array([3.0, np.nan, 1e6, -4.0, 5.0, np.nan, 2.5], np.float32)
    there = values[~np.isnan(values)].astype(np.float64)
    found = fit_scale(np.split(values, cuts))
    np.testing.assert_allclose([found.mean, found.std], [there.mean(), there.std()], rtol=1e-12)
    assert fit_scale([np.full(3, np.nan, np.float32)]) == Scale(0.0, 1.0)
    assert fit_scale([np.full(3, 7, np.float32)]) == Scale(7.0, 1.0)


@pytest.mark.parametrize(
    ("zone", "at", "hour", "weekday"),
    [
        ("Asia/Kolkata", 1_651_948_200_000, 0, 7),  # Saturday 18:30 UTC is midnight of Sunday
        ("Asia/Kolkata", 1_651_948_199_999, 23, 6),
        ("Europe/Berlin", 1_648_342_799_999, 1, 7),  # the last moment before summer time
        ("Europe/Berlin", 1_648_342_800_000, 3, 7),
    ],
)
def test_the_hour_of_a_request_is_that_of_the_time_zone(tmp_path, zone, at, hour, weekday):
    state = replace(fitted(), time_zone=zone)
    save_features(state, tmp_path / "features")
    users = arrays_of_users(state, tmp_path)
    for opened in (state, load_features(tmp_path / "features")):  # the latter is what the service reads
        inputs = user_inputs(opened, users, queries([0], [[0]], at=at))
        assert (inputs["hour"].tolist(), inputs["weekday"].tolist()) == ([1 + hour], [weekday])
