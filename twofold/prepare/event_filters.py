"""Event filters, samples and class ratios as SQL over the table `labelled`: which training rows and users are kept.

A filter stores the ids it keeps, never rows. The ids that a filter keeps are a subset of those of the filter before it,
so a row is looked up in at most two lists: the last one of users, and the last one of items.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from twofold.prepare.hashing import PRIME, hash_sql
from twofold.recipe.prepare import Filter, ItemFilter, Prepare, UserFilter
from twofold.render.numbers import percent
from twofold.sql.portable import double_sql


@dataclass(frozen=True)
class FilterStep:
    """A row of the funnel, and the condition on `labelled` for its training rows."""

    name: str
    where: str


@dataclass(frozen=True)
class Selection:
    """The selected training rows and users.

    `tables` are stored tables (name, SELECT) in order; the last of `steps` is the condition for training rows.
    `of_users` is true for every row of the selected users, in any window.
    """

    tables: tuple[tuple[str, str], ...]
    steps: tuple[FilterStep, ...]
    of_users: str

    @property
    def train_condition(self) -> str:
        """Condition for the remaining rows of the training window."""
        return self.steps[-1].where


def select_train(prepare: Prepare, id_types: Mapping[str, str]) -> Selection:
    """Selects the training rows by filters, sample and ratio; `id_types` are the SQL types of user_id and item_id."""
    tables: list[tuple[str, str]] = []
    steps = [FilterStep("train window", '"split" = 0')]
    lists: dict[str, str] = {}
    for number, (name, filter_) in enumerate(_filters(prepare)):
        key = "item_id" if isinstance(filter_, ItemFilter) else "user_id"
        kept = f"kept_by_filter_{number}"
        tables += _filter_tables(filter_, steps[-1].where, kept)
        lists[key] = f'"{key}" IN (SELECT "{key}" FROM "{kept}")'
        steps.append(FilterStep(name, " AND ".join([steps[0].where, *lists.values()])))
    of_users = "TRUE"
    if prepare.sample is not None:
        hashed = hash_sql({"user_id": id_types["user_id"]}, seed=1)  # 0 cuts shards
        of_users = f"{hashed} < {int(prepare.sample.users * PRIME)}"
        steps.append(
            FilterStep(f"a sample of users: {percent(prepare.sample.users)}", f"{steps[-1].where} AND {of_users}")
        )
    if prepare.positive_share is not None:
        tables.append(("quota", _quota_sql(steps[-1].where, prepare.positive_share)))
        of_row = {"user_id": id_types["user_id"], "item_id": id_types["item_id"], "at": "BIGINT"}
        drawn = f'("is_positive" OR {hash_sql(of_row, seed=1)} < (SELECT "below" FROM "quota"))'
        steps.append(
            FilterStep(
                f"negatives thinned to {percent(prepare.positive_share)} positives", f"{steps[-1].where} AND {drawn}"
            )
        )
    return Selection(tuple(tables), tuple(steps), of_users)


def _filters(prepare: Prepare) -> Iterator[tuple[str, Filter]]:
    """Yields every application of a filter with its name, round after round."""
    for round_ in range(prepare.filter_rounds):
        for filter_ in prepare.filters:
            yield filter_name(filter_) + (f", round {round_ + 1}" if prepare.filter_rounds > 1 else ""), filter_


def _filter_tables(filter_: Filter, where: str, kept: str) -> list[tuple[str, str]]:
    """Returns tables, the last one `kept`: the ids that a filter keeps, counted on rows of `labelled` where `where`."""
    positives, negatives = (f"COUNT(CASE WHEN {rule} THEN 1 END)" for rule in ('"is_positive"', 'NOT "is_positive"'))
    match filter_:
        case ItemFilter():
            having = f"COUNT(*) >= {filter_.min_events}"
            return [(kept, f'SELECT "item_id" FROM "labelled" WHERE {where} GROUP BY "item_id" HAVING {having}')]
        case UserFilter():
            counted = f"""(
                SELECT "user_id", COUNT(*) AS "events", {positives} AS "positives", {negatives} AS "negatives"
                FROM "labelled" WHERE {where} GROUP BY "user_id"
            ) AS "counted" """
            conditions = [f'"events" >= {filter_.min_events}', f'"positives" >= {filter_.min_positives}']
            conditions.append(f'"negatives" >= {filter_.min_negatives}')
            steps = []
            if filter_.max_events is not None:
                conditions.append(f'"events" <= {filter_.max_events}')
            if filter_.max_percentile is not None:
                steps = [(f"{kept}_at_most", _percentile_sql(filter_.max_percentile, counted))]
                conditions.append(f'"events" <= (SELECT "at_most" FROM "{kept}_at_most")')
            return [*steps, (kept, f'SELECT "user_id" FROM {counted} WHERE {" AND ".join(conditions)}')]
        case _:
            assert_never(filter_)


def _percentile_sql(percentile: float, counted: str) -> str:
    """Returns the least number of events that at least `percentile` % of the users do not exceed, in exact integers."""
    return f"""
        SELECT MIN("events") AS "at_most" FROM (
            SELECT "events", SUM("users") OVER (ORDER BY "events" RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
                AS "so_far", SUM("users") OVER (PARTITION BY 1) AS "total"
            FROM (SELECT "events", COUNT(*) AS "users" FROM {counted} GROUP BY "events") AS "sizes"
        ) AS "summed" WHERE "so_far" * 100000 >= "total" * {round(percentile * 1000)}
    """


def _quota_sql(where: str, positive_share: float) -> str:
    """Returns the SELECT of the hash below which a negative is kept, for that share of positives; `PRIME` keeps all."""
    positives, negatives = (f'CAST(COUNT(CASE WHEN {condition} THEN 1 END) AS DOUBLE)'
                            for condition in ('"is_positive"', 'NOT "is_positive"'))  # fmt: skip
    others, share = double_sql(1 - positive_share), double_sql(positive_share)
    wanted = f"{positives} * {others} / ({share} * NULLIF({negatives}, 0e0))"
    kept = f"LEAST(COALESCE({wanted}, 1e0), 1e0)"
    return f'SELECT CAST(FLOOR({PRIME} * {kept}) AS BIGINT) AS "below" FROM "labelled" WHERE {where}'


def filter_name(filter_: Filter) -> str:
    """Describes a filter: `users: 5 to 500 events, 1 or more positives`."""
    match filter_:
        case ItemFilter():
            return f"items: {filter_.min_events} or more events"
        case UserFilter():
            most = "or more" if filter_.max_events is None else f"to {filter_.max_events}"
            if filter_.max_percentile is not None:
                most = f"to the {filter_.max_percentile:g}th percentile of"
            parts = [f"{filter_.min_events} {most} events"]
            parts += [f"{filter_.min_positives} or more positives"] * (filter_.min_positives > 0)
            parts += [f"{filter_.min_negatives} or more negatives"] * (filter_.min_negatives > 0)
            return f"users: {', '.join(parts)}"
        case _:
            assert_never(filter_)
