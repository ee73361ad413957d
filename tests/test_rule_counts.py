"""When users met items, written out naively."""

import numpy as np

from twofold.ragged import Ragged
from twofold.rule_counts import Meetings
from twofold.tables import HOUR_MS


def test_hours_since_the_last_event_of_an_item():
    draw = np.random.default_rng(0)
    sizes = [0, 1, 7, 30, 12]
    rows, at = draw.integers(0, 15, sum(sizes)), draw.integers(0, 10**9, sum(sizes))
    met = Meetings(Ragged(rows, np.cumsum([0, *sizes])), at, np.full(5, 10**9))
    items = np.stack([draw.permutation(20)[:9] for _ in sizes])
    items[:, 0] = -1
    found = met.hours_since(items)
    for user, column in np.ndindex(items.shape):
        first, end = met.rows.offsets[user : user + 2]
        times = at[first:end][rows[first:end] == items[user, column]]
        assert found[user, column] == ((10**9 - times.max()) / HOUR_MS if len(times) else np.inf)


def test_nobody_met_anything():
    met = Meetings(Ragged(np.empty(0, np.int64), np.zeros(3, np.int64)), np.empty(0, np.int64), np.array([5, 6]))
    assert np.isinf(met.hours_since(np.array([[1, -1], [0, 2]]))).all()
