"""The stage: the plan, run on an engine; what every step left; and refusals of a log that cannot teach what is
asked.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from twofold.errors import DataError
from twofold.prepare.check import check_recipe
from twofold.prepare.duckdb_engine import Engine, OpenEngine, duckdb_engine
from twofold.prepare.funnel import FunnelLine, count_funnel, split_lines
from twofold.prepare.label_report import describe_labels
from twofold.prepare.plan import Plan, build_plan, counted_columns, oddities_sql, repeats_sql
from twofold.prepare.sources import Source, table_paths
from twofold.prepare.vectors import write_vectors
from twofold.progress import progress_bar
from twofold.recipe.prepare import TemporalSplit
from twofold.recipe.schema import Recipe
from twofold.run_folder import write_json
from twofold.tables import OUTCOME, Json, Split

# Users are cut into shards of about so many events: a sort of them fits in memory, so time grows as the log does.
EVENTS_A_SHARD: Final = 8_000_000
# 1973 in milliseconds, and 1973 in microseconds: no log is older, and none reaches the year 5138.
_FIRST_MS: Final = 10**11
_LAST_MS: Final = 10**14


def prepare(
    recipe: Recipe, out: Path, open_engine: OpenEngine = duckdb_engine, *, source: Source | None = None
) -> dict[str, Json]:
    """Writes rows, events, items, users, what was fitted and counted, and funnel.json; returns facts for the manifest.

    `source` is what `check_recipe` returned; `None` means that the recipe is checked here. DataError if the log cannot
    teach what the recipe asks; OSError with ENOSPC if the disk is full.
    """
    source, paths = source or check_recipe(recipe), table_paths(recipe.data)
    with open_engine(source, out) as engine:
        _refuse_repeats(engine.ask(repeats_sql("item_id", "source_items")), "item_id", paths["items"])
        _refuse_repeats(engine.ask(repeats_sql("user_id", "source_users")), "user_id", paths["users"])
        rows = int(engine.ask('SELECT COUNT(*) FROM "source_events"')[0][0])
        plan = build_plan(recipe.prepare, source, shards=math.ceil(rows / EVENTS_A_SHARD))
        facts, funnel = _run(plan, recipe, engine, out)
        odd_rows = {name: int(engine.ask(sql)[0][0]) for name, sql in oddities_sql(source).items()}
    write_vectors(recipe.data, source, out)
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
        "shards": len(plan.shards),
        "funnel": [asdict(line) for line in funnel],
    }


def _run(plan: Plan, recipe: Recipe, engine: Engine, out: Path) -> tuple[dict[str, Json], list[FunnelLine]]:
    total = len(plan.steps) + 1 + len(plan.outputs) + sum(1 + len(shard.outputs) for shard in plan.shards)
    with progress_bar("prepare", total=total, unit="statements") as advance:

        def write(path: str, sql: str) -> None:
            target = out.resolve() / path
            target.parent.mkdir(parents=True, exist_ok=True)
            engine.write(sql, target)
            advance(1, path)

        for step in plan.steps:
            engine.make(step)
            advance(1, step.name)
        funnel = count_funnel(plan.counts, engine.ask)
        first_at, last_at = engine.ask('SELECT MIN("at"), MAX("at") FROM "labelled" WHERE "is_kept"')[0]
        advance(1, "funnel")
        _refuse_unusable(recipe, funnel, first_at, last_at)
        facts = {"first_at": first_at, "last_at": last_at}
        if recipe.prepare.weight is not None:
            facts["mean_weight"] = _mean_weight(recipe, plan, engine)
        _refuse_outcomes(recipe, plan, engine)
        for shard in plan.shards:
            engine.make(shard.events)
            advance(1, shard.events.name)
            for output in shard.outputs:
                write(output.path, output.sql)
        for output in plan.outputs:
            write(output.path, output.sql)
    if plan.priors:
        write_json(out / "counters" / "priors.json", _priors(plan, recipe, engine))
    return facts, funnel


def _priors(plan: Plan, recipe: Recipe, engine: Engine) -> Json:
    """Sums over the training window, by key and name."""
    sums = {key: engine.ask(sql)[0] for key, sql in plan.priors.items()}
    counters = recipe.prepare.counters
    return {
        key: {name: int(value) for name, value in zip(counted_columns(counters[key]), row, strict=True)}
        for key, row in sums.items()
    }


def _mean_weight(recipe: Recipe, plan: Plan, engine: Engine) -> float:
    """Of the training rows: what a loss divides weights by."""
    sql = f'SELECT MIN("weight"), AVG(COALESCE("weight", 0)) FROM "labelled" WHERE {plan.of_train}'
    least, mean = engine.ask(sql)[0]
    if least is not None and least < 0 or not mean:
        raise DataError(
            f"prepare.weight, {recipe.prepare.weight}, gives training rows weights of {least} at least and {mean} on "
            f"average. A weight is 0 or more, and some must be more."
        )
    return float(mean)


def _refuse_outcomes(recipe: Recipe, plan: Plan, engine: Engine) -> None:
    """Of the training rows: what a head learns is a chance or a share, and differs."""
    for name, rule in recipe.prepare.outcomes.items():
        sql = f'SELECT MIN("{OUTCOME}{name}"), MAX("{OUTCOME}{name}") FROM "labelled" WHERE {plan.of_train}'
        least, most = engine.ask(sql)[0]
        if least is None or least < 0 or most > 1 or least == most:
            found = "NULL in all training rows" if least is None else f"{least:g} to {most:g} in training rows"
            raise DataError(
                f"prepare.outcomes.{name}, {rule}, is {found}. An outcome is a number from 0 to 1 that differs: write "
                f"a condition, such as liked, or a share, such as LEAST(watch_s / length_s, 1); or delete it."
            )


# --- refusals of a log ------------------------------------------------------------------------------------------------


def _refuse_repeats(repeats: Sequence[Any], key: str, path: Path) -> None:
    if repeats:
        listed = ", ".join(f"{'NULL' if value is None else value} in {rows} rows" for value, rows in repeats)
        raise DataError(f"{path}: {key} holds {listed}; each must stand in one row alone, and none be NULL.")


def _refuse_unusable(recipe: Recipe, funnel: list[FunnelLine], first_at: int | None, last_at: int | None) -> None:
    """A log that cannot be trained on, or judged by, is refused before anything is written."""
    log = table_paths(recipe.data)["events"]
    if first_at is None or last_at is None:
        raise DataError(f"{log}: {_nothing(recipe, funnel)}")
    # Where each user's order decides, a place in a file is as good as a time.
    for at in (first_at, last_at) if isinstance(recipe.prepare.split, TemporalSplit) else ():
        if not _FIRST_MS <= at < _LAST_MS:
            unit = "seconds" if at < _FIRST_MS else "microseconds or nanoseconds"
            raise DataError(
                f"{log}: at holds {at}, which looks like {unit}; it must be UTC milliseconds, such as 1650816000000. "
                f"Say so as data.at_unit, convert the column, or delete rows whose time is not known."
            )
    lines = split_lines(funnel)
    for split, line in lines.items():
        if line.positives == 0:
            raise DataError(f"{log}: {_lack(recipe, split, funnel, first_at, last_at)}")
    for kind, count in (("user", lines["train"].users), ("item", lines["train"].items)):
        if count < 2:
            raise DataError(
                f"{log}: the training rows hold one {kind} alone, and a model learns by telling {kind}s apart. "
                f"Take a log of more {kind}s, a longer prepare.split.train or weaker prepare.filters."
            )


def _nothing(recipe: Recipe, funnel: list[FunnelLine]) -> str:
    with_keys = next(line for line in funnel if line.name == "with user, item and time")
    if with_keys.rows == 0:
        return f"in each of its {funnel[0].rows:,} rows user_id, item_id or at is NULL. Fill them."
    return f"prepare.where, {recipe.prepare.where}, holds for none of its {with_keys.rows:,} rows. Weaken it."


def _lack(recipe: Recipe, split: Split, funnel: list[FunnelLine], first_at: int, last_at: int) -> str:
    """Why a window has no positive rows, and what would mend it."""
    days = recipe.prepare.split
    asked = f"prepare.split.{split}, each user's last events"
    unfiltered = next(line for line in funnel if line.name == f"{split} window")
    if isinstance(days, TemporalSplit):
        window, offset = getattr(days, split), recipe.prepare.utc_offset_h
        asked = f"prepare.split.{split}, {window.first} to {window.end} (end excluded, days at UTC{offset:+d})"
        if unfiltered.rows == 0:
            zone = timezone(timedelta(hours=offset))
            first, last = (datetime.fromtimestamp(at / 1000, tz=zone).date() for at in (first_at, last_at))
            return f"no event lies in {asked}. The log goes from {first} to {last}: move the windows into it."
    elif unfiltered.rows == 0:
        return f"no user has an event for {asked} and one left to train on. Judge fewer of them."
    if unfiltered.positives == 0:
        return (
            f"none of the {unfiltered.rows:,} events in {asked} is positive by prepare.positive, "
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
    return f"{where} leaves none of the {unfiltered.positives:,} positives in {asked}. Weaken it."
