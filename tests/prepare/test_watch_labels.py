"""Every watch-time label on tables of a dozen views, worked out by hand; and that the future changes none of them."""

import hashlib
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prepare.tables import TEST, TRAIN, VALIDATION, events_of, log_of, prepared, rows_of
from tests.worlds import DAY_MS, FIRST_MS
from twofold.recipe.labels import BelowMean, Completion, LongView, WatchQuantile, WatchTimeGain
from twofold.recipe.labels import Label as AnyLabel

SECONDS = {"kind": "width", "seconds": 5}


def views(rows: list[tuple[int, int, float | None, float | None]], later: int = 0, **columns: list[Any]) -> pa.Table:
    """A log of (user, item, watch_s, length_s) in training, one a minute; the last `later` rows are of validation."""
    first = [TRAIN] * (len(rows) - later) + [VALIDATION] * later
    events = [
        (user, item, at + 60_000 * n, n == 0) for n, ((user, item, *_), at) in enumerate(zip(rows, first, strict=True))
    ]
    return log_of(events, watch_s=[row[2] for row in rows], length_s=[row[3] for row in rows], **columns)


def labelled(folder: Path, log: pa.Table, label: dict[str, Any], *, split: str = "train", **parts: Any) -> list[Any]:
    """The label of the rows of a window, in the order they were written in `log`, JUDGED left out."""
    out = prepared(folder, log, labels={"it": label}, target="it", **parts)
    rows = sorted((row for row in rows_of(out, split) if row["item_id"] != 100), key=lambda row: row["at"])
    return [row["target"] for row in rows]


def gains(values: list[float], *, mean: float | None = None, variance: float | None = None) -> list[float]:
    mean = statistics.mean(values) if mean is None else mean
    variance = statistics.variance(values) if variance is None else variance
    return [(value - mean) / math.sqrt(variance) for value in values]


def near(expected: list[float | None]) -> Any:
    return pytest.approx(expected, rel=1e-6)


# --- plain formulas ---------------------------------------------------------------------------------------------------

ODD = [
    (1, 0, 5.0, 10.0),
    (1, 1, 20.0, 10.0),
    (2, 2, 5.0, 0.0),
    (2, 3, None, 10.0),
    (3, 4, 5.0, None),
    (3, 5, 0.0, 10.0),
]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"kind": "pcc"}, [0.5, 1.0, None, None, None, 0.0]),
        ({"kind": "long_view"}, [0.0, 1.0, None, None, None, 0.0]),
    ],
)
def test_completion_and_long_view_of_odd_views(tmp_path: Path, label: dict[str, Any], expected: list[Any]) -> None:
    log = views(ODD)
    target = "it" if label["kind"] == "pcc" else "CASE WHEN it THEN 1 WHEN NOT it THEN 0 END"
    out = prepared(tmp_path, log, labels={"it": label}, target=target)
    found = sorted((row for row in rows_of(out) if row["item_id"] != 100), key=lambda row: row["at"])
    assert [row["target"] for row in found] == expected


def test_a_long_view_is_the_whole_of_what_is_short_and_18_seconds_of_what_is_long(tmp_path: Path) -> None:
    rows = [(1, 0, 17.9, 18.0), (1, 1, 18.0, 18.0), (2, 2, 17.9, 18.1), (2, 3, 18.0, 18.1), (3, 4, 18.0, 600.0)]
    out = prepared(tmp_path, views(rows), labels={"it": {"kind": "long_view"}}, positive="it OR item_id = 100")
    assert [row["label"] for row in rows_of(out)] == [False, True, False, True, True]


@pytest.mark.parametrize("narrow", ["watch_s", "length_s"])
def test_a_whole_view_is_whole_if_one_of_its_columns_is_float(tmp_path: Path, narrow: str) -> None:
    """12.9 as FLOAT is 12.8999996, and 13.1 is 13.1000004: as doubles, one is below its equal and one above."""
    log = views([(user, user, seconds, seconds) for user, seconds in enumerate([12.9, 13.1, 17.9, 18.1])])
    log = log.set_column(log.schema.get_field_index(narrow), narrow, log[narrow].cast(pa.float32()))
    labels = {"long": {"kind": "long_view"}, "share": {"kind": "pcc"}}
    out = prepared(tmp_path, log, labels=labels, positive="long OR item_id = 100", target="share")
    assert [(row["label"], row["target"]) for row in rows_of(out)] == [(True, 1.0)] * 4


