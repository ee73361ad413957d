"""The funnel: rows, users, items and positives after each step of preparation, as SQL and as table rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from typing import Any, Final, Literal

from twofold.prepare.event_filters import Selection
from twofold.prepare.sources import Source
from twofold.recipe.prepare import Prepare
from twofold.render.numbers import percent
from twofold.tables import SPLITS, Json, Split

Scope = Literal["log", "train", "windows", "sample"]
HAS_KEYS: Final = '"user_id" IS NOT NULL AND "item_id" IS NOT NULL AND "at" IS NOT NULL'


@dataclass(frozen=True)
class Count:
    """A row of the funnel: the condition for rows of `labelled`, and the number that each of them counts as, as SQL."""

    name: str
    scope: Scope
    where: str
    each: str = "1"

    @property
    def has_subquery(self) -> bool:
        """Says whether the condition reads a table of kept users or items."""
        return "(SELECT " in self.where


@dataclass(frozen=True)
class FunnelLine:
    """A row of the funnel: counts after one step; `removed` is the number of rows that the step removed.

    The rows of the last "log" step are those of the first "train" step and of all "windows" steps together. Scope
    "sample" repeats validation and test window for the users of the sample.
    """

    name: str
    scope: Scope
    rows: int
    users: int
    items: int
    positives: int
    positive_share: float
    removed: int


def funnel_counts(prepare: Prepare, source: Source, selection: Selection) -> tuple[Count, ...]:
    """Returns the counts of the log, of the training window after each filter, and of the other days; rows add up."""
    counts = [
        Count("log", "log", "TRUE", '"copies"'),
        Count("with user, item and time", "log", HAS_KEYS, '"copies"'),
        Count("without exact duplicates", "log", HAS_KEYS),
    ]
    if prepare.where is not None:
        counts.append(Count("taken by prepare.where", "log", f'{HAS_KEYS} AND "is_taken"'))
    unusable = ["no estimated time in validation or test"] if has_estimates(source) else []
    if prepare.new_items is not None:
        unusable.append(f"{percent(prepare.new_items)} of the items only in the test window")
    if unusable:
        counts.append(Count("; ".join(unusable), "log", '"is_kept"'))
    counts += [Count(step.name, "train", step.where) for step in selection.steps]
    evaluated = [(f"{split} window", f'"split" = {index}') for index, split in enumerate(SPLITS) if split != "train"]
    counts += [Count(name, "windows", where) for name, where in evaluated]
    counts.append(Count("outside the windows", "windows", '"is_kept" AND "split" IS NULL'))
    if prepare.sample is not None:
        counts += [
            Count(f"{name} of these users", "sample", f"{where} AND {selection.of_users}") for name, where in evaluated
        ]
    return tuple(counts)


def has_estimates(source: Source) -> bool:
    """Checks whether the log marks events with a known order and an estimated time."""
    return "at_is_estimated" in source.events.columns


def funnel_statements(counts: Sequence[Count]) -> tuple[str, ...]:
    """Returns the SELECTs that `count_funnel` reads: two for all conditions on the columns alone, by user and by item,
    and one for each other condition.

    Grouped, the ids of all conditions are found by one hash table, where COUNT(DISTINCT) has one for each. Conditions
    with a subquery are counted alone, because Sail has no subquery within CASE.
    """
    together = [count for count in counts if not count.has_subquery]
    others = [_count_sql(count) for count in counts if count.has_subquery]
    return _by_key_sql("user_id", together), _by_key_sql("item_id", together), *others


def _by_key_sql(key: str, counts: Sequence[Count]) -> str:
    """Returns for each count its rows, its ids and its positives, in one row."""
    sums, found = [f'"{key}"'], []
    for number, count in enumerate(counts):
        sums.append(f'SUM(CASE WHEN {count.where} THEN {count.each} ELSE 0 END) AS "rows_{number}"')
        positive = f'({count.where}) AND "is_positive"'
        sums.append(f'SUM(CASE WHEN {positive} THEN {count.each} ELSE 0 END) AS "positives_{number}"')
        ids = f'COUNT(CASE WHEN "rows_{number}" > 0 AND "{key}" IS NOT NULL THEN 1 END)'
        found.append(f'COALESCE(SUM("rows_{number}"), 0), {ids}, COALESCE(SUM("positives_{number}"), 0)')
    return f'SELECT {", ".join(found)} FROM (SELECT {", ".join(sums)} FROM "labelled" GROUP BY "{key}") AS "of_keys"'


def _count_sql(count: Count) -> str:
    return f"""
        SELECT COALESCE(SUM({count.each}), 0), COUNT(DISTINCT "user_id"), COUNT(DISTINCT "item_id"),
            COALESCE(SUM(CASE WHEN "is_positive" THEN {count.each} ELSE 0 END), 0)
        FROM "labelled" WHERE {count.where}
    """


def count_funnel(counts: Sequence[Count], query: Callable[[str], Sequence[Any]]) -> list[FunnelLine]:
    """Returns the rows of the funnel, counted by `funnel_statements`."""
    of_users, of_items, *others = (query(sql)[0] for sql in funnel_statements(counts))
    alone, together = iter(others), count_from(0, 3)
    lines: list[FunnelLine] = []
    for count in counts:
        if count.has_subquery:
            rows, users, items, positives = (int(value) for value in next(alone))
        else:
            first = next(together)
            rows, users, positives = (int(value) for value in of_users[first : first + 3])
            items = int(of_items[first + 1])
        follows = bool(lines) and lines[-1].scope == count.scope and count.scope in ("log", "train")
        removed = lines[-1].rows - rows if follows else 0
        share = positives / rows if rows else 0.0
        lines.append(FunnelLine(count.name, count.scope, rows, users, items, positives, share, removed))
    return lines


def funnel_lines(funnel: Json) -> list[FunnelLine]:
    """Returns the rows of funnel.json or of the manifest's `funnel`."""
    return [FunnelLine(**line) for line in funnel]


def split_lines(funnel: Sequence[FunnelLine]) -> dict[Split, FunnelLine]:
    """Returns the funnel row of each window: for training, that of the last step."""
    train = [line for line in funnel if line.scope == "train"][-1]
    evaluated = [line for line in funnel if line.scope == "sample"] or [
        line for line in funnel if line.scope == "windows"
    ]
    return dict(zip(SPLITS, (train, *evaluated[:2]), strict=True))
