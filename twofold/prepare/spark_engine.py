"""Spark engine: runs the statements of a plan on Spark and writes the same files as DuckDB, row by row.

Spark reads and writes the same paths as this process: on a cluster, the log and the run folder are on storage that all
machines mount. Memory and cores are set in Spark's own configuration. Unlike DuckDB, Spark cannot be locked to the
log's files: the vetting of rules (`sql/rules.py`) is the only protection.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from sqlglot import ErrorLevel, exp, parse_one

from twofold.errors import DataError
from twofold.prepare.duckdb_connection import open_duckdb, quote_text, scan_sql
from twofold.prepare.duckdb_engine import Engine
from twofold.prepare.plan import Shards, Step
from twofold.prepare.sources import Source, SourceTable
from twofold.prepare.spark_session import SAIL, open_session, reason_of, translated_errors
from twofold.tables import SHARD

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# DuckDB's types that Spark lacks, and Spark's types with the same values.
_TYPES: Final = {
    exp.DType.USMALLINT: "INT",
    exp.DType.UINT: "BIGINT",
    exp.DType.UBIGINT: "BIGINT",
    **dict.fromkeys((exp.DType.TIMESTAMP_S, exp.DType.TIMESTAMP_MS, exp.DType.TIMESTAMP_NS), "TIMESTAMP_NTZ"),
}


@contextmanager
def spark_engine(source: Source, out: Path, *, master: str = "local[2]") -> Iterator[Engine]:
    """Opens Spark over a log; errors of the log, the disk or a missing Spark are raised as twofold's errors.

    `master` is one that Spark's own settings know, `sc://HOST:PORT` for a server of Spark Connect, or `sail`, which
    runs Sail in this process, without Java. If this process has a Spark session already, that cluster is used instead
    of `master`, and left running.
    """
    spill, is_sail = out.resolve() / "spill", master == SAIL
    shutil.rmtree(spill, ignore_errors=True)  # left by an attempt that was killed
    spill.mkdir(parents=True)
    try:
        with open_session(master, spill) as session, translated_errors(source, out):
            for name, table in source.tables.items():
                rows = _read_source(session, table, view=f"file_{name}", is_sail=is_sail)
                _make_view(rows, f"source_{name}", is_sail=is_sail)
            writer = _Writer(session, spill, is_sail=is_sail)
            yield Engine(
                writer.create,
                lambda sql: session.sql(spark_sql(sql)).collect(),
                writer.export,
                writer.export_shards,
            )
    finally:
        shutil.rmtree(spill, ignore_errors=True)


@dataclass(frozen=True)
class _Writer:
    """Creates tables and writes files in a session. Sail keeps no order of rows in files, so they are sorted here."""

    session: "SparkSession"
    spill: Path
    is_sail: bool

    def create(self, step: Step) -> None:
        rows = self.session.sql(spark_sql(step.sql))
        if step.is_stored:  # as files, so that nothing is computed twice
            stored = self.spill / "tables" / step.name
            schema = rows.schema
            self._write(rows, stored)
            rows = self.session.read.schema(schema).parquet(self._uri(stored))  # without rows Sail writes no file
        _make_view(rows, step.name, is_sail=self.is_sail)

    def export(self, sql: str, path: Path) -> None:
        parts = path.with_name(f"{path.name}.parts")
        self._write(self.session.sql(spark_sql(sql, hint="REPARTITION(1)")), parts)
        self._join(parts, parts, order=_order_of(sql), path=path)
        shutil.rmtree(parts)

    def export_shards(self, shards: Shards, folder: Path, on_file: Callable[[str], None]) -> None:
        """Writes all shards by one statement for each output; the number of shards is that of the partitions."""
        self.create(shards.rows)
        self.create(shards.events)
        for output in shards.outputs:
            sql = output.sql(shards.events.name, has_shard=True)
            parts = self.spill / "parts"
            hint = f"REPARTITION({shards.count}, {SHARD})"
            self._write(self.session.sql(spark_sql(sql, hint=hint)), parts, partition_by=SHARD)
            (folder / output.folder).mkdir(parents=True, exist_ok=True)
            for number in range(shards.count):
                path = f"{output.folder}/{SHARD}={number}.parquet"
                self._join(parts / f"{SHARD}={number}", parts, order=output.order, path=folder / path)
                on_file(path)
            shutil.rmtree(parts)

    def _write(self, rows: "DataFrame", folder: Path, *, partition_by: str | None = None) -> None:
        writer = rows.write.mode("overwrite")
        (writer.partitionBy(partition_by) if partition_by else writer).parquet(self._uri(folder))

    def _uri(self, path: Path) -> str:
        return _source_uri(path, is_sail=self.is_sail)

    def _join(self, own: Path, folder: Path, *, order: str, path: Path) -> None:
        """Joins the parts in the folder `own` to one file; without any, it has no rows and the columns of the others.

        Spark writes one sorted part, unless it has no rows.
        """
        parts = sorted(own.rglob("*.parquet"))
        if len(parts) == 1 and not self.is_sail:
            parts[0].replace(path)
            return
        found = parts or sorted(folder.rglob("*.parquet"))
        if not found:
            raise _elsewhere(folder)
        select = f"SELECT * FROM {scan_sql(found, 'parquet')}"
        select = f"{select} ORDER BY {order}" if parts else f"{select} LIMIT 0"
        with open_duckdb(self.spill / "sort", files=found, folders=[path.parent]) as connection:
            connection.execute(f"COPY ({select}) TO {quote_text(path)} (FORMAT parquet, COMPRESSION zstd)")


def _order_of(sql: str) -> str:
    """Returns the ORDER BY of a statement of the plan, in the names of its columns."""
    order = parse_one(sql, read="duckdb").args["order"]
    for column in order.find_all(exp.Column):
        column.set("table", None)
    return ", ".join(key.sql("duckdb") for key in order.expressions)


def _elsewhere(folder: Path) -> DataError:
    return DataError(
        f"Spark wrote {folder}, and this machine finds no parts there. Name a folder for runs that every machine of "
        f"the cluster mounts, with --runs."
    )


def spark_sql(sql: str, *, hint: str | None = None, is_sail: bool = False) -> str:
    """Translates a statement of the plan; with a hint such as REPARTITION(1), each partition has its ORDER BY.

    sqlglot's UnsupportedError if Spark has no equivalent.
    """
    tree = parse_one(sql, read="duckdb")
    for type_ in list(tree.find_all(exp.DataType)):
        if type_.this in _TYPES:
            type_.replace(exp.DataType.build(_TYPES[type_.this], dialect="spark"))
    for call in list(tree.find_all(exp.Anonymous)):
        if call.name.upper() == "ISFINITE":  # Spark has no function of that name, and a comparison is right in it
            (number,) = call.expressions
            call.replace(exp.maybe_parse(f"ABS({number.sql('duckdb')}) < CAST('Infinity' AS DOUBLE)", dialect="duckdb"))
    for window in list(tree.find_all(exp.Window)):
        if window.args.get("alias"):  # Spark reads OVER w - 1 as a name with a dash in it
            window.replace(exp.Paren(this=window.copy()))
    if is_sail:  # it has no difference in milliseconds
        for difference in list(tree.find_all(exp.DateDiff)):
            time_ = exp.cast(difference.this.copy(), "TIMESTAMPTZ", dialect="duckdb")
            difference.replace(exp.IntDiv(this=exp.func("UNIX_MICROS", time_), expression=exp.Literal.number(1000)))
    if hint is not None:  # ORDER BY alone gives many sorted parts, and joining them need not keep their order
        order = tree.args["order"].pop()
        tree.set("sort", exp.Sort(expressions=order.expressions))
        tree.set("hint", exp.Hint(expressions=[exp.maybe_parse(hint)]))
    return tree.sql("spark", unsupported_level=ErrorLevel.RAISE)


# --- tables -----------------------------------------------------------------------------------------------------------


def _read_source(session: "SparkSession", table: SourceTable, *, view: str, is_sail: bool) -> "DataFrame":
    """Creates the view of a table's own columns, and returns their projection."""
    from pyspark.errors import AnalysisException

    if not table.files:
        return session.sql(spark_sql(table.select_sql(), is_sail=is_sail))
    if table.kind != "parquet":
        raise DataError(
            f"{table.files[0]}: Spark reads {table.kind.upper()} by other rules than DuckDB, by which the recipe was "
            f"checked. Write it as Parquet, as with duckdb.sql(\"COPY (FROM 'log.csv') TO 'log.parquet'\"), or take "
            f"--engine duckdb."
        )
    if is_sail and table.partitions:
        raise DataError(
            f"{table.files[0]}: its folders give the columns {', '.join(table.partitions)}, which Sail does not read. "
            f"Take --engine duckdb, or another --spark-master."
        )
    try:
        paths = [_source_uri(path, is_sail=is_sail) for path in table.files]
        paths = paths if is_sail else [re.sub(r"([][{}*?\\])", r"\\\1", path) for path in paths]  # no globs
        root = table.files[0].parents[len(table.partitions)]
        rows = session.read.option("basePath", _source_uri(root, is_sail=is_sail)).parquet(*paths)
        _make_view(
            rows.selectExpr(*(_own_sql(name, type_, is_sail=is_sail) for name, type_ in table.own.items())),
            view,
            is_sail=is_sail,
        )
        return session.sql(spark_sql(table.select_sql(view), is_sail=is_sail))
    except AnalysisException as error:
        raise DataError(
            f"{table.files[0]}: Spark cannot read it: {reason_of(error)}. Write that column in another type or leave "
            f"it out, or take --engine duckdb."
        ) from None


def _own_sql(name: str, type_: str, *, is_sail: bool) -> str:
    """Returns the SQL of a file's column. Spark reads nanoseconds as integers, which are rounded to microseconds as in
    DuckDB.
    """
    column = "`" + name.replace("`", "``") + "`"
    is_integer = type_.endswith("_NS") and not is_sail
    return f"TIMESTAMP_MICROS(({column} + 500) DIV 1000) AS {column}" if is_integer else column


def _make_view(rows: "DataFrame", name: str, *, is_sail: bool) -> None:
    rows.createOrReplaceTempView(name if is_sail else f"`{name}`")  # Sail takes the name as it is written


def _source_uri(path: Path, *, is_sail: bool) -> str:
    """Returns the address of a file; Sail's are escaped as those of the web."""
    return f"file://{quote(str(path)) if is_sail else path}"
