"""Watch-time labels as SQL: the tables fitted on the training window, and the label's value for every event.

w is watch_s and d is length_s. Fitting compares and adds whole milliseconds, so that engines agree to the last bit on
buckets, edges and order; only means, standard deviations and quotients are doubles. Where d <= 0, or w or d is NULL, a
label is NULL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from twofold.prepare.duckdb_connection import quote_name
from twofold.recipe.labels import (
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
from twofold.sql.portable import double_sql
from twofold.tables import LONG_VIEW_MS

# The view that labels are fitted on and joined to; its columns are described at plan.log_sql.
ROWS: Final = '"log" AS "rows"'
# Numbers are compared in thousandths. A millisecond of watching is far below the precision of a log.
_THOUSANDTHS: Final = 1000
_IS_FITTED_ON: Final = '"_tf_is_kept" AND "_tf_split" = 0 AND NOT "_tf_is_estimated"'
# Completion in whole millionths: the quotient of two whole numbers is rounded alike on every engine.
_COMPLETION: Final = """CAST(FLOOR(CAST(1000000 * LEAST("rows"."_tf_watch_ms", "rows"."_tf_length_ms") AS DOUBLE)
    / CAST("rows"."_tf_length_ms" AS DOUBLE) + 0.5) AS BIGINT)"""
_IS_WATCHED: Final = f'{_IS_FITTED_ON} AND "_tf_watch_ms" IS NOT NULL AND "rows"."_tf_length_ms" > 0'


@dataclass(frozen=True)
class FittedLabel:
    """A label as SQL over `ROWS`.

    `tables` are name → SELECT, in order, each reading earlier ones; `saved` names those that are written to files.
    `joins` and `value` are the SQL of the label's column.
    """

    tables: Mapping[str, str]
    saved: tuple[str, ...]
    joins: str
    value: str


def thousandths_sql(value: str) -> str:
    """Returns a number as whole thousandths, halves rounded upwards."""
    return f"CAST(FLOOR({value} * {_THOUSANDTHS} + 0.5) AS BIGINT)"


def fit_label(name: str, label: Label) -> FittedLabel:
    """Returns the SQL of one label; the name of each of its tables begins with the label's name."""
    match label:
        case LongView():
            # As FLOAT, as evaluation compares: 12.9 that is FLOAT in the log would be below 12.9 that is DOUBLE.
            watch, length = (f'CAST("rows"."{name}_s" AS FLOAT)' for name in ("watch", "length"))
            value = f"CASE WHEN {length} > 0 THEN {watch} >= LEAST({length}, CAST({LONG_VIEW_MS // 1000} AS FLOAT)) END"
            return FittedLabel({}, (), "", value)
        case Completion():
            watch, length = '"rows"."_tf_watch_ms"', '"rows"."_tf_length_ms"'
            quotient = f"CAST(LEAST({watch}, {length}) AS DOUBLE) / CAST({length} AS DOUBLE)"
            # LEAST skips NULL, so a NULL watch time would count as watched to the end.
            value = f"CASE WHEN {length} > 0 AND {watch} IS NOT NULL THEN {quotient} END"
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
    """Compares value · n < sum in whole thousandths, because an average as a double may differ where they are equal."""
    mean, of, by = f"{name}.mean", quote_name(label.column), quote_name(label.key)
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
    """Computes F_b(w) = (events of the bucket below w + half of those at w) / events of the bucket."""
    buckets = _bucket_tables(name, EqualFrequencyBuckets(kind="equal_frequency", n=label.n))
    lengths, shares, quantile = f"{name}.lengths", f"{name}.all", f"{name}.quantile"
    counted = f"""
        SELECT "l"."bucket", "_tf_watch_ms" AS "watch_ms", COUNT(CASE WHEN {_IS_FITTED_ON} THEN 1 END) AS "events"
        FROM {ROWS} JOIN "{lengths}" AS "l" ON "l"."length_ms" = "rows"."_tf_length_ms"
        WHERE "_tf_is_kept" AND "_tf_watch_ms" IS NOT NULL GROUP BY "l"."bucket", "_tf_watch_ms"
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
        f'LEFT JOIN "{lengths}" ON "{lengths}"."length_ms" = "rows"."_tf_length_ms" '
        f'LEFT JOIN "{shares}" ON "{shares}"."bucket" = "{lengths}"."bucket" '
        f'AND "{shares}"."watch_ms" = "rows"."_tf_watch_ms"',
        f'"{shares}"."quantile"',
    )


# --- watch-time gain --------------------------------------------------------------------------------------------------


def _gain(name: str, label: WatchTimeGain) -> FittedLabel:
    """Computes (w - mean) / std; mean and variance of few events are shrunk towards those of the next wider group."""
    quantity = '"_tf_watch_ms"' if label.quantity == "watch_s" else _COMPLETION
    mean_sql = _mean_and_variance_sql(quantity)
    by_bucket, lengths = f"{name}.bucket", f"{name}.lengths"
    all_events = f'(SELECT {mean_sql} FROM {ROWS} WHERE {_IS_WATCHED}) AS "all"'
    of_bucket = f"""
        (SELECT "l"."bucket", {mean_sql} FROM {ROWS}
        JOIN "{lengths}" AS "l" ON "l"."length_ms" = "rows"."_tf_length_ms"
        WHERE {_IS_WATCHED} GROUP BY "l"."bucket") AS "own"
    """
    mean, variance = _shrunk_sql('"own"', '"all"', label.shrink)
    tables = {
        **_bucket_tables(name, _length_buckets(label.buckets)),
        by_bucket: f"""
            SELECT "bucket", "own"."events", {mean} AS "mean", {variance} AS "variance" FROM {of_bucket}
            CROSS JOIN {all_events}
        """,
        # A length that is absent from training may have a bucket of its own (widths): it uses all events.
        f"{name}.all": f'SELECT "mean", "variance" FROM {all_events}',
    }
    joins = f'LEFT JOIN "{lengths}" ON "{lengths}"."length_ms" = "rows"."_tf_length_ms" '
    joins += f'LEFT JOIN "{by_bucket}" ON "{by_bucket}"."bucket" = "{lengths}"."bucket" CROSS JOIN "{name}.all"'
    parent = _Group(f'COALESCE("{by_bucket}"."mean", "{name}.all"."mean")',
                    f'COALESCE("{by_bucket}"."variance", "{name}.all"."variance")')  # fmt: skip
    saved = [by_bucket, f"{name}.all"]
    for key in _finer_keys(label.buckets):
        group = f"{name}.{key}"
        tables[group] = f"""
            SELECT {quote_name(key)} AS "key", {mean_sql} FROM {ROWS}
            WHERE {_IS_WATCHED} AND {quote_name(key)} IS NOT NULL GROUP BY {quote_name(key)}
        """
        joins += f' LEFT JOIN "{group}" ON "{group}"."key" = "rows".{quote_name(key)}'
        parent = _Group(*_shrunk_sql(f'"{group}"', parent, label.shrink))
        saved.append(group)
    value = f"""CASE WHEN "rows"."_tf_length_ms" > 0 AND "_tf_watch_ms" IS NOT NULL THEN
        (CAST({quantity} AS DOUBLE) - {parent.mean}) / NULLIF(SQRT({parent.variance}), 0) END"""
    return FittedLabel(tables, tuple(saved), joins, value)


@dataclass(frozen=True)
class _Group:
    """The SQL of a group's mean (ms) and variance (ms²)."""

    mean: str
    variance: str


