"""Intervals that cover, pair, cluster by user and agree with their p-values; seeds as a random effect."""

import numpy as np
import pytest
import scipy.stats

from twofold.evaluate.significance import across_seeds, estimates_of, holm, holm_except, mean_intervals


@pytest.mark.parametrize("case", range(100))
def test_intervals_and_p_values_equal_scipys_t_test(case):
    rng = np.random.default_rng(case)
    users = int(rng.integers(2, 50))
    a, b = rng.normal(size=(2, users, 3))
    differences = a - b
    differences[rng.random((users, 3)) < 0.2] = np.nan
    ours = mean_intervals(differences)
    for column in range(3):
        known = ~np.isnan(differences[:, column])
        if known.sum() > 1:
            test = scipy.stats.ttest_rel(a[known, column], b[known, column])
            assert ours.value[column] == pytest.approx((a - b)[known, column].mean())
            assert ours.p_value[column] == pytest.approx(test.pvalue)
            assert (ours.low[column], ours.high[column]) == pytest.approx(tuple(test.confidence_interval(0.95)))
        else:
            assert np.isnan([ours.low[column], ours.high[column], ours.p_value[column]]).all()


def test_an_interval_excludes_zero_exactly_where_p_is_below_05():
    rng = np.random.default_rng(1)
    found = mean_intervals(rng.normal(0.1, 1, (200, 500)))
    is_out = (found.low > 0) | (found.high < 0)
    assert 0 < is_out.sum() < 500
    np.testing.assert_array_equal(is_out, found.p_value < 0.05)


@pytest.mark.parametrize("users", [300, 3000])
def test_the_interval_is_that_of_drawing_users_with_replacement(users):
    rng = np.random.default_rng(users)
    values = rng.beta(0.5, 2, (users, 1))
    means = values[rng.integers(0, users, (4_000, users)), 0].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    found = mean_intervals(values)
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), abs=(high - low) * 0.06)


def test_one_row_per_user_is_the_case_without_clusters():
    values = np.random.default_rng(2).random((80, 3))
    values[5:9, 1] = np.nan
    alone, clustered = mean_intervals(values), mean_intervals(values, np.random.default_rng(3).permutation(80))
    for name in ("value", "low", "high", "p_value"):
        np.testing.assert_allclose(getattr(alone, name), getattr(clustered, name), rtol=1e-12)


def test_a_user_of_several_days_counts_as_one_user():
    once = np.random.default_rng(4).normal(0.1, 1, (60, 1))
    users = np.arange(60)
    repeated = mean_intervals(np.tile(once, (4, 1)), np.tile(users, 4))
    alone = mean_intervals(once)
    assert repeated.value == pytest.approx(alone.value)
    assert (repeated.low[0], repeated.p_value[0]) == pytest.approx((alone.low[0], alone.p_value[0]))
    as_if_independent = mean_intervals(np.tile(once, (4, 1)))
    assert as_if_independent.high[0] - as_if_independent.low[0] < (alone.high[0] - alone.low[0]) * 0.55


def test_clustered_errors_by_hand():
    # Users 7 (values 0 and 1) and 9 (value 2): mean 1, sums of deviations -1 and 1, se² = 2 · (1 + 1) / 3².
    found = mean_intervals(np.array([[0.0], [1.0], [2.0]]), np.array([7, 7, 9]))
    half = scipy.stats.t.ppf(0.975, 1) * (4 / 9) ** 0.5
    assert (found.value[0], found.low[0], found.high[0]) == pytest.approx((1, 1 - half, 1 + half))


def test_clustered_intervals_cover_the_truth_in_95_of_100_worlds():
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        users = np.repeat(np.arange(60), rng.integers(1, 5, 60))
        values = rng.normal(0, 1, 60)[users] + rng.normal(0, 0.3, len(users))
        found = mean_intervals(values[:, None], users)
        hits += found.low[0] <= 0 <= found.high[0]
    assert 0.91 <= hits / 400 <= 0.98


def test_skipped_users_count_for_nothing():
    values = np.random.default_rng(0).random((500, 2))
    with_skipped = np.full((800, 2), np.nan)
    with_skipped[:500] = values
    with_skipped[500:, 1] = 0.5
    found, alone = mean_intervals(with_skipped), mean_intervals(values)
    assert (found.low[0], found.high[0]) == pytest.approx((alone.low[0], alone.high[0]))
    assert found.value[1] == pytest.approx((values[:, 1].sum() + 150) / 800)


def test_a_column_that_nobody_has_is_nan_and_disturbs_no_other():
    values = np.random.default_rng(0).random((50, 2))
    alone = mean_intervals(values[:, :1])
    values[:, 1] = np.nan
    found = mean_intervals(values)
    assert np.isnan([found.value[1], found.low[1], found.high[1], found.p_value[1]]).all()
    assert (found.low[0], found.high[0]) == pytest.approx((alone.low[0], alone.high[0]))