# --- watch-time gain --------------------------------------------------------------------------------------------------


def test_gain_in_buckets_of_five_seconds(tmp_path: Path) -> None:
    rows = [(1, 0, 1.0, 4.9), (1, 1, 3.0, 0.1), (2, 2, 2.0, 5.0), (2, 3, 8.0, 9.9), (3, 4, 5.0, 7.0)]
    found = labelled(tmp_path, views(rows), {"kind": "wtg", "buckets": SECONDS, "shrink": 0})
    assert found == near(gains([1.0, 3.0]) + gains([2.0, 8.0, 5.0]))


def test_gain_of_completion_standardizes_the_share_watched_within_its_bucket(tmp_path: Path) -> None:
    rows = [(1, 0, 1.0, 4.0), (1, 1, 9.0, 3.0), (2, 2, 2.0, 5.0), (2, 3, 8.0, 9.5), (3, 4, 7.0, 7.0), (3, 5, None, 7.0)]
    label = {"kind": "wtg", "buckets": SECONDS, "shrink": 0, "quantity": "completion"}
    found = labelled(tmp_path, views(rows), label)
    # a view beyond the end counts as whole
    expected = gains([0.25, 1.0]) + gains([0.4, 8 / 9.5, 1.0])
    assert found[:5] == pytest.approx(expected, abs=1e-5)
    assert found[5] is None


def test_gain_is_bounded_by_the_number_of_views(tmp_path: Path) -> None:
    """The largest |z| that n views allow: (n - 1) / sqrt(n)."""
    n = 6
    rows = [(user, user % 2, 100.0 if user == 0 else 1.0, 10.0) for user in range(n)]
    found = labelled(tmp_path, views(rows), {"kind": "wtg", "buckets": SECONDS, "shrink": 0})
    assert max(found) == pytest.approx((n - 1) / math.sqrt(n), rel=1e-6)


def test_small_groups_are_drawn_towards_all_views(tmp_path: Path) -> None:
    rows = [
        (1, 0, 1.0, 1.0),
        (1, 1, 2.0, 1.0),
        (2, 2, 6.0, 11.0),
        (2, 3, 9.0, 11.0),
        (3, 4, 12.0, 11.0),
        (3, 5, 4.0, 21.0),
    ]
    k, everything = 2.0, [row[2] for row in rows]
    whole_mean, whole_variance = statistics.mean(everything), statistics.variance(everything)

    def drawn(values: list[float]) -> list[float]:
        n = len(values)
        mean = (n * statistics.mean(values) + k * whole_mean) / (n + k)
        variance = whole_variance if n < 2 else (n * statistics.variance(values) + k * whole_variance) / (n + k)
        return gains(values, mean=mean, variance=variance)

    found = labelled(tmp_path, views(rows), {"kind": "wtg", "buckets": SECONDS, "shrink": k})
    assert found == near(drawn([1.0, 2.0]) + drawn([6.0, 9.0, 12.0]) + drawn([4.0]))


@pytest.mark.parametrize("shrink", [1e-6, 1e16])
def test_shrinkage_may_be_any_number(tmp_path: Path, shrink: float) -> None:
    found = labelled(
        tmp_path, views([(1, 0, 1.0, 4.9), (2, 1, 3.0, 0.1)]), {"kind": "wtg", "buckets": SECONDS, "shrink": shrink}
    )
    assert found == near(gains([1.0, 3.0]))


