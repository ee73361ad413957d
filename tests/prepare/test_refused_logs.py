"""Logs that cannot be prepared are refused, with what is wrong and what to do."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prepare.tables import TEST, TRAIN, VALIDATION, log_of
from tests.prepare.test_duckdb_engine import log, recipe_of
from tests.worlds import DAY_MS, FIRST_MS, world_recipe
from twofold.errors import DataError, RecipeError
from twofold.prepare import rule_types
from twofold.prepare.duckdb_engine import duckdb_engine
from twofold.prepare.run_plan import prepare

# --- what is refused of a log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "unit"), [(FIRST_MS // 1000, "seconds"), (FIRST_MS * 1000, "microseconds or nanoseconds"), (-1, "seconds")]
)
def test_times_of_another_unit_are_refused(tmp_path: Path, at: int, unit: str) -> None:
    message = rf"events\.parquet: at contains {at}, which looks like {unit}; it must be UTC milliseconds, such as 1650"
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(tmp_path, log(at=at)), tmp_path)


def test_windows_beside_the_log_are_told_its_days(tmp_path: Path) -> None:
    year = {name: {"first": f"2025-0{month}-01", "end": f"2025-0{month + 1}-01"} for name, month in MONTHS.items()}
    message = (
        r"no event is in prepare\.split\.train, 2025-01-01 to 2025-02-01 \(end excluded, days in Etc/GMT\+5\)\. "
        r"The log goes from 2023-12-31 to 2024-01-05: move the windows"
    )
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(tmp_path, log(), time_zone="Etc/GMT+5", split={"kind": "temporal"} | year), tmp_path)


MONTHS = {"train": 1, "validation": 2, "test": 3}


def test_an_empty_judged_window_is_refused(tmp_path: Path) -> None:
    events = log()
    early = events.filter(pa.array(np.asarray(events["at"]) < FIRST_MS + 5 * DAY_MS))
    with pytest.raises(DataError, match=r"no event is in prepare\.split\.test, 2024-01-06 to 2024-01-07"):
        prepare(recipe_of(tmp_path, early), tmp_path)


@pytest.mark.parametrize("liked", [False, None])
def test_a_log_without_positives_is_refused(tmp_path: Path, liked: bool | None) -> None:
    message = (
        r"none of the 48 events in prepare\.split\.train, .* is positive by prepare\.positive, liked\. Weaken the rule"
    )
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(tmp_path, log(liked=liked)), tmp_path)


def test_filters_that_leave_nothing_are_named(tmp_path: Path) -> None:
    filters = [{"kind": "items", "min_events": 2}, {"kind": "users", "min_events": 17}]
    message = r"prepare\.filters\.1 \(users: 17 or more events\) leaves none of the 24 positives in prepare\.split"
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(tmp_path, log(), filters=filters), tmp_path)


def test_one_user_or_one_item_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the training rows contain only one user; a model needs at least two"):
        prepare(recipe_of(tmp_path, log(users=1)), tmp_path)
    with pytest.raises(DataError, match=r"the training rows contain only one item; .* Use a log of more items"):
        prepare(recipe_of(tmp_path, log(items=1)), tmp_path)


def test_a_log_without_a_single_whole_row_is_refused(tmp_path: Path) -> None:
    events = log()
    nothing = events.set_column(0, "user_id", pa.nulls(events.num_rows, pa.int64()))
    with pytest.raises(DataError, match=r"events\.parquet: in each of its 72 rows user_id, item_id or at is NULL"):
        prepare(recipe_of(tmp_path, nothing), tmp_path)


def test_an_item_listed_twice_or_without_an_id_is_refused(tmp_path: Path) -> None:
    items = pa.table({"item_id": [0, 1, 1, None], "creator": ["a", "b", "c", "d"]})
    message = r"items\.parquet: item_id holds 1 in 2 rows, NULL in 1 rows; each id must occur in exactly one row"
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(tmp_path, log(), items), tmp_path)


def test_damage_inside_a_file_is_found_while_reading(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, log())
    path = tmp_path / "log" / "events.parquet"
    pq.write_table(log(users=300), path, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[100 : len(content) // 2] = np.random.default_rng(0).bytes(len(content) // 2 - 100)
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"reading .*events\.parquet failed: .*the file is damaged \(copy or export it again\)"
    ):
        prepare(recipe, tmp_path)


def test_a_value_of_another_type_late_in_a_csv_names_its_line(tmp_path: Path) -> None:
    lines = [f"{row % 7},{row % 11},{FIRST_MS + row},true" for row in range(30_000)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,at,liked", *lines, "ada,1,1,true"]))
    recipe = world_recipe({"kind": "table", "events": tmp_path / "log.csv"})
    with pytest.raises(
        DataError, match=r"reading .*log\.csv failed: .*Line: 30002.*ada.*does not have its column's type"
    ):
        prepare(recipe, tmp_path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"where": "user_id < 0"}, r"prepare\.where, user_id < 0, is true for none of its 72 rows\. Weaken it"),
        ({"weight": "0 - 1"}, r"prepare\.weight, 0 - 1, gives training rows weights of -1\.0 to -1\.0, "),
        (
            {"weight": "0"},
            r"gives training rows weights of 0\.0 to 0\.0, 0\.0 on average\. A weight is a finite number of 0",
        ),
        (
            {"split": {"kind": "last_n", "test": 50}},
            r"no user has an event for prepare\.split\.validation, each user's last events and one left to train on",
        ),
        (
            {"sample": {"users": 1e-9}},
            r"prepare\.sample leaves none of the 24 positives in prepare\.split\.train, 2024-01-01 to 2024-01-05",
        ),
    ],
)
def test_parts_that_leave_nothing_are_named(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(tmp_path, log(), **parts), tmp_path)


@pytest.mark.parametrize("side", ["items", "users"])
def test_a_table_none_of_whose_ids_is_in_the_log_is_refused(tmp_path: Path, side: str) -> None:
    """Texts that differ in case, or 007 beside 7: every attribute would be unknown, without a word."""
    key = f"{side[:-1]}_id"
    events = log_of([(1, 0, TRAIN, True), (2, 1, TRAIN, False)])
    events = events.set_column(
        events.schema.get_field_index(key), key, pa.array([f"a-{id_}" for id_ in events[key].to_pylist()])
    )
    recipe = recipe_of(tmp_path, events)
    for ids, is_refused in ((["A-8", "A-100"], True), (["A-1", "a-100", "a-8"], False)):
        path = tmp_path / f"{side}.parquet"
        pq.write_table(pa.table({key: ids}), path)
        named = recipe.model_copy(update={"data": recipe.data.model_copy(update={side: path})})
        message = (
            rf"{side}\.parquet: none of its ids is one of the events\. Its {key} are such as 'A-100', those of .*'a-"
        )
        with pytest.raises(DataError, match=message) if is_refused else nullcontext():
            prepare(named, tmp_path)


@pytest.mark.parametrize(
    ("parts", "watched"),
    [
        ({"weight": "EXP(watch_s)"}, 200.0),
        ({"counters": {"item_id": {"means": {"watch": "watch_s * 1e14"}}}}, 200.0),
        ({"labels": {"share": {"kind": "pcc"}}, "target": "share"}, 1e17),
    ],
)
def test_a_number_that_is_too_large_is_called_so(tmp_path: Path, parts: dict[str, Any], watched: float) -> None:
    rows = [(1, 0, TRAIN, True), (2, 1, TRAIN, False)]
    recipe = recipe_of(tmp_path, log_of(rows, watch_s=[1.0, watched], length_s=[9.0, 9.0]), **parts)
    with pytest.raises(
        DataError, match=r"out of range.*\. A number is too large for what is done with it: limit it in"
    ):
        prepare(recipe, tmp_path)


LATE = [(1, 5, VALIDATION, True)]


@pytest.mark.parametrize(
    ("parts", "refit", "message"),
    [
        ({"target": "POWER(watch_s, -0.5)"}, False, r"is infinite or NaN in 1 row of the windows\. Limit it"),
        ({"outcomes": {"x": "4 - watch_s"}}, False, r"x, 4 - watch_s, is 0 to 4 in rows of validation or test\. An "),
        ({"weight": "watch_s - 1"}, False, None),
        (
            {"weight": "watch_s - 1"},
            True,
            r"gives training rows weights of -1\.0 to 3\.0, 2\.4375 on average\. A weight",
        ),
        ({"weight": "POWER(watch_s, -1)"}, True, r"gives training rows weights of 0\.25 to inf, "),
    ],
)
def test_rows_of_validation_are_checked_like_those_that_are_trained_on(
    tmp_path: Path, parts: dict[str, Any], refit: bool, message: str | None
) -> None:
    """Training watches 3 to 4 seconds; the row of validation 0, and a refit trains on it."""
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN + 1, False), (2, 2, TRAIN + 2, True), (2, 3, TRAIN + 3, False), *LATE]
    recipe = recipe_of(tmp_path, log_of(rows, watch_s=[3.5, 3.25, 3.0, 4.0, 0.0], length_s=[9.0] * 5), **parts)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"refit": refit})})
    with nullcontext() if message is None else pytest.raises(DataError, match=message):
        prepare(recipe, tmp_path)


def test_a_sample_without_any_relevant_event_is_refused(tmp_path: Path) -> None:
    rows = [(user, item, TRAIN + item, True) for user in range(40) for item in range(3)]
    likes = [(user, 9, at, True) for user in range(40) for at in (VALIDATION, TEST)]
    bought = [user == 3 for user, *_ in rows + likes]
    recipe = recipe_of(tmp_path, log_of(rows + likes, bought=bought), relevant="bought", sample={"users": 0.5})
    with pytest.raises(DataError, match=r"^none of the events of the sampled users in .* or take a larger sample or"):
        prepare(recipe, tmp_path)


def test_a_memory_limit_that_is_none_is_refused_and_a_small_one_spills(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, log())
    with pytest.raises(RecipeError, match=r"--memory lots cannot be read: .*an amount such as 2GB, or a share"):
        prepare(recipe, tmp_path / "out", partial(duckdb_engine, memory="lots"))
    facts = prepare(recipe, tmp_path / "out", partial(duckdb_engine, memory="100MB"))
    assert facts["splits"]["train"]["rows"] == 48


def test_text_read_as_a_number_is_refused_with_the_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_types, "_ROWS_READ", 0)  # the text is in a later row than those that are looked at
    with pytest.raises(DataError, match=r"a title.*a rule reads text as a number"):
        prepare(recipe_of(tmp_path, log(), positive="title > 1 OR liked"), tmp_path)