def test_one_user_has_a_value_and_no_interval_and_equal_values_one_of_no_width():
    (one,) = estimates_of({"recall": np.array([0.25])}).values()
    assert (one.value, one.low, one.high) == (0.25, None, None)
    all_equal = mean_intervals(np.column_stack([np.zeros(9), np.full(9, 0.5)]))
    assert all_equal.low.tolist() == all_equal.high.tolist() == [0, 0.5]
    assert all_equal.p_value.tolist() == [1, 0]


def test_pairing_sees_a_small_difference_that_two_intervals_hide():
    rng = np.random.default_rng(0)
    ability = rng.random((1000, 1))
    better, worse = ability + 0.01 + rng.normal(0, 0.01, (1000, 1)), ability
    a, b, difference = mean_intervals(better), mean_intervals(worse), mean_intervals(better - worse)
    assert a.low[0] < b.high[0]
    assert difference.low[0] > 0
    assert difference.value[0] == pytest.approx((better - worse).mean())


def test_holm_by_hand():
    # Sorted: .01 · 4, .02 · 3, .03 · 2 and .5 · 1, never falling; the NaN was no test.
    assert holm(np.array([0.5, 0.01, np.nan, 0.03, 0.02])) == pytest.approx(
        [0.5, 0.04, np.nan, 0.06, 0.06], nan_ok=True
    )
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert len(holm(np.zeros(0))) == 0


def test_a_metric_named_beforehand_is_not_corrected_and_costs_the_others_nothing():
    adjusted = holm_except(np.array([0.04, 0.01, 0.02]), np.array([True, False, False]))
    assert adjusted.tolist() == [0.04, 0.02, 0.02]


def values_of_seeds(rng, *, seeds, users, of_seeds):
    """Values of two equal recipes: users differ, each seed moves all users, and each pair of both has noise."""
    user = rng.normal(0.4, 0.3, users)
    return (user + rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, 0.1, (seeds, users)) for _ in range(2))


@pytest.mark.parametrize("of_seeds", [0.0, 0.003, 0.006, 0.03])
def test_two_equal_recipes_differ_in_5_of_100_trials_however_much_seeds_matter(of_seeds):
    rng = np.random.default_rng(0)
    claims = [across_seeds(*values_of_seeds(rng, seeds=3, users=200, of_seeds=of_seeds)) for _ in range(300)]
    alarms = np.mean([claim.p_value < 0.05 for claim in claims])
    assert alarms <= 0.08  # nominal .05, standard error .013
    if of_seeds > 0.02:
        assert alarms >= 0.02


def test_a_difference_beyond_seeds_and_users_is_found():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(50):
        better, base = values_of_seeds(rng, seeds=3, users=200, of_seeds=0.003)
        found += across_seeds(better + 0.05, base).p_value < 0.05
    assert found >= 45


def test_the_order_of_seeds_has_no_effect_and_both_recipes_values_are_given():
    rng = np.random.default_rng(0)
    a, b = values_of_seeds(rng, seeds=4, users=300, of_seeds=0.01)
    claim, turned = across_seeds(a, b), across_seeds(a[::-1], b)
    assert (claim.low, claim.high) == pytest.approx((turned.low, turned.high))
    assert claim.difference == pytest.approx(a.mean() - b.mean())
    assert claim.per_seed == pytest.approx(a.mean(axis=1))
    assert claim.base_per_seed == pytest.approx(b.mean(axis=1))
    assert across_seeds(b, a).p_value == pytest.approx(claim.p_value)
    assert across_seeds(b, a).high == pytest.approx(-claim.low)


def test_seeds_are_a_part_of_the_interval_and_one_seed_has_none():
    rng = np.random.default_rng(0)
    a, b = values_of_seeds(rng, seeds=3, users=5000, of_seeds=0.03)
    over_users = mean_intervals((a.mean(axis=0) - b.mean(axis=0))[:, None])
    claim = across_seeds(a, b)
    assert claim.high - claim.low > 5 * (over_users.high[0] - over_users.low[0])
    one = across_seeds(a[:1], b[:1])
    assert one.difference == pytest.approx(a[0].mean() - b[0].mean())
    assert (one.low, one.high, one.p_value) == (None, None, None)


def test_users_whom_the_metric_skips_are_left_out_of_every_seed():
    a, b = values_of_seeds(np.random.default_rng(0), seeds=3, users=50, of_seeds=0.01)
    a, b = a.copy(), b.copy()
    a[:, :7], b[:, :7] = np.nan, np.nan
    assert across_seeds(a, b) == across_seeds(a[:, 7:], b[:, 7:])