def test_a_view_of_weeks_is_standardized(tmp_path: Path) -> None:
    """The square of its milliseconds is beyond 64 bits: a column of milliseconds may be called watch_s."""
    rows = [(1, 0, 1e7, 4.9), (1, 1, 3e7, 0.1), (2, 2, 6e7, 3.0)]
    found = labelled(tmp_path, views(rows), {"kind": "wtg", "buckets": SECONDS, "shrink": 0})
    assert found == near(gains([1e7, 3e7, 6e7]))


def test_one_view_or_equal_views_are_never_average_by_accident(tmp_path: Path) -> None:
    """Their bucket has no spread of its own: it is that of all views, and the mean is the bucket's."""
    rows = [(1, 0, 3.0, 1.0), (1, 1, 7.0, 11.0), (2, 2, 7.0, 11.0), (2, 3, 2.0, 21.0), (3, 4, 4.0, 21.0)]
    everything = statistics.variance([row[2] for row in rows])
    found = labelled(tmp_path, views(rows), {"kind": "wtg", "buckets": SECONDS, "shrink": 0})
    assert found == near([0.0, 0.0, 0.0] + gains([2.0, 4.0]))
    later = labelled(
        tmp_path / "later",
        views([*rows, (3, 0, 5.0, 1.0), (3, 1, 5.0, 100.0)], later=2),
        {"kind": "wtg", "buckets": SECONDS, "shrink": 0},
        split="validation",
    )
    overall = statistics.mean([row[2] for row in rows])
    assert later == near([(5.0 - 3.0) / math.sqrt(everything), (5.0 - overall) / math.sqrt(everything)])


def test_buckets_of_equal_frequency_never_part_equal_lengths(tmp_path: Path) -> None:
    # Twelve lengths, four buckets of three: but the fours straddle an edge, so they stay with the bucket they begin in.
    lengths = [1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]
    rows = [(n, n, float(n), length) for n, length in enumerate(lengths)]
    out = prepared(
        tmp_path, views(rows), labels={"it": {"kind": "wtg", "shrink": 0, "buckets": _equal(4)}}, target="it"
    )
    buckets = pq.read_table(out / "fitted" / "it.bucket.parquet").to_pylist()
    # before 1: 0 of 12 → 0; 2: 1·4/12 → 0; 4: 2·4/12 → 0; 7: 6·4/12 → 2; 8: 2; 9: 8·4/12 → 2; 10: 9·4/12 → 3; …
    assert [(row["bucket"], row["events"]) for row in buckets] == [(1000, 6), (7000, 3), (10000, 3)]
    found = {row["item_id"]: row["target"] for row in rows_of(out)}
    groups = [range(6), range(6, 9), range(9, 12)]
    assert [found[n] for n in range(12)] == near([z for group in groups for z in gains([float(n) for n in group])])


def test_lengths_that_training_does_not_hold_fall_between_its_edges(tmp_path: Path) -> None:
    rows = [(n, n, float(n % 5), length) for n, length in enumerate([10.0, 10.0, 20.0, 20.0, 30.0, 30.0])]
    later = [(9, n, 1.0, length) for n, length in enumerate([5.0, 19.9, 20.1, 99.0])]
    found = labelled(
        tmp_path, views(rows + later, later=4), {"kind": "wtg", "shrink": 0, "buckets": _equal(3)}, split="validation"
    )
    # Buckets hold the watch times [0, 1], [2, 3], [4, 0]; below the first edge is the first bucket.
    expected = [gains([0.0, 1.0])[1]] * 2 + [
        (1 - 2.5) / statistics.stdev([2.0, 3.0]),
        (1 - 2) / statistics.stdev([4.0, 0.0]),
    ]
    assert found == near(expected)


def _equal(n: int) -> dict[str, Any]:
    return {"kind": "equal_frequency", "n": n}


