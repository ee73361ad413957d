"""Generated logs, prepared and recomputed by an independent oracle in pandas: labels, splits, filters, histories,
counters, and the independence of all from the order of the rows.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worlds import DAY_MS, FIRST_MS, world_recipe, write_world
from twofold.prepare.run_plan import prepare
from twofold.recipe.schema import Recipe
from twofold.tables import HOUR_MS, SPLITS

LAST_N = {"kind": "last_n", "test": 1, "validation": 1}
PREPARE: Mapping[str, Any] = {
    "labels": {
        "share": {"kind": "pcc"},
        "long": {"kind": "long_view"},
        "below": {"kind": "below_mean"},
        "gain": {"kind": "wtg", "buckets": {"kind": "width", "seconds": 10}, "shrink": 0},
        "quantile": {"kind": "quantile", "n": 1},
    },
    "positive": "watch_s >= 18 OR liked",
    "negative": "below",
    "weight": "LEAST(SQRT(watch_s), 2)",
    "target": "LEAST(GREATEST(gain, -1), 1)",
    "outcomes": {"share": "share", "long": "long", "below": "below", "quantile": "quantile"},
    "counters": {"item_id": {"rates": {"like": "liked"}, "means": {"watch": "watch_s"}}},
}
NUMBERS = ["weight", "target", *(f"outcome_{name}" for name in PREPARE["outcomes"])]
FILTERS = [{"kind": "items", "min_events": 2}, {"kind": "users", "min_events": 2, "min_positives": 1}]

# Two users and items that every log has, so that none is refused, whatever is drawn and filtered.
ALWAYS = [
    (user, item, 2 * day + item - 100, True, watch, 20.0)
    for user, watch in ((8, 25.0), (9, 5.0))
    for item in (100, 101)
    for day in range(6)
]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, None]),
        st.sampled_from([0, 1, 2, 3, None]),
        st.sampled_from([*range(14), None]),  # half days: some are outside the windows
        st.sampled_from([True, False, None]),
        st.sampled_from([0.0, 1.5, 7.0, 18.0, 25.0, math.nan, math.inf, None]),
        st.sampled_from([-1.0, 0.0, 7.0, 18.0, 25.0, math.nan, None]),
    ),
    max_size=40,
)


def log_of(events: list[tuple[Any, ...]]) -> pa.Table:
    user, item, half_day, liked, watch, length = zip(*events, *ALWAYS, strict=True)
    at = [None if half is None else FIRST_MS + half * DAY_MS // 2 for half in half_day]
    whole = {"user_id": user, "item_id": item, "at": at}
    return pa.table(
        {name: pa.array(values, pa.int64()) for name, values in whole.items()}
        | {"liked": pa.array(liked, pa.bool_())}
        | {name: pa.array(values, pa.float64()) for name, values in (("watch_s", watch), ("length_s", length))}
    )


# --- the oracle -------------------------------------------------------------------------------------------------------


def oracle(log: pa.Table, *, is_last_n: bool, filters: bool, rounds: int) -> pd.DataFrame:
    """Returns the usable events with their split (0, 1, 2; NaN outside), labels and history lengths."""
    rows = log.to_pandas().replace([np.inf, -np.inf], np.nan).drop_duplicates()
    rows = rows.dropna(subset=["user_id", "item_id", "at"]).reset_index(drop=True)
    rows["liked"] = rows["liked"].astype("object")
    rows["split"] = last_split(rows) if is_last_n else (rows["at"] - FIRST_MS).floordiv(DAY_MS).map(
        {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 2})  # fmt: skip
    rows = rows.assign(**labels(rows, rows["split"] == 0))
    rows["positive"] = (rows["watch_s"] >= 18) | rows["liked"].eq(True)
    rows["negative"] = rows["outcome_below"].eq(1) & ~rows["positive"]
    rows["weight"] = np.minimum(np.sqrt(rows["watch_s"]), 2).fillna(0)
    rows["target"] = rows["gain"].clip(-1, 1)
    for name in ("positive", "negative"):
        earlier = (rows["at"].to_numpy() < rows["at"].to_numpy()[:, None]) & rows[name].to_numpy()
        same_user = rows["user_id"].to_numpy() == rows["user_id"].to_numpy()[:, None]
        rows[f"{name}s_before"] = (earlier & same_user).sum(axis=1)
    train = rows[rows["split"] == 0]
    for _ in range(rounds if filters else 0):
        train = train[train.groupby("item_id")["at"].transform("size") >= 2]
        by_user = train.groupby("user_id")
        train = train[(by_user["at"].transform("size") >= 2) & (by_user["positive"].transform("sum") >= 1)]
    return rows[(rows["split"] != 0) | rows.index.isin(train.index)]


def last_split(rows: pd.DataFrame) -> pd.Series:
    keys = ["at", "item_id", "liked", "watch_s", "length_s"]
    order = rows.assign(liked=rows["liked"].map({True: 1.0, False: 0.0})).sort_values(
        keys, ascending=False, na_position="last")  # fmt: skip
    rank, size = order.groupby("user_id").cumcount(), order.groupby("user_id")["at"].transform("size")
    return pd.Series(np.select([size <= 2, rank == 0, rank == 1], [0, 2, 1], 0), order.index).reindex(rows.index)


def labels(rows: pd.DataFrame, is_train: pd.Series) -> dict[str, pd.Series]:
    watch, length = rows["watch_s"], rows["length_s"].where(rows["length_s"] > 0)
    fitted = rows[is_train & watch.notna() & length.notna()]
    bucket = (rows["length_s"] // 10).where(length.notna())
    mean = bucket.map(fitted["watch_s"].groupby(bucket).mean()).fillna(fitted["watch_s"].mean())
    spread = bucket.map(fitted["watch_s"].groupby(bucket).std())
    spread = spread.where(spread > 0).fillna(fitted["watch_s"].std())  # of one event, or of no variance: of all
    known = watch.notna() & length.notna()
    ranks = fitted["watch_s"]
    quantile = watch.map(lambda value: ((ranks < value).mean() + (ranks <= value).mean()) / 2)
    item_mean = rows["item_id"].map(rows[is_train].groupby("item_id")["watch_s"].mean())
    return {
        "outcome_share": np.minimum(watch, length) / length,
        "outcome_long": (watch >= np.minimum(length, 18)).astype(float).where(known),
        "outcome_below": (watch < item_mean).astype(float).where(watch.notna() & item_mean.notna()),
        "outcome_quantile": quantile.where(known),
        "gain": ((watch - mean) / spread).where(known),
    }


# --- the comparison ---------------------------------------------------------------------------------------------------


def recipe_of(folder: Path, log: pa.Table, *, is_last_n: bool, filters: bool, rounds: int) -> Recipe:
    recipe = world_recipe(write_world(folder, log))
    parts = dict(PREPARE) | ({"split": LAST_N} if is_last_n else {})
    parts |= {"filters": FILTERS, "filter_rounds": rounds} if filters else {}
    return world_recipe(recipe.data.model_dump(), {"prepare": recipe.prepare.model_dump() | parts})


def assert_equals_the_oracle(events: list[tuple[Any, ...]], **how: Any) -> None:
    log = log_of(events)
    with TemporaryDirectory() as name:
        out = Path(name) / "prepare"
        out.mkdir()
        facts = prepare(recipe_of(Path(name), log, **how), out)
        expected = oracle(log, **how)
        for split, number in zip(SPLITS, range(3), strict=True):
            found = pq.read_table(out / "rows" / f"split={split}" / "shard=0.parquet", partitioning=None).to_pandas()
            assert_same(expected[expected["split"] == number].rename(columns={"positive": "label"}), found)
            assert facts["splits"][split]["rows"] == len(found)
        counted = pq.read_table(out / "counters" / "by=item_id.parquet").to_pandas()
        pd.testing.assert_frame_equal(counted, counters(log, **how), check_dtype=False)


def assert_same(expected: pd.DataFrame, found: pd.DataFrame) -> None:
    keys = ["user_id", "at", "item_id", "label", "positives_before", "negatives_before"]
    columns = [*keys, *NUMBERS]
    both = [each[columns].astype(float).round(4).sort_values(columns, ignore_index=True) for each in (expected, found)]
    pd.testing.assert_frame_equal(*both, rtol=1e-4, atol=2e-4)


def counters(log: pa.Table, **how: Any) -> pd.DataFrame:
    """Returns events, likes and thousandths of seconds by item and hour, of all usable events before the filters."""
    rows = oracle(log, **how | {"filters": False})
    rows = rows.assign(key=rows["item_id"], hour=rows["at"] // HOUR_MS, like=rows["liked"].eq(True))
    rows["watch"] = np.floor(rows["watch_s"].fillna(0) * 1000 + 0.5)
    sums = {"events": ("at", "size"), "rate_like": ("like", "sum"), "mean_watch": ("watch", "sum")}
    return rows.groupby(["key", "hour"], as_index=False).agg(**sums)


@settings(max_examples=5)
@given(EVENTS, st.booleans(), st.booleans(), st.sampled_from([1, 3]))
def test_a_generated_log_is_prepared_as_the_oracle_says(
    events: list[tuple[Any, ...]], is_last_n: bool, filters: bool, rounds: int
) -> None:
    assert_equals_the_oracle(events, is_last_n=is_last_n, filters=filters, rounds=rounds)


@pytest.mark.slow
@settings(max_examples=200)
@given(EVENTS, st.booleans(), st.booleans(), st.sampled_from([1, 2, 5]))
def test_many_generated_logs_are_prepared_as_the_oracle_says(
    events: list[tuple[Any, ...]], is_last_n: bool, filters: bool, rounds: int
) -> None:
    assert_equals_the_oracle(events, is_last_n=is_last_n, filters=filters, rounds=rounds)


@settings(max_examples=2)
@given(EVENTS, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_byte(events: list[tuple[Any, ...]], is_last_n: bool, draw: Any) -> None:
    log, how = log_of(events), {"is_last_n": is_last_n, "filters": True, "rounds": 1}
    order = draw.sample(range(len(log)), len(log))
    written = []
    for table in (log, log.take(pa.array(order))):
        with TemporaryDirectory() as name:
            out = Path(name) / "prepare"
            out.mkdir()
            prepare(recipe_of(Path(name), table, **how), out)
            written.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert written[0] == written[1]
