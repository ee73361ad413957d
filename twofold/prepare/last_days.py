"""Dates of windows that a recipe counts back from the log's end."""

from datetime import date, timedelta
from pathlib import Path
from typing import Final

import duckdb
import numpy as np

from twofold.errors import DataError
from twofold.local_time import local_ms
from twofold.prepare.check import check_recipe
from twofold.prepare.duckdb_connection import first_line, open_duckdb
from twofold.prepare.duckdb_engine import unreadable
from twofold.prepare.funnel import HAS_KEYS
from twofold.prepare.plan import used_columns
from twofold.prepare.sources import open_source
from twofold.prepare.taken_rows import taken_sql
from twofold.recipe.prepare import Prepare
from twofold.recipe.schema import Recipe
from twofold.recipe.split import LastDays, TemporalSplit, Window
from twofold.tables import DAY_MS, END_S, FIRST_S, SPLITS, Split

_EPOCH: Final = date(1970, 1, 1).toordinal()


def with_dates(recipe: Recipe) -> Recipe:
    """Returns the recipe with the dates of its windows, which follow from the first and last event of its log.

    A recipe whose split has another kind is returned unchanged, and its log is not read. DataError if the log has no
    event or too few days.
    """
    split = recipe.prepare.split
    if not isinstance(split, LastDays):
        return recipe
    first_ms, last_ms = _first_and_last(recipe)
    check_times(first_ms, last_ms, log=recipe.data.events, column=recipe.data.columns.get("at", "at"))
    first_day, last_day = _days(recipe, first_ms, last_ms)
    end = last_day + timedelta(days=1 - split.skip)
    test, validation = end - timedelta(days=split.test), end - timedelta(days=split.test + split.validation)
    first = first_day if split.train is None else validation - timedelta(days=split.train)
    if first >= validation or validation < first_day:
        raise DataError(
            f"{recipe.data.events}: its days, {first_day} to {last_day} in {recipe.prepare.time_zone}, are too few for "
            f"prepare.split: {split.test} to test, {split.validation} to validate and at least one to train on, after "
            f"{split.skip} left out. Use fewer days, or kind: last_n."
        )
    days = TemporalSplit(
        kind="temporal",
        train=Window(first=max(first, first_day), end=validation),
        validation=Window(first=validation, end=test),
        test=Window(first=test, end=end),
    )
    return recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"split": days})})


def check_windows(recipe: Recipe) -> None:
    """Raises DataError if a window of days has none of the days of the log, of which the first and last are read."""
    split = recipe.prepare.split
    if isinstance(split, TemporalSplit):
        first, last = _days(recipe, *_first_and_last(recipe))
        for name in SPLITS:
            if getattr(split, name).first > last or getattr(split, name).end <= first:
                raise DataError(f"{recipe.data.events}: {outside_the_log(recipe.prepare, name, first, last)}")


def outside_the_log(prepare: Prepare, split: Split, first: date, last: date) -> str:
    """Returns the sentence about a window that no event of a log is in, whose first and last day are given."""
    return (
        f"no event is in {window_in_words(prepare, split)}. The log goes from {first} to {last}: move the windows into "
        f"it."
    )


def window_in_words(prepare: Prepare, split: Split) -> str:
    """Returns the field, the days and the time zone of a window of days."""
    window = getattr(prepare.split, split)
    return f"prepare.split.{split}, {window.first} to {window.end} (end excluded, days in {prepare.time_zone})"


def check_times(first_ms: int, last_ms: int, *, log: Path, column: str) -> None:
    """Raises DataError if the first or the last time of a log is outside 1995 to 2099: it stands for an unknown one."""
    outside = [at for at in (first_ms, last_ms) if not FIRST_S * 1000 <= at < END_S * 1000]
    if outside:
        unit = " If it is not such a value alone, write the unit of the times as data.at_unit." if outside[1:] else ""
        raise DataError(
            f"{log}: {column} is {np.datetime64(outside[0], 'ms')} UTC in some row, and no log has events before 1995 "
            f"or after 2099. Leave the time of such rows empty (NULL), and they are left out.{unit}"
        )


def _first_and_last(recipe: Recipe) -> tuple[int, int]:
    """Returns the times of the first and the last event that `prepare.where` takes."""
    prepare = recipe.prepare
    # A rule is checked before it is run; without one, the log is read by `open_source` alone.
    source = open_source(recipe.data) if prepare.where is None else check_recipe(recipe)
    events, taken = f'({source.events.select_sql()}) AS "log"', "TRUE"
    if prepare.where is not None:
        events, taken = taken_sql(prepare, source, used_columns(prepare), events), '"_tf_is_taken"'
    sql = f'SELECT MIN("at"), MAX("at") FROM {events} WHERE {HAS_KEYS} AND {taken}'
    with open_duckdb(None, files=source.files) as connection:
        try:
            for side in ("items", "users"):
                connection.execute(f'CREATE VIEW "source_{side}" AS {source.tables[side].select_sql()}')
            found = connection.execute(sql).fetchone()
        except duckdb.Error as error:
            raise unreadable(source, first_line(error)) from error
    if found is None or found[0] is None:
        if prepare.where is not None:
            raise DataError(f"{recipe.data.events}: prepare.where, {prepare.where}, takes no event. Weaken it.")
        raise DataError(f"{recipe.data.events}: in every row user_id, item_id or at is NULL. Fill them.")
    return found[0], found[1]


def _days(recipe: Recipe, first_ms: int, last_ms: int) -> tuple[date, date]:
    """Returns the local days of two times; those that a date cannot hold are the nearest that it can."""
    days = local_ms(np.array([first_ms, last_ms], np.int64), recipe.prepare.time_zone) // DAY_MS
    first, last = (date.fromordinal(min(max(day + _EPOCH, 1), date.max.toordinal())) for day in days.tolist())
    return first, last
