"""Spark engine: runs the statements of a plan on Spark and writes the same files as DuckDB, row by row.

Spark reads and writes the same paths as this process: on a cluster, the log and the run folder are on storage that all
machines mount. Memory and cores are set in Spark's own configuration. Unlike DuckDB, Spark cannot be locked to the
log's files: the vetting of rules (`sql/rules.py`) is the only protection.
"""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlglot import ErrorLevel, exp, parse_one

from twofold.errors import DataError, RecipeError
from twofold.prepare.duckdb_engine import Engine, unreadable
from twofold.prepare.plan import Step
from twofold.prepare.sources import Source, SourceTable

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Session settings that give Spark the meaning of DuckDB.
_MEANING: Final = {
    "spark.sql.ansi.enabled": "true",  # text that is no number is an error, and so is an overflow
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.variable.substitute": "false",  # a rule's '${x}' is a text
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # else it refuses times in nanoseconds
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.compression.codec": "zstd",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",  # names of folders are texts
    "spark.sql.adaptive.enabled": "true",
}
# DuckDB's types that Spark lacks, and Spark's types with the same values.
_TYPES: Final = {
    exp.DType.USMALLINT: "INT",
    exp.DType.UINT: "BIGINT",
    exp.DType.UBIGINT: "BIGINT",
    **dict.fromkeys((exp.DType.TIMESTAMP_S, exp.DType.TIMESTAMP_MS, exp.DType.TIMESTAMP_NS), "TIMESTAMP_NTZ"),
}
# Errors are raised, so nothing needs to be logged; `spark.log.level` would not hush the first lines.
_NO_LOG: Final = """
rootLogger = off, none
appender.none.type = Null
appender.none.name = none
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = off
"""


@contextmanager
def spark_engine(source: Source, out: Path, *, master: str = "local[2]") -> Iterator[Engine]:
    """Opens Spark over a log; errors of the log, the disk or a missing Spark are raised as twofold's errors.

    If this process has a Spark session already, that cluster is used instead of `master`, and left running.
    """
    spill = out.resolve() / "spill"
    shutil.rmtree(spill, ignore_errors=True)  # left by an attempt that was killed
    spill.mkdir(parents=True)
    try:
        with _session(master, spill) as session, _explained(source, out):
            for name, table in source.tables.items():
                _make_view(_read_source(session, table, view=f"file_{name}"), f"source_{name}")

            def create(step: Step) -> None:
                rows = session.sql(spark_sql(step.sql))
                if step.is_stored:  # as files, so that nothing is computed twice
                    stored = _uri(spill / "tables" / step.name)
                    rows.write.mode("overwrite").parquet(stored)
                    rows = session.read.parquet(stored)
                _make_view(rows, step.name)

            def export(sql: str, path: Path) -> None:
                parts = path.with_name(f"{path.name}.parts")
                session.sql(spark_sql(sql, in_one_part=True)).write.mode("overwrite").parquet(_uri(parts))
                _only_part(parts).replace(path)
                shutil.rmtree(parts)

            yield Engine(create, lambda sql: session.sql(spark_sql(sql)).collect(), export)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def spark_sql(sql: str, *, in_one_part: bool = False) -> str:
    """Translates a statement of the plan; with `in_one_part`, its rows are one partition in the order of its ORDER BY.

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
    if in_one_part:  # ORDER BY alone gives many sorted parts, and joining them need not keep their order
        order = tree.args["order"].pop()
        tree.set("sort", exp.Sort(expressions=order.expressions))
        tree.set("hint", exp.Hint(expressions=[exp.func("REPARTITION", exp.Literal.number(1))]))
    return tree.sql("spark", unsupported_level=ErrorLevel.RAISE)


# --- tables -----------------------------------------------------------------------------------------------------------


def _read_source(session: "SparkSession", table: SourceTable, *, view: str) -> "DataFrame":
    """Creates the view of a table's own columns, and returns their projection."""
    from pyspark.errors import AnalysisException

    if not table.files:
        return session.sql(spark_sql(table.select_sql()))
    if table.kind != "parquet":
        raise DataError(
            f"{table.files[0]}: Spark reads {table.kind.upper()} by other rules than DuckDB, by which the recipe was "
            f"checked. Write it as Parquet, as with duckdb.sql(\"COPY (FROM 'log.csv') TO 'log.parquet'\"), or take "
            f"--engine duckdb."
        )
    try:
        paths = (re.sub(r"([][{}*?\\])", r"\\\1", _uri(path)) for path in table.files)  # no globs
        root = table.files[0].parents[len(table.partitions)]
        rows = session.read.option("basePath", _uri(root)).parquet(*paths)
        _make_view(rows.selectExpr(*(_own_sql(name, type_) for name, type_ in table.own.items())), view)
        return session.sql(spark_sql(table.select_sql(view)))
    except AnalysisException as error:
        raise DataError(
            f"{table.files[0]}: Spark cannot read it: {_reason(error)}. Write that column in another type or leave it "
            f"out, or take --engine duckdb."
        ) from None