def _length_buckets(buckets: Buckets) -> WidthBuckets | EqualFrequencyBuckets:
    """Returns the buckets of length, those of `ItemBuckets` too."""
    if isinstance(buckets, ItemBuckets):
        return EqualFrequencyBuckets(kind="equal_frequency", n=buckets.n)
    return buckets


def _finer_keys(buckets: Buckets) -> list[str]:
    """Returns the keys finer than the length, the widest group first."""
    if not isinstance(buckets, ItemBuckets):
        return []
    return [buckets.creator, "item_id"] if buckets.creator else ["item_id"]


def _mean_and_variance_sql(value: str) -> str:
    """Returns events, mean and unbiased variance of whole numbers. Sums are exact: squares overflow BIGINT, not
    decimals.
    """
    exact = f"CAST({value} AS DECIMAL(19, 0))"
    n, total, squares = "CAST(COUNT(*) AS DOUBLE)", _sum_sql(exact), _sum_sql(f"{exact} * {exact}")
    variance = f"GREATEST(({squares} - {total} * {total} / {n}) / ({n} - 1), 0)"
    return f"""
        COUNT(*) AS "events", {total} / {n} AS "mean", CASE WHEN COUNT(*) > 1 THEN {variance} END AS "variance"
    """


def _sum_sql(value: str) -> str:
    return f"CAST(SUM({value}) AS DOUBLE)"


def _shrunk_sql(own: str, parent: str | _Group, k: float) -> tuple[str, str]:
    """Returns (n·own + k·parent) / (n + k), for the mean and for the variance.

    The parent's value replaces a missing mean (no event) and a missing or zero variance (one event, equal ones).
    """
    if isinstance(parent, str):
        parent = _Group(f'{parent}."mean"', f'{parent}."variance"')
    n, added = f'CAST({own}."events" AS DOUBLE)', double_sql(k)
    mean = f'COALESCE(({n} * {own}."mean" + {added} * {parent.mean}) / ({n} + {added}), {parent.mean})'
    shrunk = f'({n} * {own}."variance" + {added} * {parent.variance}) / ({n} + {added})'
    return mean, f"COALESCE(NULLIF({shrunk}, 0), {parent.variance})"


# --- buckets of length ------------------------------------------------------------------------------------------------


def _bucket_tables(name: str, buckets: WidthBuckets | EqualFrequencyBuckets) -> dict[str, str]:
    """Returns NAME.lengths: every length of the log → its bucket, named by its smallest length (ms)."""
    lengths = f'SELECT DISTINCT "_tf_length_ms" AS "length_ms" FROM {ROWS} WHERE "_tf_is_kept" AND "_tf_length_ms" > 0'
    if isinstance(buckets, WidthBuckets):
        width = round(buckets.seconds * 1000)
        found = f'SELECT "length_ms", "length_ms" - "length_ms" % {width} AS "bucket" FROM ({lengths}) AS "l"'
        return {f"{name}.lengths": found}
    counted = f"""
        SELECT "_tf_length_ms" AS "length_ms", COUNT(*) AS "events" FROM {ROWS} WHERE {_IS_WATCHED}
        GROUP BY "_tf_length_ms"
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
