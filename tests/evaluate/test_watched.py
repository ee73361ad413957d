"""Gains and long views by hand."""

import numpy as np
import pytest

from twofold.evaluate.watched import fit_gain, gains, is_long_view


def test_a_gain_is_how_far_from_the_mean_of_items_as_long():
    watch = np.array([1, 3, 10, 30], np.float32)
    length = np.array([5, 5, 60, 60], np.float32)
    scale = fit_gain(watch, length)
    assert gains(scale, watch, length) == pytest.approx([-1, 1, -1, 1])
    assert gains(scale, np.array([4], np.float32), np.array([5], np.float32)) == pytest.approx([(4 - 2) / 1])


def test_a_length_that_is_always_watched_alike_or_once_has_no_gain():
    watch, length = np.array([2, 2, 7], np.float32), np.array([5, 5, 60], np.float32)
    assert np.isnan(gains(fit_gain(watch, length), watch, length)).all()
    nothing = np.zeros(0, np.float32)
    assert np.isnan(gains(fit_gain(nothing, nothing), watch, length)).all()


def test_a_long_view_is_all_of_a_short_item_or_18_s():
    watch, length = np.array([9.9, 10, 17.9, 18], np.float32), np.array([10, 10, 300, 300], np.float32)
    assert is_long_view(watch, length).tolist() == [False, True, False, True]
