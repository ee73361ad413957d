"""The funnel: rows, users, items and positives after each step of preparation, as SQL and as table rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """A row of the funnel, and the SELECT of its four counts: rows, users, items, positives."""

    name: str
    scope: Scope
    sql: str


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
        Count("log", "log", _count_sql("TRUE", each='"copies"')),
        Count("with user, item and time", "log", _count_sql(HAS_KEYS, each='"copies"')),
        Count("without exact duplicates", "log", _count_sql(HAS_KEYS)),
    ]
    if prepare.where is not None:
        counts.append(Count("taken by prepare.where", "log", _count_sql(f'{HAS_KEYS} AND "is_taken"')))
    unusable = ["no estimated time in validation or test"] if has_estimates(source) else []
    if prepare.new_items is not None:
        unusable.append(f"{percent(prepare.new_items)} of the items only in the test window")
    if unusable:
        counts.append(Count("; ".join(unusable), "log", _count_sql('"is_kept"')))
    counts += [Count(step.name, "train", _count_sql(step.where)) for step in selection.steps]
    evaluated = [(f"{split} window", f'"split" = {index}') for index, split in enumerate(SPLITS) if split != "train"]
    counts += [Count(name, "windows", _count_sql(where)) for name, where in evaluated]
    counts.append(Count("outside the windows", "windows", _count_sql('"is_kept" AND "split" IS NULL')))
    if prepare.sample is not None:
        counts += [
            Count(f"{name} of these users", "sample", _count_sql(f"{where} AND {selection.of_users}"))
            for name, where in evaluated
        ]
    return tuple(counts)


def has_estimates(source: Source) -> bool:
    """Checks whether the log marks events with a known order and an estimated time."""
    return "at_is_estimated" in source.events.columns


def _count_sql(where: str, *, each: str = "1") -> str:
    return f"""
        SELECT COALESCE(SUM({each}), 0), COUNT(DISTINCT "user_id"), COUNT(DISTINCT "item_id"),
            COALESCE(SUM(CASE WHEN "is_positive" THEN {each} ELSE 0 END), 0)
        FROM "labelled" WHERE {where}
    """


def count_funnel(counts: Sequence[Count], query: Callable[[str], Sequence[Any]]) -> list[FunnelLine]:
    """Returns the rows of the funnel, each counted by one query."""
    lines: list[FunnelLine] = []
    for count in counts:
        rows, users, items, positives = (int(value) for value in query(count.sql)[0])
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
