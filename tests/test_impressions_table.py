"""The public table of impressions: its protocol on the shipped log, and models that read no label after their cut."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def table():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import impressions

        yield impressions
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def log(table):
    return table.read_log(table.DATA)


def test_the_metrics_are_those_of_three_users_by_hand(table):
    user, label = np.array([1, 1, 1, 2, 2, 3]), np.array([1, 0, 1, 0, 1, 0])
    found = table.quality(user, label, np.array([3.0, 2.0, 1.0, 2.0, 1.0, 9.0]))
    # User 1 wins one pair of two and has two positives, user 2 wins none; user 3 has none, which is 0 in NDCG.
    assert found["gauc"] == pytest.approx((2 * 0.5 + 1 * 0) / 3)
    second, third = 1 / np.log2(3), 0.5
    assert found["ndcg@5"] == pytest.approx(((1 + third) / (1 + second) + second + 0) / 3)
    assert found["mean"] == pytest.approx((found["gauc"] + found["ndcg@5"]) / 2)


def test_chance_is_the_mean_of_random_scores(table):
    rng = np.random.default_rng(0)
    user = rng.integers(0, 40, 300)
    label = (rng.random(300) < 0.3).astype(int)
    drawn = [table.quality(user, label, rng.random(300))["ndcg@5"] for _ in range(100)]
    assert table.quality_by_chance(user, label)["ndcg@5"] == pytest.approx(np.mean(drawn), abs=0.01)


def test_rows_users_chance_and_oracle_of_the_shipped_log_are_the_published_ones(table, log):
    test = log[0][log[0]["day"] >= table.TEST_DAY]
    assert (len(test), test["user_id"].nunique()) == (170_588, 23_875)
    user, label = test["user_id"].to_numpy(), test["long_view"].to_numpy()
    # The published .4753 is one draw; the mean of draws is .4758, their standard deviation .0015.
    assert table.quality_by_chance(user, label)["mean"] == pytest.approx(0.4753, abs=0.0015)
    assert round(table.quality(user, label, label.astype(float))["mean"], 4) == 0.8645


def test_labels_after_the_cut_change_no_score(table, log):
    from impressions_models import Machine, machine_fields, machine_scores, rate_columns, with_exposures

    full, users = log
    few = with_exposures(full[full["user_id"] < 1500].reset_index(drop=True))
    turned = few.assign(long_view=few["long_view"].where(few["day"] < table.TEST_DAY, 1 - few["long_view"]))
    rows, train = (np.flatnonzero(is_in) for is_in in (few["day"] >= table.TEST_DAY, few["day"] < table.TEST_DAY))
    assert len(rows) > 5000
    settings = {"seed": 0, "config": Machine(epochs=1)}
    scores, columns = [], []
    for each in (few, turned):
        fields, labels = machine_fields(each, is_full=True), each["long_view"].to_numpy()
        scores.append(machine_scores(fields, labels, train, rows, **settings))
        columns.append(rate_columns(each, rows, table.TEST_DAY, users))
    np.testing.assert_array_equal(*scores)
    pd.testing.assert_frame_equal(*columns)
    # And those before the cut do.
    before = few.assign(long_view=1 - few["long_view"])
    assert not rate_columns(before, rows, table.TEST_DAY, users)["item_id_rate"].equals(columns[0]["item_id_rate"])
