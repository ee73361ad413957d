"""Intervals that cover, pair and repeat."""

import numpy as np
import pytest

from twofold.evaluate.significance import bootstrap, paired_difference


def test_the_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.3, 0.2, (4000, 1))
    drawn = bootstrap(values, seed=1)
    half = 1.96 * values.std() / 4000**0.5
    assert drawn.value[0] == pytest.approx(values.mean())
    assert drawn.low[0] == pytest.approx(values.mean() - half, abs=half / 8)
    assert drawn.high[0] == pytest.approx(values.mean() + half, abs=half / 8)


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
    a, b, difference = bootstrap(better), bootstrap(worse), paired_difference(better, worse)
    assert a.low[0] < b.high[0]
    assert difference.low[0] > 0
    assert difference.value[0] == pytest.approx((better - worse).mean())
    assert -paired_difference(worse, better).high[0] == pytest.approx(difference.low[0])
