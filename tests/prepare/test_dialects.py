"""Every statement of every kind of plan becomes Spark's SQL, and keeps to words that both engines mean alike."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import sqlglot
from sqlglot import ErrorLevel, exp

from tests.worlds import SPLIT
from twofold.prepare.odd_values import oddities_sql
from twofold.prepare.plan import build_plan, repeats_sql
from twofold.prepare.sources import Source, SourceTable
from twofold.prepare.spark_engine import spark_sql
from twofold.recipe.prepare import Prepare

WTG = {"kind": "wtg"}
COUNTED = {"rates": {"like": "liked"}, "means": {"watched": "watch_s / length_s"}}
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "derived": {"where": "tab IN ('1', 'it''s')", "derive": {"x": "LN(watch_s) % 7", "y": "POWER(x, 2) - EXP(x)"}},
    "wtg by width": {"labels": {"gain": WTG | {"buckets": {"kind": "width", "seconds": 1}}}},
    "wtg by frequency": {"labels": {"gain": WTG | {"buckets": {"kind": "equal_frequency"}}}},
    "wtg by item": {"labels": {"gain": WTG | {"buckets": {"kind": "item", "creator": "creator"}}}},
    "other labels": {"labels": {kind: {"kind": kind} for kind in ("pcc", "quantile", "long_view", "below_mean")}},
    "rules": {"positive": "liked OR watch_s > 3", "negative": "NOT liked", "weight": "LEAST(SQRT(watch_s), 8)"},
    "target": {"target": "CASE WHEN liked THEN 3 WHEN shared THEN NULLIF(watch_s, 0) ELSE ABS(FLOOR(-length_s)) END"},
    "last events": {"split": {"kind": "last_n", "test": 2, "ties": "watch_s"}},
    "outcomes": {"labels": {"d2q": {"kind": "quantile"}}, "outcomes": {"liked": "liked OR shared", "watch": "d2q"}},
    "counters": {"counters": {"item_id": COUNTED, "user_id": COUNTED, "creator": COUNTED}},
    "filters": {
        "filters": [
            {"kind": "items", "min_events": 2},
            {"kind": "users", "min_events": 2, "max_percentile": 99.9, "min_positives": 1, "min_negatives": 1},
        ],
        "filter_rounds": 2,
    },
    "draws": {"sample": {"users": 0.3}, "positive_share": 0.5},
}


def source(id_type: str, at: tuple[str, str]) -> Source:
    """A log of no file, with the columns that the recipes above read."""
    keys = {"user_id": (id_type, '"user_id"'), "item_id": (id_type, '"item_id"')}
    booleans = dict.fromkeys(("liked", "shared", "at_is_estimated"), "BOOLEAN")
    further = booleans | {"watch_s": "DOUBLE", "length_s": "FLOAT", "tab": "VARCHAR", 'odd `name` "': "UINTEGER"}
    own = {name: (type_, '"' + name.replace('"', '""') + '"') for name, type_ in further.items()}
    items = {"item_id": keys["item_id"], "creator": ("VARCHAR", '"creator"'), "tags": ("VARCHAR[]", '"tags"')}
    files = (Path("log.parquet"),)
    return Source(
        SourceTable(files, "parquet", {}, keys | {"at": at} | own),
        SourceTable(files, "parquet", {}, items),
        SourceTable((), "parquet", {}, {"user_id": (id_type, "NULL")}),
    )


def statements(parts: dict[str, Any], log: Source) -> Iterator[tuple[str, bool]]:
    """Yields every statement for an engine, and whether its result is written to a file."""
    plan = build_plan(Prepare.model_validate({"positive": "liked", "split": SPLIT} | parts), log, shards=2)
    for table in (log.events, log.items, log.users):
        yield table.select_sql('"own columns"'), False
    yield repeats_sql("item_id", "source_items"), False
    for sql in (*(sql for _, sql in oddities_sql(log)), *plan.priors.values()):
        yield sql, False
    for part in (*plan.steps, *plan.counts, plan.shards.rows, plan.shards.events):
        yield part.sql, False
    for output in plan.outputs:
        yield output.sql, True
    for shard_output in plan.shards.outputs:
        yield shard_output.sql(plan.shards.events.name, has_shard=True), True


MOMENTS = [
    ("BIGINT", 'CAST("at" AS BIGINT) // 1000'),
    ("BIGINT", "DATE_DIFF('millisecond', CAST('1970-01-01' AS TIMESTAMP), CAST(\"at\" AS TIMESTAMP))"),
]

# What both engines mean alike: every one of these is run, and compared row by row, in test_spark.py.
AGREED = {
    *(exp.And, exp.Or, exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Exists, exp.Cast, exp.DateDiff),
    *(exp.Abs, exp.Exp, exp.Floor, exp.Ln, exp.Pow, exp.Sqrt, exp.Least, exp.Greatest),
    *(exp.Avg, exp.Count, exp.Max, exp.Min, exp.Sum, exp.RowNumber),
    *(exp.MD5, exp.StrPosition, exp.Substring),
}


@pytest.fixture(scope="module")
def everything() -> list[tuple[str, bool, exp.Expr]]:
    """Each statement for DuckDB; whether it is written to a file; and what Spark is given, read back."""
    logs = [source(id_type, at) for id_type, at in zip(("BIGINT", "VARCHAR"), MOMENTS, strict=True)]
    given = {each for parts, log in product(PARTS.values(), logs) for each in statements(parts, log)}
    return [
        (sql, is_file, _read_back(spark_sql(sql, hint="REPARTITION(1)" if is_file else None)))
        for sql, is_file in sorted(given)
    ]


def _read_back(written: str) -> exp.Expr:
    tree = sqlglot.parse_one(written, read="spark", error_level=ErrorLevel.RAISE)
    assert tree.sql("spark", unsupported_level=ErrorLevel.RAISE) == written
    return tree


def test_files_are_sorted_within_one_part_with_nulls_where_duckdb_has_them(
    everything: list[tuple[str, bool, exp.Expr]],
) -> None:
    for given, is_file, tree in everything:
        for ordered in tree.find_all(exp.Ordered):
            # DuckDB has NULLs last both ways; Spark has them first unless it is told, or counts down.
            assert ordered.args["nulls_first"] is False or ordered.args["desc"], given
        hint, sort, order = (tree.args.get(name) for name in ("hint", "sort", "order"))
        assert (hint is not None, sort is not None) == (is_file, is_file), given
        assert not (is_file and order), given


def test_statements_keep_to_functions_that_engines_agree_on(everything: list[tuple[str, bool, exp.Expr]]) -> None:
    for given, _, _ in everything:
        functions = {type(node) for node in sqlglot.parse_one(given, read="duckdb").find_all(exp.Func)}
        assert functions <= AGREED, given


@pytest.mark.parametrize(
    ("duckdb", "spark"),
    [
        ("SELECT SUM(a) OVER w - 1 FROM t WINDOW w AS (ORDER BY a DESC)",
         "SELECT (SUM(a) OVER w) - 1 FROM t WINDOW w AS (ORDER BY a DESC)"),
        ("SELECT CAST(a AS UINTEGER), CAST(b AS TIMESTAMP_NS)", "SELECT CAST(a AS BIGINT), CAST(b AS TIMESTAMP_NTZ)"),
        (r"""SELECT 'it''s \n ${x}' = "a`b" """, r"SELECT 'it\'s \\n ${x}' = `a``b`"),
    ],
)  # fmt: skip
def test_what_spark_would_read_otherwise_is_written_otherwise(duckdb: str, spark: str) -> None:
    assert spark_sql(duckdb) == spark


def test_an_order_with_ordinals_and_groups_is_kept() -> None:
    given = 'SELECT "a" AS "key", COUNT(*) FROM "t" GROUP BY 1 ORDER BY 1, 2 DESC'
    written = "SELECT /*+ REPARTITION(1) */ `a` AS `key`, COUNT(*) FROM `t` GROUP BY 1 SORT BY 1 NULLS LAST, 2 DESC"
    assert spark_sql(given, hint="REPARTITION(1)") == written


def test_what_spark_has_no_words_for_is_an_error() -> None:
    with pytest.raises(sqlglot.errors.UnsupportedError):
        spark_sql("SELECT TRY(a)")
