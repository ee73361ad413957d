"""Counters by hand, against a naive loop, and against a future that is rewritten."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.dataset.counters import load_counters, write_counters
from twofold.tables import HOUR_MS

# key, hour, was liked, seconds watched; one event a line
EVENTS = [
    (10, 100, True, 1.0),
    (10, 100, False, 2.0),
    (10, 101, True, 4.5),
    (10, 124, False, 0.5),
    (10, 125, True, 8.0),
    (20, 125, False, 3.0),
    (20, 126, False, 5.0),
]
PRIOR = {"events": 7, "rate_like": 3, "mean_watch_s": 24_000}  # of the events above: 3 likes, 24 s


def counted(folder, events, ids, *, priors=PRIOR):
    """The file that preparation leaves, written anew, turned into counters."""
    hours = {}
    for key, hour, liked, watched in events:
        line = hours.setdefault((key, hour), [0, 0, 0])
        hours[key, hour] = [line[0] + 1, line[1] + liked, line[2] + round(watched * 1000)]
    lines = [(*key, *line) for key, line in sorted(hours.items())]
    names = ["key", "hour", "events", "rate_like", "mean_watch_s"]
    columns = list(zip(*lines, strict=True)) or [[]] * len(names)
    types = [pa.string() if lines and isinstance(lines[0][0], str) else pa.int64(), *[pa.int64()] * 4]
    (folder / "counters").mkdir(parents=True, exist_ok=True)
    table = pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=names)
    pq.write_table(table, folder / "counters" / "by=item_id.parquet", row_group_size=2)
    (folder / "counters" / "priors.json").write_text(json.dumps({"item_id": priors}))
    write_counters(folder, "item_id", pa.array(ids), out=folder / "out")
    return load_counters(folder / "out")


def values(counters, rows, hours_of_day, *, of="like", hours=None, alpha=2.0):
    at = np.array(hours_of_day, np.int64) * HOUR_MS + 59 * 60_000  # a minute before the hour is over
    return counters.values(np.array(rows), at, statistic=of, hours=hours, smoothing=alpha)


def test_by_hand(tmp_path):
    counters = counted(tmp_path, EVENTS, [20, 10, 30])
    prior = 3 / 7
    # Item 10, row 1: an event of the same hour does not count; the hour before does.
    np.testing.assert_allclose(
        values(counters, [1, 1, 1, 1, 1], [100, 101, 102, 125, 126]),
        [prior, (1 + 2 * prior) / (2 + 2), (2 + 2 * prior) / (3 + 2), (2 + 2 * prior) / (4 + 2), (3 + 2 * prior) / 7],
        rtol=1e-6,
    )
    # Of the last 24 completed hours: at 125 those are 101 to 124, at 126 102 to 125.
    np.testing.assert_allclose(
        values(counters, [1, 1], [125, 126], hours=24),
        [(1 + 2 * prior) / (2 + 2), (1 + 2 * prior) / (2 + 2)],
        rtol=1e-6,
    )
    # Seconds watched, in thousandths on disk: row 0 is item 20.
    np.testing.assert_allclose(
        values(counters, [0, 0], [126, 127], of="watch_s"),
        [(3.0 + 2 * 24 / 7) / (1 + 2), (8.0 + 2 * 24 / 7) / (2 + 2)],
        rtol=1e-6,
    )


def test_an_item_without_events_and_nobody_have_the_prior(tmp_path):
    counters = counted(tmp_path, EVENTS, [20, 10, 30, None])
    np.testing.assert_allclose(values(counters, [2, 3, -1], [200, 200, 200]), [3 / 7] * 3, rtol=1e-6)


def test_items_of_one_creator_share_what_was_counted(tmp_path):
    counters = counted(tmp_path, [("x", 1, True, 0.0), ("y", 1, False, 0.0)], ["x", "y", "x", None])
    found = values(counters, [0, 1, 2, 3], [2] * 4)
    assert found[0] == found[2] > found[3] > found[1]


def test_where_nothing_was_counted_all_is_nought(tmp_path):
    counters = counted(tmp_path, [], [1, 2], priors={"events": 0, "rate_like": 0, "mean_watch_s": 0})
    assert values(counters, [0, 1, -1], [5, 5, 5]).tolist() == [0, 0, 0]


@st.composite
def logs(draw):
    event = st.tuples(st.integers(0, 3), st.integers(0, 60), st.booleans(), st.integers(0, 9).map(float))
    return draw(st.lists(event, max_size=40))


@pytest.mark.parametrize("hours", [1, 7, None])
@settings(max_examples=25)
@given(log=logs(), data=st.data())
def test_equals_a_naive_loop(tmp_path_factory, hours, log, data):
    counters = counted(tmp_path_factory.mktemp("log"), log, [3, 1, 0, 2, 9])
    key, hour = data.draw(st.sampled_from([3, 1, 0, 2, 9])), data.draw(st.integers(-1, 70))
    inside = [e for e in log if e[0] == key and e[1] < hour and (hours is None or e[1] >= hour - hours)]
    for of, place, prior in (("like", 2, 3 / 7), ("watch_s", 3, 24 / 7)):
        expected = (sum(e[place] for e in inside) + 5 * prior) / (len(inside) + 5)
        found = values(counters, [[3, 1, 0, 2, 9].index(key)], [hour], of=of, hours=hours, alpha=5.0)
        np.testing.assert_allclose(found, [expected], rtol=1e-6)


@settings(max_examples=25)
@given(log=logs(), future=logs(), moment=st.integers(0, 60))
def test_rewriting_the_future_changes_nothing(tmp_path_factory, log, future, moment):
    """All events at or after the moment are replaced by others; what is known at the moment is not."""
    past = [event for event in log if event[1] < moment]
    rewritten = past + [event for event in future if event[1] >= moment]
    ids = [0, 1, 2, 3]
    before, after = (counted(tmp_path_factory.mktemp("log"), events, ids) for events in (log, rewritten))
    for hours in (1, 24, None):
        for of in ("like", "watch_s"):
            one, other = (values(c, ids, [moment] * 4, of=of, hours=hours) for c in (before, after))
            assert one.tobytes() == other.tobytes()
