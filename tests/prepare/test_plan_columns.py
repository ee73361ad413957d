"""Derived columns, weights and counters of a plan, and that no row knows its future."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.prepare.tables import (
    TRAIN,
    column,
    events_of,
    funnel_of,
    log_of,
    prepared,
    rows_of,
)
from tests.worlds import DAY_MS, FIRST_MS, world_recipe, write_world
from twofold.prepare.run_plan import prepare
from twofold.tables import HOUR_MS

# --- columns of the recipe's own --------------------------------------------------------------------------------------


def test_derived_columns_read_those_above_them_and_rules_read_them(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN + 1, False), (2, 2, TRAIN + 2, False)]
    log = log_of(rows, play_time_ms=[1000, 9000, 4000], duration_ms=[10_000, 10_000, 0])
    derive = {"watched": "play_time_ms / 1000", "length": "duration_ms / 1000", "fraction": "watched / length"}
    out = prepared(tmp_path, log, derive=derive, positive="fraction > 0.8 OR item_id = 100", weight="watched")
    assert column(rows_of(out), "item_id", "label", "weight") == [
        (0, False, 1.0),
        (1, True, 9.0),
        (2, False, 4.0),
    ]


def test_a_rule_may_read_the_item_and_the_user(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN + 1, True), (2, 1, TRAIN + 2, False), (2, 7, TRAIN + 3, True)]
    items = pa.table({"item_id": [0, 1, 100], "language": ["hi", "ta", "hi"], "creator": [5, 5, 6]})
    out = prepared(tmp_path, log_of(rows), items, where="language = 'hi' OR item_id = 1", weight="creator + 1")
    # Item 7 is in no table: it has no language, so it is not taken.
    assert column(rows_of(out), "user_id", "item_id", "weight") == [(1, 0, 6.0), (1, 1, 6.0), (2, 1, 6.0)]
    assert column(pq.read_table(out / "items.parquet").to_pylist(), "item_id") == [0, 1, 100]
    assert {line.name: line.removed for line in funnel_of(out)}["taken by prepare.where"] == 1


def test_a_column_of_items_and_users_is_the_items(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN + 1, True), (2, 1, TRAIN + 2, False), (2, 0, TRAIN + 3, True)]
    data = write_world(tmp_path, log_of(rows), pa.table({"item_id": [0, 1, 100], "language": ["hi", "ta", "hi"]}))
    pq.write_table(pa.table({"user_id": [1, 2], "language": ["ta", "hi"]}), tmp_path / "users.parquet")
    recipe = world_recipe(data | {"users": tmp_path / "users.parquet"})
    prepare_tree = recipe.prepare.model_dump() | {"weight": "CASE WHEN language = 'hi' THEN 2 ELSE 1 END"}
    prepare(world_recipe(recipe.data.model_dump(), {"prepare": prepare_tree}), tmp_path / "out")
    assert column(rows_of(tmp_path / "out"), "item_id", "weight") == [(0, 2.0), (1, 1.0), (1, 1.0), (0, 2.0)]


def test_weights_as_a_table_and_as_a_capped_root(tmp_path: Path) -> None:
    """The weights of the experiment log: 1.2 watched, 1.5 liked, 2.0 shared, 2.5 any two, 3 all, a negative 1."""
    watched, liked, shared = "watch_s / length_s > 0.8", "liked", "shared"
    table = f"""CASE WHEN ({watched}) AND {liked} AND {shared} THEN 3
        WHEN ({watched}) AND {liked} OR ({watched}) AND {shared} OR {liked} AND {shared} THEN 2.5
        WHEN {shared} THEN 2.0 WHEN {liked} THEN 1.5 WHEN {watched} THEN 1.2 ELSE 1 END"""
    flags = [(w, like, share) for w in (9.0, 1.0) for like in (True, False) for share in (True, False)]
    rows = [(n, n, TRAIN + n, like) for n, (_, like, _) in enumerate(flags)]
    log = log_of(rows, watch_s=[flag[0] for flag in flags], length_s=[10.0] * 8, shared=[flag[2] for flag in flags])
    out = prepared(tmp_path, log, weight=table)
    assert column(rows_of(out), "weight") == pytest.approx([3, 2.5, 2.5, 1.2, 2.5, 1.5, 2.0, 1])
    log = log_of(rows, watch_s=[0.0, 1.0, 4.0, 64.0, 65.0, 600.0, None, 9.0])
    out = prepared(tmp_path / "root", log, weight="LEAST(SQRT(watch_s), 8)")
    # The LEAST of an engine ignores NULL, so what was not timed would weigh 8, more than any other event.
    assert column(rows_of(out), "weight") == [0, 1, 2, 8, 8, 8, 0, 3]


# --- counters ---------------------------------------------------------------------------------------------------------


def test_counters_are_sums_by_key_and_hour(tmp_path: Path) -> None:
    hour = 3_600_000
    at = [TRAIN, TRAIN + hour - 1, TRAIN + hour, TRAIN + 5 * hour, TRAIN]
    rows = [(user, item, at_, liked) for user, item, at_, liked in zip(
        (1, 2, 1, 2, 1), (0, 0, 0, 0, 1), at, (True, False, False, True, False), strict=True)]  # fmt: skip
    items = pa.table({"item_id": [0, 1, 100], "creator": ["a", "a", None]})
    counters = {
        "item_id": {"rates": {"like": "liked"}, "means": {"watch": "watch_s"}},
        "creator": {"rates": {"like": "liked"}},
    }
    log = log_of(rows, watch_s=[1.5, None, 0.0004, 2.0, 0.0005])
    out = prepared(tmp_path, log, items, counters=counters)
    first = TRAIN // hour
    found = pq.read_table(out / "counters" / "by=item_id.parquet").to_pylist()
    assert [tuple(row.values()) for row in found if row["key"] != 100] == [
        (0, first, 2, 1, 1500), (0, first + 1, 1, 0, 0), (0, first + 5, 1, 1, 2000), (1, first, 1, 0, 1),
    ]  # fmt: skip
    found = pq.read_table(out / "counters" / "by=creator.parquet").to_pylist()
    assert [tuple(row.values()) for row in found] == [
        ("a", first, 3, 1),
        ("a", first + 1, 1, 0),
        ("a", first + 5, 1, 1),
    ]
    priors = json.loads((out / "counters" / "priors.json").read_text())
    assert priors == {
        "item_id": {"events": 5, "rate_like": 2, "mean_watch": 3501},
        "creator": {"events": 5, "rate_like": 2},
    }


def test_counters_leave_out_events_whose_time_is_not_known(tmp_path: Path) -> None:
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN + 1, True), (2, 0, TRAIN + 2, True)]
    log = log_of(rows, at_is_estimated=[True, False, False])
    out = prepared(tmp_path, log, counters={"user_id": {"rates": {"like": "liked"}}})
    found = pq.read_table(out / "counters" / "by=user_id.parquet").to_pylist()
    assert {row["key"]: row["events"] for row in found if row["key"] < 8} == {1: 1, 2: 1}


# --- the future -------------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), share=st.floats(0.1, 0.9))
def test_rewriting_the_future_changes_no_row_before_it(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
) -> None:
    """Labels and weights that are rules of the event itself, histories and counters before t see nothing from t on."""
    draw = np.random.default_rng(seed)
    size = 300
    at = np.sort(FIRST_MS + draw.integers(0, 6 * DAY_MS, size))
    log = {"user_id": draw.integers(0, 9, size), "item_id": draw.integers(0, 9, size), "at": at,
           "liked": draw.random(size) < 0.4, "watch_s": draw.random(size)}  # fmt: skip
    moment = int(at[int(share * size)])
    later = at >= moment
    changed = {name: np.where(later, draw.permutation(values), values) for name, values in log.items() if name != "at"}
    parts = {"counters": {"item_id": {"rates": {"like": "liked"}}}, "weight": "watch_s", "negative": "watch_s < 0.5"}
    outs = [prepared(tmp_path_factory.mktemp("log"), pa.table(each), **parts) for each in (log, log | changed)]
    hour = moment // HOUR_MS
    for of in (events_of, rows_of):
        before, after = ([row for row in of(out) if row["at"] < moment] for out in outs)
        assert before == after
    hours = [
        [row for row in pq.read_table(out / "counters" / "by=item_id.parquet").to_pylist() if row["hour"] < hour]
        for out in outs
    ]
    assert hours[0] == hours[1]
