"""Windows that are counted back from the log's end, and tables in memory."""

from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.worlds import DAY_MS, FIRST_MS, world_recipe, write_world
from twofold.errors import DataError, RecipeError
from twofold.prepare.check import check_recipe
from twofold.prepare.frames import as_arrow, with_tables
from twofold.prepare.last_days import with_dates
from twofold.recipe.schema import Recipe

HOUR_MS = DAY_MS // 24


def recipe_of(folder: Path, *, days: int, **split: Any) -> Recipe:
    """A recipe over a log of an event every hour, with a split of kind last_days."""
    at = [FIRST_MS + hour * HOUR_MS for hour in range(days * 24)]
    log = pa.table({"user_id": [hour % 5 for hour in range(days * 24)], "item_id": [1] * len(at), "at": at})
    data = write_world(folder, log.append_column("liked", pa.array([True] * len(at))))
    prepare = {"split": {"kind": "last_days"} | split, "positive": "liked"}
    return world_recipe(data, {"prepare": prepare})


def dates(recipe: Recipe) -> list[str]:
    return [recipe.prepare.dates(split) for split in ("train", "validation", "test")]


def test_the_last_day_tests_and_the_windows_move_with_the_log(tmp_path: Path) -> None:
    first = with_dates(recipe_of(tmp_path / "a", days=6))
    later = with_dates(recipe_of(tmp_path / "b", days=7))
    assert first.prepare.split.test.end - first.prepare.split.train.first == pd.Timedelta(days=6)
    assert later.prepare.split.validation == first.prepare.split.test
    assert with_dates(first) is first


def test_days_are_skipped_and_training_may_be_short(tmp_path: Path) -> None:
    plain = with_dates(recipe_of(tmp_path / "a", days=9)).prepare.split
    split = with_dates(recipe_of(tmp_path / "b", days=9, test=2, validation=1, train=3, skip=1)).prepare.split
    assert split.test.end == plain.test.first
    assert [(w.end - w.first).days for w in (split.train, split.validation, split.test)] == [3, 1, 2]


@pytest.mark.parametrize("where", ["NOT COALESCE(is_bot, FALSE)", "stock > 0", "twice > 1"])
def test_days_are_counted_from_the_last_event_that_is_taken(tmp_path: Path, where: str) -> None:
    """A bot that clicks on something sold out, a year later."""
    recipe = recipe_of(tmp_path, days=6)
    log = pq.read_table(recipe.data.events)
    late = pa.table({"user_id": [9], "item_id": [2], "at": [FIRST_MS + 400 * DAY_MS], "liked": [True]})
    is_bot = pa.array([None] * len(log) + [True])
    pq.write_table(pa.concat_tables([log, late]).append_column("is_bot", is_bot), recipe.data.events)
    pq.write_table(pa.table({"item_id": [1, 2], "stock": [1, 0]}), tmp_path / "items.parquet")
    parts = {"where": where, "derive": {"twice": "2 * stock"}}
    data = recipe.data.model_copy(update={"items": tmp_path / "items.parquet"})
    prepare = recipe.prepare.model_copy(update=parts)
    found = with_dates(recipe.model_copy(update={"data": data, "prepare": prepare}))
    assert found.prepare.split == with_dates(recipe_of(tmp_path / "plain", days=6)).prepare.split


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("user_id > 99", DataError, r"prepare\.where, user_id > 99, takes no event\. Weaken it"),
        ("usr_id > 99", RecipeError, r"prepare\.where reads `usr_id`, which does not exist"),
    ],
)
def test_a_condition_that_takes_no_event_has_no_days(
    tmp_path: Path, where: str, error: type[Exception], message: str
) -> None:
    recipe = recipe_of(tmp_path, days=6)
    prepare = recipe.prepare.model_copy(update={"where": where})
    with pytest.raises(error, match=message):
        with_dates(recipe.model_copy(update={"prepare": prepare}))


def test_a_log_of_too_few_days_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"are too few for prepare\.split: 2 to test, 1 to validate and at least one"):
        with_dates(recipe_of(tmp_path, days=3, test=2))


def test_dates_as_times_have_no_time_zone(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, days=6)
    table = pq.read_table(recipe.data.events)
    days = table["at"].cast(pa.timestamp("ms")).cast(pa.date32())
    pq.write_table(table.set_column(table.column_names.index("at"), "at", days), recipe.data.events)
    check_recipe(recipe)
    abroad = recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"time_zone": "Asia/Tokyo"})})
    with pytest.raises(RecipeError, match=r"holds dates, which begin at midnight UTC.* Write time_zone: UTC"):
        check_recipe(abroad)


def test_tables_in_memory_are_written_for_the_run(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "log", days=6)
    table = pq.read_table(recipe.data.events)
    frame = table.to_pandas().set_index("at", drop=False)
    relation = duckdb.from_arrow(table)
    for number, events in enumerate((table, frame, pl.from_arrow(table), relation)):
        own = with_tables(recipe, {"events": events, "items": None}, tmp_path / str(number))
        assert own.data.events == tmp_path / str(number) / "events.parquet"
        assert pq.read_table(own.data.events).to_pylist() == table.to_pylist()
    assert with_tables(recipe, {"events": str(recipe.data.events)}, tmp_path / "x").data.events == recipe.data.events
    with pytest.raises(DataError, match=r"events is a int, which cannot be read as a table.* Pass a path, or a table"):
        as_arrow(7, "events")
