"""Filters, samples and ratios → SQL over the table `labelled`: which training rows are kept, and which users at all.

A filter stores the ids it keeps, never rows. What a filter keeps is a part of what the one before it kept, so a row
needs to be looked up in two lists at most: the last one of users, and the last one of items.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from twofold.prepare.hashing import PRIME, hash_sql
from twofold.recipe.prepare import Filter, ItemFilter, Prepare, UserFilter


@dataclass(frozen=True)
class Stage:
    """A line of the funnel, and the condition on `labelled` that its training rows fulfil."""

    name: str
    where: str


@dataclass(frozen=True)
class Selection:
    """`steps` are stored tables (name, SELECT) in order; the last of `stages` is what is trained on.

    `of_users` holds for every row of the users that are taken, whatever its window.
    """

    steps: tuple[tuple[str, str], ...]
    stages: tuple[Stage, ...]
    of_users: str

    @property
    def of_train(self) -> str:
        """The condition on the rows of the training window that stay."""
        return self.stages[-1].where


def select_train(prepare: Prepare, id_types: Mapping[str, str]) -> Selection:
    """All that `prepare` removes from the training window; `id_types` are the SQL types of user_id and item_id."""
    steps: list[tuple[str, str]] = []
    stages = [Stage("train window", '"split" = 0')]
    lists: dict[str, str] = {}
    for number, (name, filter_) in enumerate(_filters(prepare)):
        key = "item_id" if isinstance(filter_, ItemFilter) else "user_id"
        kept = f"kept by filter {number}"
        steps += filter_steps(filter_, stages[-1].where, kept)
        lists[key] = f'"{key}" IN (SELECT "{key}" FROM "{kept}")'
        stages.append(Stage(name, " AND ".join([stages[0].where, *lists.values()])))
    of_users = "TRUE"
    if prepare.sample is not None:
        hashed = hash_sql({"user_id": id_types["user_id"]}, seed=1)  # 0 cuts shards
        of_users = f"{hashed} < {int(prepare.sample.users * PRIME)}"
        stages.append(Stage(f"a sample of users: {prepare.sample.users:.0%}", f"{stages[-1].where} AND {of_users}"))
    if prepare.positive_share is not None:
        steps.append(("quota", quota_sql(stages[-1].where, prepare.positive_share)))
        of_row = {"user_id": id_types["user_id"], "item_id": id_types["item_id"], "at": "BIGINT"}
        drawn = f'("is_positive" OR {hash_sql(of_row, seed=1)} < (SELECT "below" FROM "quota"))'
        stages.append(
            Stage(f"negatives thinned to {prepare.positive_share:.0%} positives", f"{stages[-1].where} AND {drawn}")
        )
    return Selection(tuple(steps), tuple(stages), of_users)


def _filters(prepare: Prepare) -> Iterator[tuple[str, Filter]]:
    """Every application of a filter with its name, round after round."""
    for round_ in range(prepare.filter_rounds):
        for filter_ in prepare.filters:
            yield filter_name(filter_) + (f", round {round_ + 1}" if prepare.filter_rounds > 1 else ""), filter_


def filter_steps(filter_: Filter, where: str, kept: str) -> list[tuple[str, str]]:
    """Tables that end with `kept`: the ids a filter keeps, counting on the rows of `labelled` that fulfil `where`."""
    positives, negatives = (f'COUNT(CASE WHEN "{name}" THEN 1 END)' for name in ("is_positive", "is_negative"))
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
                steps = [(f"{kept}, at most", percentile_sql(filter_.max_percentile, counted))]
                conditions.append(f'"events" <= (SELECT "at_most" FROM "{kept}, at most")')
            return [*steps, (kept, f'SELECT "user_id" FROM {counted} WHERE {" AND ".join(conditions)}')]
        case _:
            assert_never(filter_)


def percentile_sql(percentile: float, counted: str) -> str:
    """The least number of events that at least `percentile` % of the users do not exceed. Whole numbers: exact."""
    return f"""
        SELECT MIN("events") AS "at_most" FROM (
            SELECT "events", SUM("users") OVER (ORDER BY "events" RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
                AS "so_far", SUM("users") OVER (PARTITION BY 1) AS "total"
            FROM (SELECT "events", COUNT(*) AS "users" FROM {counted} GROUP BY "events") AS "sizes"
        ) AS "summed" WHERE "so_far" * 100000 >= "total" * {round(percentile * 1000)}
    """


def quota_sql(where: str, positive_share: float) -> str:
    """Below which hash a negative stays, so that positives become that share; all stay if they are fewer than that."""
    positives, negatives = (f'CAST(COUNT(CASE WHEN {condition} THEN 1 END) AS DOUBLE)'
                            for condition in ('"is_positive"', 'NOT "is_positive"'))  # fmt: skip
    wanted = f"{positives} * {1 - positive_share!r}e0 / ({positive_share!r}e0 * NULLIF({negatives}, 0e0))"
    share = f"LEAST(COALESCE({wanted}, 1e0), 1e0)"
    return f'SELECT CAST(FLOOR({PRIME} * {share}) AS BIGINT) AS "below" FROM "labelled" WHERE {where}'


def filter_name(filter_: Filter) -> str:
    """What a filter keeps, in words: `users: 5 to 500 events, 1 or more positives`."""
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