def _own_sql(name: str, type_: str) -> str:
    """Returns the SQL of a file's column. Nanoseconds are integers, rounded to microseconds as in DuckDB."""
    column = "`" + name.replace("`", "``") + "`"
    return f"TIMESTAMP_MICROS(({column} + 500) DIV 1000) AS {column}" if type_.endswith("_NS") else column


def _make_view(rows: "DataFrame", name: str) -> None:
    rows.createOrReplaceTempView(f"`{name}`")


def _uri(path: Path) -> str:
    return f"file://{path}"


def _only_part(folder: Path) -> Path:
    parts = list(folder.glob("part-*.parquet"))
    if len(parts) != 1:
        raise DataError(
            f"Spark wrote {folder}, and this machine finds {len(parts)} parts there instead of one. Name a folder for "
            f"runs that every machine of the cluster mounts, with --runs."
        )
    return parts[0]


# --- sessions and errors ----------------------------------------------------------------------------------------------


@contextmanager
def _session(master: str, spill: Path) -> Iterator["SparkSession"]:
    from pyspark.logger import PySparkLogger
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    session = running.newSession() if running else _start(master, spill)
    for name, value in _MEANING.items():
        session.conf.set(name, value)
    logger = PySparkLogger.getLogger("SQLQueryContextLogger")  # prints errors of SQL, which are raised besides
    logger.disabled = True
    try:
        yield session
    finally:
        logger.disabled = False
        if not running:
            _stop(session)


def _start(master: str, spill: Path) -> "SparkSession":
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    home = os.environ.get("JAVA_HOME")
    if shutil.which("java", path=f"{home}/bin" if home else None) is None:
        where = f"JAVA_HOME is {home}, where there is no bin/java" if home else "there is no java on the PATH"
        raise RecipeError(f"Spark needs Java 17 or later, and {where}. Install it, or take --engine duckdb.")
    if not master.startswith(("local", "spark://", "yarn", "k8s://")):  # Spark would print a page of Java
        raise _not_started(master, "it is no master")
    settings = {
        "spark.app.name": "twofold prepare",
        "spark.driver.defaultJavaOptions": f"-Dlog4j2.configurationFile={(spill / 'log4j2.properties').as_uri()}",
        "spark.local.dir": str(spill / "local"),
        "spark.sql.warehouse.dir": _uri(spill / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    (spill / "log4j2.properties").write_text(_NO_LOG, encoding="utf-8")
    builder = SparkSession.builder.master(master)
    for name, value in settings.items():
        builder = builder.config(name, value)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pandas, which has no part in this
            session: SparkSession = builder.getOrCreate()
    except (PySparkException, Py4JError) as error:
        raise _not_started(master, _reason(error)) from None
    return session


def _stop(session: "SparkSession") -> None:
    from py4j.protocol import Py4JError

    with suppress(ConnectionError, Py4JError):  # if it ended by itself, the error was raised before
        session.stop()


def _not_started(master: str, reason: str) -> RecipeError:
    return RecipeError(
        f"--spark-master {master}: Spark did not start: {reason}. Name one that can be reached from here: local[2] for "
        f"two threads of this machine, spark://HOST:7077, yarn or k8s://HOST:PORT. Spark 4 needs Java 17 or later."
    )


@contextmanager
def _explained(source: Source, out: Path) -> Iterator[None]:
    """Raises Spark's errors about a log, memory or a disk as twofold's, without Java's stack traces."""
    from py4j.protocol import Py4JError, Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except (ConnectionError, PySparkException, Py4JError) as error:
        story = str(error)
        if "No space left on device" in story:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from None
        has_ended = not isinstance(error, PySparkException | Py4JJavaError)
        if has_ended or "OutOfMemoryError" in story:
            raise DataError(
                f"Spark ran out of memory, or ended, while it prepared {source.files[0]}: {_reason(error)}. Give it "
                f"more as spark.driver.memory and spark.executor.memory in its spark-defaults.conf, or here with "
                f"PYSPARK_SUBMIT_ARGS='--driver-memory 8g pyspark-shell'."
            ) from None
        if re.search(r"SQLSTATE: (22|KD)", story):  # a value is not as it should be; a file cannot be read
            raise unreadable(source, _reason(error)) from None
        raise


def _reason(error: Exception) -> str:
    """Returns the first sentence of Spark's message, without class, code and advice."""
    match = re.search(r"(?:^|\n)(?:An error occurred while calling \S+\n: \S+ )?(?:\[[\w.]+\] )?(.+)", str(error))
    sentence = match[1] if match else type(error).__name__
    return re.split(r"\.? SQLSTATE|(?<=\w[^.\s])\. ", sentence)[0].rstrip(".")
