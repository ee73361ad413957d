"""Watch-time labels → SQL: what is fitted on the training window, and the column it gives every event.

w is watch_s and d length_s. Fitting compares and adds whole milliseconds, so that engines agree to the last bit on
buckets, edges and order; only means and standard deviations are doubles. Where d <= 0, or w or d is NULL, a label is
NULL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from twofold.prepare.sources import quoted
from twofold.recipe.prepare import (
    BelowMean,
    Buckets,
    Completion,
    EqualFrequencyBuckets,
    ItemBuckets,
    Label,
    LongView,
    WatchQuantile,
    WatchTimeGain,
    WidthBuckets,
)
from twofold.tables import LONG_VIEW_MS

# The view that is fitted on and joined to: the log's columns, watch_ms, length_ms, "split" (0 for train), "is kept".
ROWS: Final = '"log" AS "rows"'
# Fraction digits that count. A millisecond of watching is far below what a log can tell.
_THOUSANDTHS: Final = 1000
_IS_FITTED_ON: Final = '"is kept" AND "the split" = 0 AND NOT "is estimated"'
_WATCH: Final = 'CAST("rows"."watch_s" AS DOUBLE)'
_LENGTH: Final = 'CAST("rows"."length_s" AS DOUBLE)'
_IS_WATCHED: Final = f'{_IS_FITTED_ON} AND "watch in ms" IS NOT NULL AND "rows"."length in ms" > 0'


@dataclass(frozen=True)
class FittedLabel:
    """A label as SQL over `ROWS`.

    `tables` are name → SELECT, in order, each reading those before it; `saved` names those that are written out.
    `joins` and `value` give the column.
    """

    tables: Mapping[str, str]
    saved: tuple[str, ...]
    joins: str
    value: str


def thousandths_sql(value: str) -> str:
    """A number as whole thousandths, halves upwards."""
    return f"CAST(FLOOR({value} * {_THOUSANDTHS} + 0.5) AS BIGINT)"


def fit_label(name: str, label: Label) -> FittedLabel:
    """The SQL of one label; every table's name begins with the label's."""
    match label:
        case LongView():
            long_, whole = f"{_WATCH} >= {LONG_VIEW_MS // 1000}", f"{_WATCH} >= {_LENGTH}"
            value = f"CASE WHEN {_LENGTH} > {LONG_VIEW_MS // 1000} THEN {long_} WHEN {_LENGTH} > 0 THEN {whole} END"
            return FittedLabel({}, (), "", value)
        case Completion():
            watched = f"LEAST({_WATCH}, {_LENGTH})"
            # LEAST skips NULL, so a NULL watch time would count as watched to the end.
            value = f"CASE WHEN {_LENGTH} > 0 AND {_WATCH} IS NOT NULL THEN {watched} / {_LENGTH} END"
            return FittedLabel({}, (), "", value)
        case BelowMean():
            return _below_mean(name, label)
        case WatchQuantile():
            return _quantile(name, label)
        case WatchTimeGain():
            return _gain(name, label)
        case _:
            assert_never(label)


def _below_mean(name: str, label: BelowMean) -> FittedLabel:
    """value · n < sum, in whole thousandths: an average as a double could say otherwise where they are equal."""
    mean, of, by = f"{name}.mean", quoted(label.column), quoted(label.key)
    value = thousandths_sql(f'CAST("rows".{of} AS DOUBLE)')
    table = f"""
        SELECT {by} AS "key", COUNT(*) AS "events", CAST(SUM({value}) AS BIGINT) AS "thousandths" FROM {ROWS}
        WHERE {_IS_FITTED_ON} AND {of} IS NOT NULL AND {by} IS NOT NULL GROUP BY {by}
    """
    return FittedLabel(
        {mean: table},
        (mean,),
        f'LEFT JOIN "{mean}" ON "{mean}"."key" = "rows".{by}',
        f'{value} * "{mean}"."events" < "{mean}"."thousandths"',
    )


def _quantile(name: str, label: WatchQuantile) -> FittedLabel:
    """F_b(w) = (events of the bucket below w + half of those at w) / events of the bucket."""
    buckets = _bucket_tables(name, EqualFrequencyBuckets(kind="equal_frequency", n=label.n))
    lengths, shares, quantile = f"{name}.lengths", f"{name}.all", f"{name}.quantile"
    counted = f"""
        SELECT "l"."bucket", "watch in ms" AS "watch_ms", COUNT(CASE WHEN {_IS_FITTED_ON} THEN 1 END) AS "events"
        FROM {ROWS} JOIN "{lengths}" AS "l" ON "l"."length_ms" = "rows"."length in ms"
        WHERE "is kept" AND "watch in ms" IS NOT NULL GROUP BY "l"."bucket", "watch in ms"
    """
    table = f"""
        SELECT "bucket", "watch_ms", "events",
            CAST(2 * SUM("events") OVER "up_to" - "events" AS DOUBLE)
                / CAST(2 * SUM("events") OVER (PARTITION BY "bucket") AS DOUBLE) AS "quantile"
        FROM ({counted}) AS "counted"
        WINDOW "up_to" AS (PARTITION BY "bucket" ORDER BY "watch_ms" RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    """
    saved = f'SELECT "bucket", "watch_ms", "quantile" FROM "{shares}" WHERE "events" > 0'
    return FittedLabel(
        {**buckets, shares: table, quantile: saved},
        (quantile,),
        f'LEFT JOIN "{lengths}" ON "{lengths}"."length_ms" = "rows"."length in ms" '
        f'LEFT JOIN "{shares}" ON "{shares}"."bucket" = "{lengths}"."bucket" '
        f'AND "{shares}"."watch_ms" = "rows"."watch in ms"',
        f'"{shares}"."quantile"',
    )


# --- watch-time gain --------------------------------------------------------------------------------------------------


def _gain(name: str, label: WatchTimeGain) -> FittedLabel:
    """(w - mean) / std; few events: mean and variance are drawn towards those of the next wider group."""
    by_length, by_bucket, lengths = label.buckets, f"{name}.bucket", f"{name}.lengths"
    if isinstance(by_length, ItemBuckets):
        by_length = EqualFrequencyBuckets(kind="equal_frequency", n=by_length.n)
    everything = f'(SELECT {_moments_sql()} FROM {ROWS} WHERE {_IS_WATCHED}) AS "all"'
    of_bucket = f"""
        (SELECT "l"."bucket", {_moments_sql()} FROM {ROWS}
        JOIN "{lengths}" AS "l" ON "l"."length_ms" = "rows"."length in ms"
        WHERE {_IS_WATCHED} GROUP BY "l"."bucket") AS "own"
    """
    mean, variance = _shrunk_sql('"own"', '"all"', label.shrink)
    tables = {
        **_bucket_tables(name, by_length),
        by_bucket: f"""
            SELECT "bucket", "own"."events", {mean} AS "mean", {variance} AS "variance" FROM {of_bucket}
            CROSS JOIN {everything}
        """,
        # Lengths that training does not hold may lie in a bucket of their own (widths): those are like all others.
        f"{name}.all": f'SELECT "mean", "variance" FROM {everything}',
    }
    joins = f'LEFT JOIN "{lengths}" ON "{lengths}"."length_ms" = "rows"."length in ms" '
    joins += f'LEFT JOIN "{by_bucket}" ON "{by_bucket}"."bucket" = "{lengths}"."bucket" CROSS JOIN "{name}.all"'
    parent = _Group(f'COALESCE("{by_bucket}"."mean", "{name}.all"."mean")',
                    f'COALESCE("{by_bucket}"."variance", "{name}.all"."variance")')  # fmt: skip
    saved = [by_bucket, f"{name}.all"]
    for key in _finer_keys(label.buckets):
        group = f"{name}.{key}"
        tables[group] = f"""
            SELECT {quoted(key)} AS "key", {_moments_sql()} FROM {ROWS}
            WHERE {_IS_WATCHED} AND {quoted(key)} IS NOT NULL GROUP BY {quoted(key)}
        """
        joins += f' LEFT JOIN "{group}" ON "{group}"."key" = "rows".{quoted(key)}'
        parent = _Group(*_shrunk_sql(f'"{group}"', parent, label.shrink))
        saved.append(group)
    value = f"""CASE WHEN "rows"."length in ms" > 0 THEN
        (CAST("rows"."watch in ms" AS DOUBLE) - {parent.mean}) / NULLIF(SQRT({parent.variance}), 0) END"""
    return FittedLabel(tables, tuple(saved), joins, value)


@dataclass(frozen=True)
class _Group:
    """SQL of a group's mean (ms) and variance (ms²)."""

    mean: str
    variance: str


def _finer_keys(buckets: Buckets) -> list[str]:
    """Keys finer than the length, the widest group first."""
    if not isinstance(buckets, ItemBuckets):
        return []
    return [buckets.creator, "item_id"] if buckets.creator else ["item_id"]


def _moments_sql() -> str:
    """events, mean and unbiased variance of watch_ms. Sums are exact: decimals hold squares that BIGINT would not."""
    n, total, squares = "CAST(COUNT(*) AS DOUBLE)", _sum_sql('"watch in ms"'), _sum_sql('"watch in ms" * "watch in ms"')
    variance = f"GREATEST(({squares} - {total} * {total} / {n}) / ({n} - 1), 0)"
    return f"""
        COUNT(*) AS "events", {total} / {n} AS "mean", CASE WHEN COUNT(*) > 1 THEN {variance} END AS "variance"
    """


def _sum_sql(value: str) -> str:
    return f"CAST(SUM(CAST({value} AS DECIMAL(20, 0))) AS DOUBLE)"


def _shrunk_sql(own: str, parent: str | _Group, k: float) -> tuple[str, str]:
    """(n·own + k·parent) / (n + k), for the mean and for the variance.

    One event has no variance and none has a mean: the parent's stands in. So it does for a variance of 0.
    """
    if isinstance(parent, str):
        parent = _Group(f'{parent}."mean"', f'{parent}."variance"')
    n = f'CAST({own}."events" AS DOUBLE)'
    mean = f'COALESCE(({n} * {own}."mean" + {k!r}e0 * {parent.mean}) / ({n} + {k!r}e0), {parent.mean})'
    drawn = f'({n} * {own}."variance" + {k!r}e0 * {parent.variance}) / ({n} + {k!r}e0)'
    return mean, f"COALESCE(NULLIF({drawn}, 0), {parent.variance})"


# --- buckets of length ------------------------------------------------------------------------------------------------


def _bucket_tables(name: str, buckets: WidthBuckets | EqualFrequencyBuckets) -> dict[str, str]:
    """NAME.lengths: every length of the log → its bucket, which is called by the least length (ms) that it holds."""
    lengths = f'SELECT DISTINCT "length in ms" AS "length_ms" FROM {ROWS} WHERE "is kept" AND "length in ms" > 0'
    if isinstance(buckets, WidthBuckets):
        width = round(buckets.seconds * 1000)
        found = f'SELECT "length_ms", "length_ms" - "length_ms" % {width} AS "bucket" FROM ({lengths}) AS "l"'
        return {f"{name}.lengths": found}
    counted = f"""
        SELECT "length in ms" AS "length_ms", COUNT(*) AS "events" FROM {ROWS} WHERE {_IS_WATCHED}
        GROUP BY "length in ms"
    """
    # The bucket of a length is the whole part of n · (events of shorter ones) / (all events): equal lengths share it.
    shorter = f"""
        SELECT "length_ms", {buckets.n} * (SUM("events") OVER "up_to" - "events") AS "shorter",
            SUM("events") OVER (PARTITION BY 1) AS "total"
        FROM ({counted}) AS "counted"
        WINDOW "up_to" AS (ORDER BY "length_ms" RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    """
    edges = f"""
        SELECT MIN("length_ms") AS "bucket" FROM ({shorter}) AS "ranked" GROUP BY "shorter" - "shorter" % "total"
    """
    # A length between two edges belongs to the lower one; one below all edges, to the first.
    found = f"""
        SELECT "length_ms", COALESCE(
            MAX("edge") OVER (ORDER BY "length_ms" RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
            MIN("edge") OVER (PARTITION BY 1)
        ) AS "bucket"
        FROM ({lengths}) AS "l" LEFT JOIN (SELECT "bucket" AS "edge" FROM "{name}.edges") AS "e" ON "edge" = "length_ms"
    """
    return {f"{name}.edges": edges, f"{name}.lengths": found}
