"""Watch time of lists: predictions that are off by a known factor come out right, and half of the users calibrate the
other.
"""

import numpy as np
import pytest

from tests.evaluate.windows import ragged, window
from twofold.evaluate.list_watch_time import (
    WatchHead,
    evaluate_list_watch,
    first_items,
    fit_ratio,
    fit_share,
    list_calibration,
)
from twofold.evaluate.watch_time import Watched, fit_gain, gains

USERS, ITEMS = 200, 50
LENGTH = np.linspace(8, 80, ITEMS).astype(np.float32)


def truth(users, items):
    """Returns the planted seconds of pairs: users differ, and items hold a share of their length."""
    return LENGTH[items] * (0.2 + 0.5 * ((users * 7 + items * 3) % 11) / 11)


@pytest.fixture
def shown():
    draw = np.random.default_rng(0)
    lists = ragged([draw.choice(ITEMS, size=30, replace=False) for _ in range(USERS)])
    seconds = truth(lists.lines, lists.values).astype(np.float32)
    return Watched(lists, seconds, LENGTH[lists.values], np.zeros(len(seconds)))


@pytest.fixture
def judged():
    nothing = [[] for _ in range(USERS)]
    return window(seen=[[0]] * USERS, relevant=[[1]] * USERS, candidates=nothing, num_items=ITEMS)


def head(factor, length=LENGTH):
    scale = fit_gain(np.tile(LENGTH, 3) * np.repeat([0.2, 0.4, 0.6], ITEMS).astype(np.float32), np.tile(LENGTH, 3))
    return WatchHead("watch", lambda users, items: factor * truth(users, items), length, scale)


def test_a_head_that_tells_twice_the_seconds_is_corrected(judged, shown):
    lists = ragged([np.arange(1, 11)] * USERS)
    expected = list_calibration(judged, head(2.0), shown)(lists)
    planted = truth(lists.lines, lists.values).reshape(USERS, 10)
    np.testing.assert_allclose(expected["seconds"], planted.mean(axis=1), rtol=0.01)
    scaled = gains(head(1.0).gain, planted.astype(np.float32).ravel(), LENGTH[lists.values]).reshape(USERS, 10)
    np.testing.assert_allclose(expected["wtg"], scaled.mean(axis=1), atol=0.02)
    share = planted / LENGTH[1:11]
    assert expected["completion"].mean() == pytest.approx(share.mean(), abs=0.01)
    long = planted >= np.minimum(LENGTH[1:11], 18)
    assert expected["long_view"].mean() == pytest.approx(long.mean(), abs=0.03)


def test_a_user_does_not_calibrate_its_own_predictions(judged, shown):
    """Users of even index watch ten times as long: with their own outcomes their predictions would be corrected."""
    is_even = shown.item_rows.lines % 2 == 0
    other = Watched(
        shown.item_rows, np.where(is_even, 10, 1).astype(np.float32) * shown.watch_s, shown.length_s, shown.gain
    )
    lists = ragged([np.arange(1, 11)] * USERS)
    planted = truth(lists.lines, lists.values).reshape(USERS, 10).mean(axis=1)
    found = list_calibration(judged, head(1.0), other)(lists)["seconds"]
    np.testing.assert_allclose(found[0::2], planted[0::2], rtol=0.02)
    np.testing.assert_allclose(found[1::2], 10 * planted[1::2], rtol=0.02)


def test_items_of_unknown_length_are_left_out(judged, shown):
    unknown = LENGTH.copy()
    unknown[1:6] = np.nan
    lists = ragged([[1, 2], *[np.arange(1, 11)] * (USERS - 1)])
    found = list_calibration(judged, head(1.0, unknown), shown)(lists)
    assert np.isnan(found["seconds"][0])
    planted = truth(lists.lines, lists.values)[2:].reshape(-1, 10)[:, 5:]
    np.testing.assert_allclose(found["seconds"][1:], planted.mean(axis=1), rtol=0.01)


def test_beyond_all_impressions_the_last_ratio_holds_and_shares_stay():
    predicted = np.linspace(1, 30, 300)
    assert fit_ratio(predicted, predicted / 2)(np.array([100.0])) == pytest.approx(50)
    assert fit_share(predicted, predicted / 60)(np.array([100.0])) == pytest.approx(predicted[-20:].mean() / 60)


def test_rows_are_compared_on_their_first_unseen_items(judged, shown):
    by_seconds = truth(np.arange(USERS)[:, None], np.arange(ITEMS)[None]).astype(np.float32)
    rows = {
        "model": lambda users: by_seconds[users].copy(),
        "random": lambda users: np.random.default_rng(1).random((users.stop - users.start, ITEMS), np.float32),
        "popularity": lambda users: np.tile(-LENGTH, (users.stop - users.start, 1)),
    }
    section = evaluate_list_watch(judged, rows, head(0.5), shown, k=5)
    allowed = by_seconds[:, 1:]  # item 0 was seen
    found = {row.name: row.metrics["list_watch/seconds@5"] for row in section.rows}
    assert found["model"].value == pytest.approx(np.sort(allowed, axis=1)[:, -5:].mean(), rel=0.02)
    assert found["popularity"].value == pytest.approx(by_seconds[:, 1:6].mean(), rel=0.03)
    minus = {row.name: row.model_minus["list_watch/seconds@5"] for row in section.rows[1:]}
    assert minus["popularity"].value == pytest.approx(found["model"].value - found["popularity"].value)
    assert (section.k, section.users, section.impressions) == (5, USERS, USERS * 30)
    assert section.sentence.startswith("Expected watch time of the first 5 items ")
    assert "better than popularity" in section.sentence
    assert "better than random" in section.sentence


def test_a_short_catalogue_gives_short_lists():
    small = window(seen=[[0, 1], [2]], relevant=[[2], [0]], candidates=[[], []], num_items=3)
    lists = first_items(small, lambda users: np.tile(np.arange(3, dtype=np.float32), (2, 1)), 3)
    assert [lists.values[lists.offsets[n] : lists.offsets[n + 1]].tolist() for n in range(2)] == [[2], [1, 0]]