def test_gain_against_the_item_falls_back_to_creator_length_and_all(tmp_path: Path) -> None:
    creators = {0: 7, 1: 7, 2: 7, 3: 8, 4: 9}
    rows = [
        (1, 0, 2.0, 10.0),
        (2, 0, 6.0, 10.0),
        (3, 0, 4.0, 10.0),
        (1, 1, 1.0, 10.0),
        (2, 1, 9.0, 10.0),
        (1, 3, 5.0, 10.0),
    ]
    later = [(1, 2, 3.0, 10.0), (2, 4, 3.0, 10.0), (3, 4, 3.0, 99.0)]
    log = views(rows + later, later=3, creator=[creators[row[1]] for row in rows + later])
    label = {"kind": "wtg", "shrink": 1, "buckets": {"kind": "item", "creator": "creator", "n": 1}}
    everything = [row[2] for row in rows]  # one bucket of length, so that bucket and all are the same
    mean, variance = statistics.mean(everything), statistics.variance(everything)

    def drawn(values: list[float], towards: tuple[float, float], k: float = 1.0) -> tuple[float, float]:
        n = len(values)
        if n == 0:
            return towards
        spread = (n * statistics.variance(values) + k * towards[1]) / (n + k) if n > 1 else towards[1]
        return (n * statistics.mean(values) + k * towards[0]) / (n + k), spread

    bucket = drawn(everything, (mean, variance))
    creator = drawn([2.0, 6.0, 4.0, 1.0, 9.0], bucket)
    of_item = {0: drawn([2.0, 6.0, 4.0], creator), 1: drawn([1.0, 9.0], creator), 3: drawn([5.0], drawn([5.0], bucket))}
    train = labelled(tmp_path, log, label)
    assert train == near([gains([row[2]], mean=of_item[row[1]][0], variance=of_item[row[1]][1])[0] for row in rows])
    unseen = labelled(tmp_path / "later", log, label, split="validation")
    # An unseen item is like its creator's; one of an unseen creator like its bucket's; the last bucket has no end.
    assert unseen == near([gains([3.0], mean=m, variance=v)[0] for m, v in (creator, bucket, bucket)])


