"""What every step of preparation left: the counts as SQL, and as lines of a table that adds up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from twofold.prepare.event_filters import Selection
from twofold.prepare.sources import Source
from twofold.recipe.prepare import Prepare
from twofold.tables import SPLITS, Json, Split

Scope = Literal["log", "train", "windows", "sample"]
HAS_KEYS: Final = '"user_id" IS NOT NULL AND "item_id" IS NOT NULL AND "at" IS NOT NULL'


@dataclass(frozen=True)
class Count:
    """A line of the funnel, and the SELECT of its four counts: rows, users, items, positives."""

    name: str
    scope: Scope
    sql: str


@dataclass(frozen=True)
class FunnelLine:
    """What a step of preparation left; `removed` is the rows that the line before it, in its scope, had more.

    The rows of the last "log" line are those of the first "train" line and of all "windows" lines together. Lines of
    scope "sample" are the judged windows again, of the users that are taken.
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
    """Three accounts: the log, the training window through its filters, and the other days. Rows add up over them."""
    counts = [
        Count("log", "log", _count_sql("TRUE", each='"copies"')),
        Count("with user, item and time", "log", _count_sql(HAS_KEYS, each='"copies"')),
        Count("without exact duplicates", "log", _count_sql(HAS_KEYS)),
    ]
    if prepare.where is not None:
        counts.append(Count("taken by prepare.where", "log", _count_sql(f'{HAS_KEYS} AND "is_taken"')))
    if has_estimates(source):
        counts.append(Count("no estimated time where judged", "log", _count_sql('"is_kept"')))
    counts += [Count(stage.name, "train", _count_sql(stage.where)) for stage in selection.stages]
    judged = [(f"{split} window", f'"split" = {place}') for place, split in enumerate(SPLITS) if split != "train"]
    counts += [Count(name, "windows", _count_sql(where)) for name, where in judged]
    counts.append(Count("outside the windows", "windows", _count_sql('"is_kept" AND "split" IS NULL')))
    if prepare.sample is not None:
        counts += [
            Count(f"{name} of these users", "sample", _count_sql(f"{where} AND {selection.of_users}"))
            for name, where in judged
        ]
    return tuple(counts)


def has_estimates(source: Source) -> bool:
    """Whether the log marks events whose order is known and whose time is not."""
    return "at_is_estimated" in source.event_columns


def _count_sql(where: str, *, each: str = "1") -> str:
    return f"""
        SELECT COALESCE(SUM({each}), 0), COUNT(DISTINCT "user_id"), COUNT(DISTINCT "item_id"),
            COALESCE(SUM(CASE WHEN "is_positive" THEN {each} ELSE 0 END), 0)
        FROM "labelled" WHERE {where}
    """


def count_funnel(counts: Sequence[Count], ask: Callable[[str], Sequence[Any]]) -> list[FunnelLine]:
    """The lines, each counted by a query."""
    lines: list[FunnelLine] = []
    for count in counts:
        rows, users, items, positives = (int(value) for value in ask(count.sql)[0])
        follows = bool(lines) and lines[-1].scope == count.scope and count.scope in ("log", "train")
        removed = lines[-1].rows - rows if follows else 0
        share = positives / rows if rows else 0.0
        lines.append(FunnelLine(count.name, count.scope, rows, users, items, positives, share, removed))
    return lines


def funnel_lines(funnel: Json) -> list[FunnelLine]:
    """The lines of funnel.json, or of the manifest's `funnel`, for a table on a terminal or a page."""
    return [FunnelLine(**line) for line in funnel]


def split_lines(funnel: Sequence[FunnelLine]) -> dict[Split, FunnelLine]:
    """The line of each window's rows: for training, what the last step left."""
    train = [line for line in funnel if line.scope == "train"][-1]
    judged = [line for line in funnel if line.scope == "sample"] or [line for line in funnel if line.scope == "windows"]
    return dict(zip(SPLITS, (train, *judged[:2]), strict=True))
