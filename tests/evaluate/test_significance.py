"""Intervals that cover, pair and repeat."""

import numpy as np
import pytest
import scipy.stats

from twofold.evaluate.significance import across_seeds, bootstrap, holm, paired_p_values


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.3, 0.2, (4000, 1))
    drawn = bootstrap(values, seed=1)
    half = 1.96 * values.std() / 4000**0.5
    assert drawn.value[0] == pytest.approx(values.mean())
    assert drawn.low[0] == pytest.approx(values.mean() - half, abs=half / 8)
    assert drawn.high[0] == pytest.approx(values.mean() + half, abs=half / 8)


def test_every_draw_equals_a_mean_over_poisson_counts_written_naively():
    rng = np.random.default_rng(3)
    values = rng.random((40, 2))
    values[rng.random((40, 2)) < 0.3] = np.nan
    places = np.random.default_rng(8).bit_generator.random_raw(10 * 50).view(np.uint16).reshape(50, 40)
    drawn = bootstrap(values, seed=8, resamples=50)
    for column in range(2):
        means = []
        for line in places:
            counts = scipy.stats.poisson.ppf((line + 0.5) / 2**16, 1)
            pairs = zip(counts, values[:, column], strict=True)
            known = [(count, value) for count, value in pairs if not np.isnan(value)]
            means.append(sum(count * value for count, value in known) / sum(count for count, _ in known))
        assert (drawn.low[column], drawn.high[column]) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-6)


@pytest.mark.parametrize("users", [30, 300])
def test_the_interval_is_that_of_drawing_with_replacement(users):
    rng = np.random.default_rng(users)
    values = rng.beta(0.5, 2, (users, 1))
    means = values[rng.integers(0, users, (20_000, users)), 0].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    drawn = bootstrap(values, resamples=20_000)
    assert (drawn.low[0], drawn.high[0]) == pytest.approx((low, high), abs=(high - low) * 0.04)


def test_skipped_users_count_for_nothing():
    values = np.random.default_rng(0).random((500, 2))
    with_skipped = np.full((800, 2), np.nan)
    with_skipped[:500] = values
    with_skipped[500:, 1] = 0.5
    drawn, all_judged = bootstrap(with_skipped), bootstrap(values)
    assert drawn.value[0] == pytest.approx(values[:, 0].mean())
    assert drawn.high[0] - drawn.low[0] == pytest.approx(all_judged.high[0] - all_judged.low[0], rel=0.15)
    assert drawn.value[1] == pytest.approx((values[:, 1].sum() + 150) / 800)


def test_a_column_that_nobody_has_is_nan_and_disturbs_no_other():
    values = np.random.default_rng(0).random((50, 2))
    alone = bootstrap(values[:, :1])
    values[:, 1] = np.nan
    drawn = bootstrap(values)
    assert np.isnan([drawn.value[1], drawn.low[1], drawn.high[1]]).all()
    assert (drawn.low[0], drawn.high[0]) == pytest.approx((alone.low[0], alone.high[0]))


def test_the_seed_decides():
    values = np.random.default_rng(0).random((200, 3))
    one, same, other = bootstrap(values, seed=5), bootstrap(values, seed=5), bootstrap(values, seed=6)
    assert (one.low == same.low).all()
    assert (one.high == same.high).all()
    assert (one.low != other.low).any()


def test_one_user_and_constant_values_have_an_interval_of_no_width():
    one = bootstrap(np.array([[0.25]]))
    assert (one.value[0], one.low[0], one.high[0]) == (0.25, 0.25, 0.25)
    all_equal = bootstrap(np.full((70, 1), 0.1))
    assert (all_equal.low[0], all_equal.high[0]) == pytest.approx((0.1, 0.1), abs=1e-12)


def test_few_judged_among_many_skipped_still_give_numbers():
    values = np.full((30, 1), np.nan)
    values[:2, 0] = 0, 1
    drawn = bootstrap(values)  # in some draws neither of the two is drawn
    assert (drawn.value[0], drawn.low[0], drawn.high[0]) == (0.5, 0, 1)


def test_pairing_sees_a_small_difference_that_two_intervals_hide():
    rng = np.random.default_rng(0)
    ability = rng.random((1000, 1))
    better, worse = ability + 0.01 + rng.normal(0, 0.01, (1000, 1)), ability
    a, b, difference = bootstrap(better), bootstrap(worse), bootstrap(better - worse)
    assert a.low[0] < b.high[0]
    assert difference.low[0] > 0
    assert difference.value[0] == pytest.approx((better - worse).mean())
    assert -bootstrap(worse - better).high[0] == pytest.approx(difference.low[0])


@pytest.mark.parametrize("case", range(200))
def test_p_values_equal_scipys_paired_t_test(case):
    rng = np.random.default_rng(case)
    users = int(rng.integers(2, 50))
    a, b = rng.normal(size=(2, users, 3))
    differences = a - b
    differences[rng.random((users, 3)) < 0.2] = np.nan
    ours = paired_p_values(differences)
    for column in range(3):
        known = ~np.isnan(differences[:, column])
        if known.sum() > 1:
            assert ours[column] == pytest.approx(scipy.stats.ttest_rel(a[known, column], b[known, column]).pvalue)
        else:
            assert np.isnan(ours[column])


def test_no_difference_has_p_1_and_the_same_one_for_all_is_certain():
    assert paired_p_values(np.column_stack([np.zeros(9), np.full(9, 0.5)])).tolist() == [1, 0]


def test_holm_by_hand():
    # Sorted: .01 · 4, .02 · 3, .03 · 2 and .5 · 1, never falling; the NaN was no test.
    assert holm(np.array([0.5, 0.01, np.nan, 0.03, 0.02])) == pytest.approx(
        [0.5, 0.04, np.nan, 0.06, 0.06], nan_ok=True
    )
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert len(holm(np.zeros(0))) == 0


def test_a_claim_needs_three_seeds_that_agree():
    rng = np.random.default_rng(0)
    base = rng.random((3, 400))
    better = base + 0.05 + rng.normal(0, 0.05, base.shape)
    claim = across_seeds(better, base)
    assert claim.is_significant
    assert claim.per_seed == pytest.approx((better - base).mean(axis=1))
    assert claim.difference == pytest.approx((better - base).mean())
    assert claim.std == pytest.approx(np.std(claim.per_seed, ddof=1))
    assert across_seeds(better[:2], base[:2]).is_significant is None
    assert across_seeds(base, better).is_significant
    one_disagrees = better.copy()
    one_disagrees[1] = base[1] - 0.01
    assert across_seeds(one_disagrees, base).is_significant is False