def test_against_the_item_every_items_mean_is_zero(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [(n, n % 5, float(w), 10.0 + n % 5) for n, w in enumerate(draw.integers(1, 60, 200))]
    label = {"kind": "wtg", "shrink": 0, "buckets": {"kind": "item", "n": 3}}
    out = prepared(tmp_path, views(rows), labels={"it": label}, target="it")
    found = [(row["item_id"], row["target"]) for row in rows_of(out)]
    for item in range(5):
        assert statistics.mean(target for id_, target in found if id_ == item) == pytest.approx(0, abs=1e-6)


# --- quantiles --------------------------------------------------------------------------------------------------------


def test_quantile_is_the_mid_rank_among_views_of_like_length(tmp_path: Path) -> None:
    short, long_ = [1.0, 2.0, 2.0, 5.0], [10.0, 20.0]
    rows = [(n, n, w, 10.0) for n, w in enumerate(short)] + [(n, n + 4, w, 60.0) for n, w in enumerate(long_)]
    later = [(8, 0, 0.5, 10.0), (8, 1, 2.0, 10.0), (8, 2, 3.0, 5.0), (8, 3, 9.0, 59.0), (8, 4, 15.0, 60.0)]
    # Two thirds of the views are short: of two buckets, the first ends where they do.
    log, label = views(rows + later, later=5), {"kind": "quantile", "n": 2}
    assert labelled(tmp_path, log, label) == near([0.5 / 4, 2 / 4, 2 / 4, 3.5 / 4, 0.5 / 2, 1.5 / 2])
    # 59 s lies below the edge at 60 s, so its 9 s are more than all short ones; 15 s lie between 10 s and 20 s.
    unseen = labelled(tmp_path / "later", log, label, split="validation")
    assert unseen == near([0.0, 2 / 4, 3 / 4, 1.0, 1 / 2])


def test_the_saved_quantiles_are_those_of_training_views(tmp_path: Path) -> None:
    rows = [(n, n, w, 10.0) for n, w in enumerate([1.0, 2.0, 2.0, 5.0])] + [(8, 0, 3.0, 10.0)]
    out = prepared(tmp_path, views(rows, later=1), labels={"it": {"kind": "quantile", "n": 1}})
    saved = pq.read_table(out / "fitted" / "it.quantile.parquet").to_pylist()
    assert [tuple(row.values()) for row in saved] == [(10000, 1000, 0.125), (10000, 2000, 0.5), (10000, 5000, 0.875)]


# --- skipped sooner than others do ------------------------------------------------------------------------------------


def test_below_the_items_training_average(tmp_path: Path) -> None:
    rows = [(1, 0, 1.0, 9.0), (2, 0, 2.0, 9.0), (3, 0, 3.0, 9.0), (1, 1, 0.1, 9.0), (2, 1, 0.1, 9.0), (3, 1, 0.1, 9.0)]
    later = [(1, 0, 1.999, 9.0), (2, 0, 2.0, 9.0), (3, 2, 0.0, 9.0), (4, 0, None, 9.0)]
    log = views(rows + later, later=4)
    out = prepared(tmp_path, log, labels={"sooner": {"kind": "below_mean"}}, negative="sooner")
    events = sorted((row for row in events_of(out) if row["item_id"] != 100), key=lambda row: row["at"])
    below = [row["is_negative"] for row in events]
    # The first row is liked, so positive. Three times .1 is not below .1, whatever doubles say of the sum.
    assert below == [False, False, False, False, False, False, True, False, False, False]


# --- nothing fitted knows the future ----------------------------------------------------------------------------------

LABELS: dict[str, AnyLabel] = {
    "second": WatchTimeGain(kind="wtg", buckets={"kind": "width", "seconds": 1}),
    "equal": WatchTimeGain(kind="wtg", buckets={"kind": "equal_frequency", "n": 5}),
    "item": WatchTimeGain(kind="wtg", buckets={"kind": "item", "creator": "creator", "n": 5}),
    "rank": WatchQuantile(kind="quantile", n=5),
    "sooner": BelowMean(kind="below_mean"),
    "part": Completion(kind="pcc"),
    "long_one": LongView(kind="long_view"),
}


def a_log(seed: int, *, later_seed: int) -> pa.Table:
    """600 views over six days; those of the judged days, the last two, are drawn with another seed."""
    parts = []
    for days, source, size in ((range(4), seed, 400), (range(4, 6), later_seed, 200)):
        draw = np.random.default_rng(source)
        at = FIRST_MS + draw.integers(days[0] * DAY_MS, (days[-1] + 1) * DAY_MS, size)
        item = draw.integers(0, 30, size)
        length = draw.integers(0, 60, size) + 0.5 * (item % 2)
        columns = {
            "user_id": draw.integers(0, 20, size), "item_id": item, "at": at, "liked": draw.random(size) < 0.3,
            "watch_s": draw.integers(0, 90_000, size) / 1000, "length_s": length, "creator": item % 7,
        }  # fmt: skip
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def test_changing_every_judged_row_changes_nothing_that_was_fitted(tmp_path: Path) -> None:
    parts = {
        "labels": {name: label.model_dump() for name, label in LABELS.items()},
        "weight": "LEAST(SQRT(watch_s), 8)",
        "target": "equal + item + rank",
        "counters": {"item_id": {"rates": {"like": "liked"}, "means": {"watch": "watch_s"}}},
        "filters": [{"kind": "users", "max_percentile": 90}, {"kind": "items", "min_events": 3}],
        "positive_share": 0.5,
    }
    folders = [prepared(tmp_path / str(n), a_log(0, later_seed=n), **parts) for n in (1, 2)]
    fitted = [path.relative_to(folders[0]) for path in sorted((folders[0] / "fitted").iterdir())]
    assert {path.name.split(".")[0] for path in fitted} == {"second", "equal", "item", "rank", "sooner"}
    fitted += [Path("counters/priors.json"), Path("rows/split=train/shard=0.parquet")]
    first, second = (
        [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in fitted] for folder in folders
    )
    assert first == second
    judged = [(folder / "rows" / "split=test" / "shard=0.parquet").read_bytes() for folder in folders]
    assert judged[0] != judged[1]
    assert rows_of(folders[0], "test")[0]["at"] >= TEST
