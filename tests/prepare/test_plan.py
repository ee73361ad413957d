"""The plan, run on tables of a dozen rows whose right answer is worked out by hand."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prepare.tables import (
    JUDGED,
    TEST,
    THREE_USERS,
    TRAIN,
    VALIDATION,
    column,
    events_of,
    funnel_of,
    log_of,
    prepared,
    rows_of,
)
from tests.worlds import DAY_MS, FIRST, FIRST_MS, SPLIT, world_recipe, write_world
from twofold.errors import DataError
from twofold.prepare import run_plan as stage
from twofold.prepare.run_plan import prepare

# --- rules ------------------------------------------------------------------------------------------------------------


def test_a_rule_that_is_null_does_not_hold(tmp_path: Path) -> None:
    liked = [True, False, None, None]
    watched = [0.1, 0.9, 0.9, None]
    rows = [(user, item, TRAIN, is_liked) for user, item, is_liked in zip((1, 1, 2, 2), range(4), liked, strict=True)]
    out = prepared(tmp_path, log_of(rows, watched=watched), positive="liked OR watched > 0.8")
    assert column(rows_of(out), "item_id", "label") == [(0, True), (1, True), (2, True), (3, False)]
    # NULL OR TRUE is TRUE; NULL OR NULL is NULL, so not positive, so, by default, negative
    assert column(events_of(out)[:4], "is_positive", "is_negative") == [(True, False)] * 3 + [(False, True)]


def test_negatives_are_what_their_rule_says_and_never_positive(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN, False), (1, 2, TRAIN, False), (2, 3, TRAIN, True)]
    out = prepared(tmp_path, log_of(rows, skipped=[True, True, None, False]), negative="skipped")
    assert column(events_of(out)[:4], "is_positive", "is_negative") == [
        (True, False),  # both rules claim it
        (False, True),
        (False, False),  # neither does
        (True, False),
    ]


def test_a_length_of_zero_divides_to_null_and_is_counted(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN, False), (2, 2, TRAIN, False)]
    log = log_of(rows, watch_s=[5.0, 5.0, 30.0], length_s=[0.0, 10.0, 20.0])
    recipe = world_recipe(write_world(tmp_path / "log", log))
    recipe = world_recipe(
        recipe.data.model_dump(),
        {"prepare": recipe.prepare.model_dump() | {"positive": "liked AND item_id = 100 OR watch_s / length_s > 0.4"}},
    )
    facts = prepare(recipe, tmp_path)
    assert column(rows_of(tmp_path), "label") == [False, True, True]
    assert facts["odd_rows"] == {"length of 0 or less": 1, "watched longer than long": 2}


def test_outcomes_are_kept_of_every_row_and_null_is_not_known(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN, False), (2, 2, TRAIN, None), (2, 3, TRAIN, False)]
    log = log_of(rows, share=[0.25, 0.375, 0.5, None])
    outcomes = {"liking": "liked", "much": "share > 0.4 OR liked", "share": "share"}
    out = prepared(tmp_path, log, outcomes=outcomes, positive="item_id IN (0, 100)")
    names = [f"outcome_{name}" for name in outcomes]
    assert column(rows_of(out), *names) == [(1, 1, 0.25), (0, 0, 0.375), (None, 1, 0.5), (0, None, None)]
    assert column(rows_of(out, "test"), *names) == [(1, 1, None)] * 2  # whose share nobody wrote down


@pytest.mark.parametrize(
    ("rule", "found"),
    [("share * 3", "is 0.75 to 3 in training rows"), ("CASE WHEN liked THEN 1 ELSE 1 END", "is 1 to 1 in training"),
     ("share / 0", "is NULL in all training rows")],
)  # fmt: skip
def test_an_outcome_that_no_head_can_learn_is_refused(tmp_path: Path, rule: str, found: str) -> None:
    rows = [(1, 0, TRAIN, True), (2, 1, TRAIN, False)]
    with pytest.raises(
        DataError, match=rf"prepare.outcomes.odd, .*{found}.* must lie between 0 and 1 and take more than one"
    ):
        prepared(tmp_path, log_of(rows, share=[0.25, 1.0]), outcomes={"odd": rule})


# --- duplicates and NULLs ---------------------------------------------------------------------------------------------


def test_exact_duplicates_are_dropped_and_near_ones_are_not(tmp_path: Path) -> None:
    rows = [
        (1, 0, TRAIN, True),
        (1, 0, TRAIN, True),  # the same in every column
        (1, 0, TRAIN, True),  # differs in a column that no rule reads
        (1, 0, TRAIN + 1, True),
        (2, 1, TRAIN, False),
    ]
    out = prepared(tmp_path, log_of(rows, tab=[1, 1, 2, 1, None]))
    assert column(rows_of(out), "user_id", "at") == [(1, TRAIN), (1, TRAIN), (1, TRAIN + 1), (2, TRAIN)]
    lines = {line.name: line for line in funnel_of(out)}
    assert lines["without exact duplicates"].removed == 1
    assert lines["log"].positives - lines["without exact duplicates"].positives == 1


def test_rows_without_user_item_or_time_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        (1, 0, TRAIN, True),
        (None, 0, TRAIN, True),
        (1, None, TRAIN, True),
        (1, 0, None, True),
        (2, 1, TRAIN, True),
    ]
    out = prepared(tmp_path, log_of(rows))
    assert column(rows_of(out), "user_id", "item_id") == [(1, 0), (2, 1)]
    lines = {line.name: line for line in funnel_of(out)}
    assert lines["with user, item and time"].removed == 3
    assert lines["with user, item and time"].rows == len(rows) + len(JUDGED) - 3


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_are_half_open_days_of_the_recipes_zone(tmp_path: Path) -> None:
    beijing = 8 * 3600 * 1000  # its days begin eight hours before those of UTC
    rows = [
        (1, 0, TRAIN - beijing - 1, True),
        (1, 1, TRAIN - beijing, True),
        (2, 2, VALIDATION - beijing - 1, True),
        (2, 3, VALIDATION - beijing, True),
        (2, 4, TEST - beijing - 1, True),
        (2, 5, TEST - beijing, True),
        (2, 6, TEST - beijing + DAY_MS, True),
    ]
    days = {name: {"first": date(2024, 1, first), "end": date(2024, 1, end)} for name, first, end in WINDOWS}
    out = prepared(tmp_path, log_of(rows), time_zone="Asia/Shanghai", split={"kind": "temporal"} | days)
    assert column(rows_of(out), "item_id") == [1, 2]
    assert column(rows_of(out, "validation"), "item_id") == [3, 4, 100, 100]
    assert column(rows_of(out, "test"), "item_id") == [5, 100, 100]
    # what lies outside the windows is remembered, and taught and judged by in none
    assert column(events_of(out)[:7], "item_id") == [0, 1, 2, 3, 4, 5, 6]
    assert {line.name: line.rows for line in funnel_of(out)}["outside the windows"] == 2


WINDOWS = [("train", 1, 5), ("validation", 5, 6), ("test", 6, 7)]


def test_days_between_windows_give_no_examples_and_are_in_histories(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (2, 1, TRAIN, True), (1, 1, TRAIN + 3 * DAY_MS, True), (1, 2, VALIDATION + 1, True)]
    split = SPLIT | {"train": {"first": FIRST, "end": FIRST + timedelta(days=2)}}
    out = prepared(tmp_path, log_of(rows), split=split)
    assert column(rows_of(out), "user_id", "item_id") == [(1, 0), (2, 1)]
    assert column(rows_of(out, "validation"), "user_id", "positives_before") == [(1, 2), (8, 0), (9, 0)]


def test_estimated_times_teach_and_are_never_judged(tmp_path: Path) -> None:
    rows = [
        (1, 0, TRAIN, True),
        (1, 1, TRAIN + 1, True),
        (1, 2, VALIDATION, True),
        (2, 3, TEST, True),
        (2, 4, TRAIN, True),
    ]
    out = prepared(tmp_path, log_of(rows, at_is_estimated=[True, False, True, True, None]))
    assert column(rows_of(out), "item_id", "at_is_estimated") == [(0, True), (1, False), (4, False)]
    assert column(rows_of(out, "validation"), "item_id") == [100, 100]
    assert column(rows_of(out, "test"), "item_id") == [100, 100]
    # nor do they enter a history that would be asked for within those days: their true place in it is not known
    assert 2 not in column(events_of(out), "item_id")
    assert {line.name: line.removed for line in funnel_of(out)}["no estimated time in validation or test"] == 2


# --- histories --------------------------------------------------------------------------------------------------------


def test_a_history_is_strictly_before_and_equal_times_do_not_see_one_another(tmp_path: Path) -> None:
    rows = [
        (1, 3, TRAIN + 20, True),  # out of order on purpose
        (1, 0, TRAIN, True),
        (1, 1, TRAIN + 10, True),
        (1, 2, TRAIN + 10, False),
        (1, 4, TRAIN + 20, True),
        (2, 0, TRAIN + 15, False),  # another user's events are no part of it
        (1, 5, VALIDATION, False),
    ]
    out = prepared(tmp_path, log_of(rows))
    counts = column(rows_of(out), "item_id", "positives_before", "negatives_before")
    assert counts == [(0, 0, 0), (1, 1, 0), (2, 1, 0), (3, 2, 1), (4, 2, 1), (0, 0, 0)]
    assert column(rows_of(out, "validation"), "item_id", "positives_before", "negatives_before")[0] == (5, 4, 1)


def test_files_are_sorted_and_of_the_declared_types(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [(int(u), int(i), TRAIN + int(t), bool(i % 2)) for u, i, t in draw.integers(0, 20, size=(300, 3))]
    out = prepared(tmp_path, log_of(rows))
    for found in (rows_of(out), events_of(out)):
        keys = column(found, "user_id", "at", "item_id")
        assert keys == sorted(keys)
    schema = pq.read_schema(out / "rows" / "split=train" / "shard=0.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "user_id": "int64",
        "item_id": "int64",
        "at": "int64",
        "label": "bool",
        "at_is_estimated": "bool",
        "weight": "float",
        "target": "float",
        "watch_s": "float",
        "length_s": "float",
        "positives_before": "int32",
        "negatives_before": "int32",
        "is_relevant": "bool",
    }


# --- items and users --------------------------------------------------------------------------------------------------


def test_items_are_those_of_their_table_and_those_of_the_log(tmp_path: Path) -> None:
    items = pa.table({"item_id": [7, 100, 0], "creator": ["x", None, "y"], "tags": [["a"], [], None]})
    out = prepared(tmp_path, log_of(THREE_USERS), items)
    assert pq.read_table(out / "items.parquet").to_pylist() == [
        {"item_id": 0, "creator": "y", "tags": None},
        {"item_id": 1, "creator": None, "tags": None},
        {"item_id": 2, "creator": None, "tags": None},
        {"item_id": 7, "creator": "x", "tags": ["a"]},
        {"item_id": 100, "creator": None, "tags": []},
    ]
    assert pq.read_table(out / "users.parquet").to_pylist() == [{"user_id": user} for user in (1, 2, 3, 8, 9)]


# --- point in time ----------------------------------------------------------------------------------------------------


def random_log(seed: int) -> pa.Table:
    """400 events of 12 users in all windows, many of them at equal times."""
    draw = np.random.default_rng(seed)
    at = FIRST_MS + draw.integers(0, 60, size=400) * (DAY_MS // 10)
    return pa.table(
        {
            "user_id": draw.integers(0, 12, size=400),
            "item_id": draw.integers(0, 30, size=400),
            "at": at,
            "liked": draw.random(400) < 0.4,
        }
    )


def test_changing_validation_and_test_changes_no_training_row(tmp_path: Path) -> None:
    log = random_log(7)
    is_judged = np.asarray(log["at"]) >= VALIDATION
    changed = log.set_column(3, "liked", pa.array(np.where(is_judged, ~np.asarray(log["liked"]), log["liked"])))
    changed = changed.set_column(1, "item_id", pa.array(np.asarray(log["item_id"]) + 1000 * is_judged))
    filters = [{"kind": "items", "min_events": 8}, {"kind": "users", "min_events": 5, "min_positives": 2}]
    kept, same = (prepared(tmp_path / str(n), table, filters=filters) for n, table in enumerate((log, changed)))
    path = Path("rows") / "split=train" / "shard=0.parquet"
    assert (kept / path).read_bytes() == (same / path).read_bytes()
    assert 0 < len(rows_of(kept)) < np.sum(~is_judged)


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 40])  # of 12 users: most of 40 shards have no user
def test_shards_hold_every_row_once_and_every_user_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    log = random_log(3)
    recipe = world_recipe(write_world(tmp_path, log))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    prepare(recipe, whole)
    monkeypatch.setattr(stage, "EVENTS_PER_SHARD", -(-len(log) // count))
    assert prepare(recipe, cut)["shards"] == count
    for part in ("events", "rows/split=train", "rows/split=test"):
        shards = [pq.read_table(path, partitioning=None).to_pylist() for path in sorted((cut / part).iterdir())]
        users = [{row["user_id"] for row in shard} for shard in shards]
        assert len(shards) == count
        assert sum(len(shard) for shard in users) == len(set.union(*users))
        rows = sorted((row for shard in shards for row in shard), key=str)
        assert rows == sorted(pq.read_table(whole / part, partitioning=None).to_pylist(), key=str)


def test_what_is_judged_may_differ_from_what_trains(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (2, 1, TRAIN, True), (1, 1, TEST, True), (1, 2, TEST, True)]
    relevant = "kind = 'buy' OR item_id = 100"
    out = prepared(tmp_path, log_of(rows, kind=["view", "view", "view", "buy"]), relevant=relevant)
    test = [row for row in rows_of(out, "test") if row["user_id"] == 1]
    assert column(test, "item_id", "label", "is_relevant") == [(1, True, False), (2, True, True)]
    with pytest.raises(
        DataError, match=r"none of the events in prepare\.split\.validation, .* relevant by prepare\.rel"
    ):
        prepared(tmp_path / "none", log_of(rows, kind=["view"] * 4), relevant="kind = 'sold'")
