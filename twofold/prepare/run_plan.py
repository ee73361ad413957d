"""The prepare stage: runs the plan on an engine, counts the funnel, and refuses a log that cannot be trained on."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twofold.errors import DataError
from twofold.local_time import local_ms
from twofold.prepare.check import check_recipe
from twofold.prepare.counter_sums import counted_columns
from twofold.prepare.duckdb_connection import open_duckdb, quote_name
from twofold.prepare.duckdb_engine import Engine, OpenEngine, duckdb_engine
from twofold.prepare.funnel import FunnelLine, count_funnel, split_lines
from twofold.prepare.label_report import describe_labels
from twofold.prepare.last_days import outside_the_log, window_in_words
from twofold.prepare.odd_values import (
    check_bare_conditions,
    check_ids_match,
    check_texts_as_numbers,
    oddities_sql,
)
from twofold.prepare.plan import Plan, build_plan, repeats_sql
from twofold.prepare.sources import INTEGERS, Source, finite_sql, table_paths
from twofold.progress import progress_bar
from twofold.recipe.data import Table
from twofold.recipe.features import AgeFeature
from twofold.recipe.schema import Recipe
from twofold.recipe.split import TemporalSplit
from twofold.render.numbers import plural
from twofold.run_folder import write_json
from twofold.tables import DAY_MS, OUTCOME, SPLITS, Json, Split

# Number of events per shard of users, about: a sort of them fits in memory, so time grows linearly with the log.
EVENTS_PER_SHARD: Final = 4_000_000
# 1973 in milliseconds, and 1973 in microseconds (the year 5138 in milliseconds): every log lies between them.
_FIRST_MS: Final = 10**11
_LAST_MS: Final = 10**14
_PER_SECOND: Final = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
_CHUNK_ROWS: Final = 100_000  # item vectors copied at once


def prepare(
    recipe: Recipe, out: Path, open_engine: OpenEngine = duckdb_engine, *, source: Source | None = None
) -> dict[str, Json]:
    """Writes rows, events, items, users, fitted tables, counters and funnel.json; returns facts for the manifest.

    `source` is what `check_recipe` returned; `None` means that the recipe is checked here. DataError if the recipe
    cannot be trained on the log; OSError with ENOSPC if the disk is full.
    """
    source, paths = source or check_recipe(recipe), table_paths(recipe.data)
    with open_engine(source, out) as engine:
        _check_unique(engine.query(repeats_sql("item_id", "source_items")), "item_id", paths["items"])
        _check_unique(engine.query(repeats_sql("user_id", "source_users")), "user_id", paths["users"])
        rows = int(engine.query('SELECT COUNT(*) FROM "source_events"')[0][0])
        plan = build_plan(recipe.prepare, source, shards=math.ceil(rows / EVENTS_PER_SHARD))
        facts, funnel = _run(plan, recipe, engine, out, source=source)
        odd_rows = _count_oddities(source, engine)
    _write_vectors(recipe.data, source, out)
    write_json(out / "funnel.json", [asdict(line) for line in funnel])
    splits = {
        split: {"rows": line.rows, "users": line.users, "items": line.items, "positive_share": line.positive_share}
        for split, line in split_lines(funnel).items()
    }
    labels = describe_labels(recipe.prepare, out / "rows" / "split=validation")
    return {
        "splits": splits,
        **facts,
        "odd_rows": odd_rows,
        "labels": labels,
        "shards": plan.shards.count,
        "funnel": [asdict(line) for line in funnel],
    }


def _run(
    plan: Plan, recipe: Recipe, engine: Engine, out: Path, *, source: Source
) -> tuple[dict[str, Json], list[FunnelLine]]:
    total = len(plan.steps) + 1 + len(plan.outputs) + plan.shards.count * len(plan.shards.outputs)
    with progress_bar("prepare", total=total, unit="statements") as advance:

        def write(path: str, sql: str) -> None:
            target = out.resolve() / path
            target.parent.mkdir(parents=True, exist_ok=True)
            engine.export(sql, target)
            advance(1, path)

        check_texts_as_numbers(recipe.prepare, source, engine.query)
        for step in plan.steps:
            engine.create(step)
            advance(1, step.name)
        check_bare_conditions(recipe.prepare, source, engine.query)
        check_ids_match(source, table_paths(recipe.data), engine.query)
        funnel = count_funnel(plan.counts, engine.query)
        first_at, last_at = engine.query('SELECT MIN("at"), MAX("at") FROM "labelled" WHERE "is_kept"')[0]
        advance(1, "funnel")
        _check_usable(recipe, funnel, first_at, last_at)
        _check_relevant(recipe, plan, engine)
        _check_uploads(recipe, source, engine, first_at)
        facts = {"first_at": first_at, "last_at": last_at}
        if recipe.prepare.weight is not None:
            facts["mean_weight"] = _mean_weight(recipe, plan, engine)
        _check_outcomes(recipe, plan, engine)
        _check_target(recipe, plan, engine)
        engine.export_shards(plan.shards, out.resolve(), lambda path: advance(1, path))
        for output in plan.outputs:
            write(output.path, output.sql)
    if plan.priors:
        write_json(out / "counters" / "priors.json", _priors(plan, recipe, engine))
    return facts, funnel


def _priors(plan: Plan, recipe: Recipe, engine: Engine) -> Json:
    """Returns sums over the training window, by key and name."""
    sums = {key: engine.query(sql)[0] for key, sql in plan.priors.items()}
    counters = recipe.prepare.counters
    return {
        key: {name: int(value) for name, value in zip(counted_columns(counters[key]), row, strict=True)}
        for key, row in sums.items()
    }


def _count_oddities(source: Source, engine: Engine) -> dict[str, Json]:
    """Returns the number of rows of each oddity that the log has."""
    found: dict[str, int] = {}
    for names, sql in oddities_sql(source):
        found |= {name: int(rows) for name, rows in zip(names, engine.query(sql)[0], strict=True)}
    return {name: rows for name, rows in found.items() if rows}


def _mean_weight(recipe: Recipe, plan: Plan, engine: Engine) -> float:
    """Returns the mean weight of the training rows, by which the loss divides weights.

    DataError if a row that is trained on, with `train.refit` those of validation too, has a weight that is none.
    """
    # Not one statement for both windows: Sail has no IN (SELECT …) within OR or CASE.
    ends = 'SELECT MIN("weight"), MAX("weight"), AVG(COALESCE("weight", 0)) FROM "labelled" WHERE'
    least, most, mean = engine.query(f"{ends} {plan.train_condition}")[0]
    if recipe.train.refit and least is not None:
        low, high, _ = engine.query(f'{ends} {plan.evaluated_condition} AND "split" = 1')[0]
        least, most = (least, most) if low is None else (min(least, low), max(most, high))
    if not mean or least < 0 or not math.isfinite(most):
        raise DataError(
            f"prepare.weight, {recipe.prepare.weight}, gives training rows weights of {least} to {most}, {mean} on "
            f"average. A weight is a finite number of 0 or more, and some must be more."
        )
    return float(mean)


def _check_outcomes(recipe: Recipe, plan: Plan, engine: Engine) -> None:
    """Raises DataError if the outcome of a head is constant in the training rows, or no number from 0 to 1 in a row of
    a window.
    """
    for name, rule in recipe.prepare.outcomes.items():
        ends = f'SELECT MIN("{OUTCOME}{name}"), MAX("{OUTCOME}{name}") FROM "labelled" WHERE'
        least, most = engine.query(f"{ends} {plan.train_condition}")[0]
        where = "training rows"
        is_right = least is not None and 0 <= least < most <= 1
        if is_right:
            low, high = engine.query(f"{ends} {plan.evaluated_condition}")[0]
            if low is not None and not 0 <= low <= high <= 1:
                least, most, where, is_right = min(least, low), max(most, high), "rows of validation or test", False
        if not is_right:
            found = "NULL in all training rows" if least is None else f"{least:g} to {most:g} in {where}"
            raise DataError(
                f"prepare.outcomes.{name}, {rule}, is {found}. An outcome must lie between 0 and 1 and take more "
                f"than one value: write a condition, such as liked, or a share, such as LEAST(watch_s / length_s, 1); "
                f"or delete it."
            )


def _check_target(recipe: Recipe, plan: Plan, engine: Engine) -> None:
    """Raises DataError if the target of a row of a window is infinite or NaN, as EXP(1000) and its quotients are."""
    if recipe.prepare.target is None:
        return
    odd, count = f"NOT {finite_sql(quote_name('target'))}", 0
    for rows in (plan.train_condition, plan.evaluated_condition):
        count += int(engine.query(f'SELECT COUNT(*) FROM "labelled" WHERE {rows} AND {odd}')[0][0])
    if count:
        raise DataError(
            f"prepare.target, {recipe.prepare.target}, is infinite or NaN in {plural(count, 'row')} of the windows. "
            f"Limit it, as LEAST(…, 100)."
        )


# --- refusals of a log ------------------------------------------------------------------------------------------------


def _check_unique(repeats: Sequence[Any], key: str, path: Path) -> None:
    if repeats:
        listed = ", ".join(f"{'NULL' if value is None else value} in {rows} rows" for value, rows in repeats)
        raise DataError(
            f"{path}: {key} holds {listed}; each id must occur in exactly one row, and none may be NULL or empty."
        )


def _check_usable(recipe: Recipe, funnel: list[FunnelLine], first_at: int | None, last_at: int | None) -> None:
    """Raises DataError if the log cannot be trained or evaluated on, before anything is written."""
    log = table_paths(recipe.data)["events"]
    if first_at is None or last_at is None:
        raise DataError(f"{log}: {_why_no_events(recipe, funnel)}")
    # With `last_n` only the order matters, so any number is a valid time.
    for at in (first_at, last_at) if isinstance(recipe.prepare.split, TemporalSplit) else ():
        if not _FIRST_MS <= at < _LAST_MS:
            unit = "seconds" if at < _FIRST_MS else "microseconds or nanoseconds"
            raise DataError(
                f"{log}: at contains {at}, which looks like {unit}; it must be UTC milliseconds, such as "
                f"1650816000000. Set data.at_unit, convert the column, or delete rows whose time is not known."
            )
    lines = split_lines(funnel)
    for split, line in lines.items():
        if line.positives == 0:
            raise DataError(f"{log}: {_why_no_positives(recipe, split, funnel, first_at, last_at)}")
    for kind, count in (("user", lines["train"].users), ("item", lines["train"].items)):
        if count < 2:
            raise DataError(
                f"{log}: the training rows contain only one {kind}; a model needs at least two. "
                f"Use a log of more {kind}s, a longer prepare.split.train or weaker prepare.filters."
            )


def _check_relevant(recipe: Recipe, plan: Plan, engine: Engine) -> None:
    """Raises DataError if no event of an evaluated window is relevant, before hours of training."""
    rule = recipe.prepare.relevant
    for index, split in enumerate(SPLITS):
        if rule is None or split == "train":
            continue
        where = f'{plan.evaluated_condition} AND "is_relevant" AND "split" = {index}'
        sql = f'SELECT COUNT(*) FROM "labelled" WHERE {where}'
        if not engine.query(sql)[0][0]:
            sample, step = "", "make the window longer"
            if recipe.prepare.sample is not None:
                sample, step = " of the sampled users", "take a larger sample or a longer window"
            raise DataError(
                f"none of the events{sample} in prepare.split.{split}, {recipe.prepare.dates(split)}, is relevant by "
                f"prepare.relevant, {rule}. Weaken the rule, or {step}."
            )


def _check_uploads(recipe: Recipe, source: Source, engine: Engine, first_at: int) -> None:
    """Raises DataError if the recipe reads the age of items, and none was uploaded between 1973 and 5138."""
    reads_age = any(isinstance(each, AgeFeature) for _, features in recipe.read_features() for each in features.item)
    if not reads_age or not _FIRST_MS <= first_at < _LAST_MS:
        return
    latest = engine.query('SELECT MAX("uploaded_at") FROM "source_items"')[0][0]
    if latest is None or _FIRST_MS <= latest < _LAST_MS:
        return
    data = recipe.data
    unit = data.uploaded_at_unit or data.at_unit
    raw = latest * _PER_SECOND[unit] // 1000
    is_integer = source.items.own[data.columns.get("uploaded_at", "uploaded_at")] in INTEGERS
    likely = [each for each, per_s in _PER_SECOND.items() if _FIRST_MS <= raw * 1000 // per_s < _LAST_MS]
    instead = f"Write data.uploaded_at_unit: {likely[0]}" if is_integer and likely else "Convert the column"
    raise DataError(
        f"{data.items or data.events}: the latest uploaded_at is {raw if is_integer else latest}, which is no upload "
        f"time in {unit if is_integer else 'ms'} (at begins with {first_at} ms). {instead}; an unknown "
        f"upload time is NULL."
    )


def _why_no_events(recipe: Recipe, funnel: list[FunnelLine]) -> str:
    with_keys = next(line for line in funnel if line.name == "with user, item and time")
    if with_keys.rows == 0:
        return f"in each of its {funnel[0].rows:,} rows user_id, item_id or at is NULL. Fill them."
    return f"prepare.where, {recipe.prepare.where}, is true for none of its {with_keys.rows:,} rows. Weaken it."


def _why_no_positives(recipe: Recipe, split: Split, funnel: list[FunnelLine], first_at: int, last_at: int) -> str:
    """Explains why a window has no positive rows, and what to change."""
    days = recipe.prepare.split
    described = f"prepare.split.{split}, each user's last events"
    unfiltered = next(line for line in funnel if line.name == f"{split} window")
    if isinstance(days, TemporalSplit):
        described = window_in_words(recipe.prepare, split)
        if unfiltered.rows == 0:
            local = local_ms(np.array([first_at, last_at]), recipe.prepare.time_zone)
            return outside_the_log(recipe.prepare, split, *(local // DAY_MS).astype("datetime64[D]").tolist())
    elif unfiltered.rows == 0:
        return f"no user has an event for {described} and one left to train on. Use fewer of them."
    if unfiltered.positives == 0:
        return (
            f"none of the {unfiltered.rows:,} events in {described} is positive by prepare.positive, "
            f"{recipe.prepare.positive}. Weaken the rule, or look for NULL in the columns it reads."
        )
    cause, number = unfiltered, -1
    if split == "train":
        train = [line for line in funnel if line.scope == "train"]
        cause = next(line for line in train if line.positives == 0)
        number = train.index(cause) - 1
    filters = recipe.prepare.filters
    is_filter = 0 <= number < len(filters) * recipe.prepare.filter_rounds
    where = f"prepare.filters.{number % len(filters)} ({cause.name})" if is_filter else "prepare.sample"
    return f"{where} leaves none of the {unfiltered.positives:,} positives in {described}. Weaken it."


# --- vectors of items -------------------------------------------------------------------------------------------------


def _write_vectors(data: Table, source: Source, out: Path) -> None:
    """Writes vectors/NAME.npy for each of `data.vectors`: float32, one row per item of items.parquet, or NaN.

    DuckDB reads the ids, whichever engine prepares: it keeps the order of the rows. DataError if a file is not a matrix
    of numbers with one row per row of the items file.
    """
    if not data.vectors:
        return
    with open_duckdb(None, files=source.items.files) as connection:
        ids = connection.sql(f'SELECT "item_id" FROM ({source.items.select_sql()})').to_arrow_table()["item_id"]
    prepared = pq.read_table(out / "items.parquet", columns=["item_id"])["item_id"].combine_chunks()
    position = pc.index_in(prepared, value_set=ids.combine_chunks().cast(prepared.type))
    has_vector, rows = np.asarray(pc.is_valid(position)), np.asarray(pc.fill_null(position, 0))
    (out / "vectors").mkdir(exist_ok=True)
    for name, path in data.vectors.items():
        vectors = _matrix(path, f"data.vectors.{name}", rows=len(ids))
        shape = (len(prepared), vectors.shape[1])
        written = np.lib.format.open_memmap(out / "vectors" / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        for first in range(0, len(prepared), _CHUNK_ROWS):
            part = slice(first, first + _CHUNK_ROWS)
            written[part] = np.where(has_vector[part, None], vectors[rows[part]], np.nan)
        written.flush()


def _matrix(path: Path, field: str, *, rows: int) -> np.ndarray:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{field}: {path} cannot be read as .npy: {error}. Write it with numpy.save.") from None
    if not isinstance(vectors, np.ndarray):
        raise DataError(
            f"{field}: {path} is an archive of arrays ({', '.join(vectors.files)}). Write the one of the vectors with "
            f"numpy.save."
        )
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != rows:
        raise DataError(
            f"{field}: {path} holds {vectors.dtype} of shape {vectors.shape}; it must be floats of shape ({rows:,}, "
            f"length), one row for each row of the items file."
        )
    return np.asanyarray(vectors)
