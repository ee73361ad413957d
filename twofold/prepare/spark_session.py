"""Sessions of Spark: one that this process starts, a server of Spark Connect, or Sail; and their error messages."""

import errno
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from twofold.errors import DataError, RecipeError
from twofold.prepare.duckdb_engine import unreadable
from twofold.prepare.sources import Source

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CONNECT_PORT: Final = 15002
"""Port of a server of Spark Connect whose address has none."""
SAIL: Final = "sail"
"""Master that stands for Sail in this process."""
# Session settings under which Spark computes what DuckDB computes.
_AS_DUCKDB: Final = {
    "spark.sql.ansi.enabled": "true",  # text that is no number is an error, and so is an overflow
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.variable.substitute": "false",  # a rule's '${x}' is a text
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # else it refuses times in nanoseconds
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.compression.codec": "zstd",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",  # names of folders are texts
    "spark.sql.adaptive.enabled": "true",
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
def open_session(master: str, spill: Path) -> Iterator["SparkSession"]:
    """Opens a session in which Spark computes what DuckDB computes; see `spark_engine` for masters."""
    from pyspark.logger import PySparkLogger

    with _sail_session() if master == SAIL else _spark_session(master, spill) as session:
        for name, value in _AS_DUCKDB.items():
            session.conf.set(name, value)
        logger = PySparkLogger.getLogger("SQLQueryContextLogger")  # prints errors of SQL, which are raised besides
        logger.disabled = True
        try:
            yield session
        finally:
            logger.disabled = False


@contextmanager
def _spark_session(master: str, spill: Path) -> Iterator["SparkSession"]:
    if master.startswith("sc://"):
        session = _connect(master)
        try:
            yield session
        finally:
            session.stop()
        return
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    session = running.newSession() if running else _start(master, spill)
    try:
        yield session
    finally:
        if not running:
            _stop(session)


@contextmanager
def _sail_session() -> Iterator["SparkSession"]:
    """Starts Sail on a free port of this machine, which only its own address reaches."""
    os.environ.setdefault("RUST_LOG", "off")  # errors are raised; Sail reads this when it is loaded
    from pysail.spark import SparkConnectServer

    server = SparkConnectServer("127.0.0.1", 0)
    server.start(background=True)
    try:
        _, port = server.listening_address
        session = _connect(f"sc://127.0.0.1:{port}")
        try:
            yield session
        finally:
            session.stop()
    finally:
        server.stop()


def _connect(master: str) -> "SparkSession":
    """Opens a session of a server of Spark Connect; one that does not answer is named at once, where the client would
    try again for ten minutes.
    """
    from pyspark.errors import PySparkException

    address = urlsplit(master)
    try:
        socket.create_connection((address.hostname or "", address.port or CONNECT_PORT), timeout=10).close()
    except OSError as error:
        raise _not_started(master, f"it does not answer ({error})") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # about pandas, which has no part in this
            from pyspark.sql.connect.session import SparkSession as RemoteSession

            session = RemoteSession.builder.remote(master).create()
        session.conf.get("spark.sql.session.timeZone")  # the first call connects
    except PySparkException as error:
        raise _not_started(master, reason_of(error)) from None
    return cast("SparkSession", session)  # another class with the same methods


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
        "spark.sql.warehouse.dir": f"file://{spill / 'warehouse'}",
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
        raise _not_started(master, reason_of(error)) from None
    return session


def _stop(session: "SparkSession") -> None:
    from py4j.protocol import Py4JError

    with suppress(ConnectionError, Py4JError):  # if it ended by itself, the error was raised before
        session.stop()


def _not_started(master: str, reason: str) -> RecipeError:
    return RecipeError(
        f"--spark-master {master}: Spark did not start: {reason}. Name one that can be reached from here: local[2] for "
        f"two threads of this machine, spark://HOST:7077, yarn, k8s://HOST:PORT, sc://HOST:PORT for Spark Connect, or "
        f"sail for Sail in this process. Spark 4 needs Java 17 or later."
    )


@contextmanager
def translated_errors(source: Source, out: Path) -> Iterator[None]:
    """Turns Spark's errors that a log, too little memory or a full disk can cause into ours, without stack traces."""
    from pyspark.errors import PySparkException

    java, java_with_text = _java_errors()
    expected: tuple[type[Exception], ...] = (ConnectionError, PySparkException, *java)
    try:
        yield
    except expected as error:
        text = str(error)
        if "No space left on device" in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from None
        has_ended = not isinstance(error, (PySparkException, *java_with_text)) or "StatusCode.UNAVAILABLE" in text
        if has_ended or "OutOfMemoryError" in text:
            raise DataError(
                f"Spark ran out of memory, or ended, while it prepared {source.files[0]}: {reason_of(error)}. Give it "
                f"more as spark.driver.memory and spark.executor.memory in its spark-defaults.conf, or here with "
                f"PYSPARK_SUBMIT_ARGS='--driver-memory 8g pyspark-shell'."
            ) from None
        # A value is not as it should be; a file cannot be read. Sail has no codes.
        if re.search(r"SQLSTATE: (22|KD)|^(error in|Cast error|Parquet error|Arrow error|External error)|cast", text):
            raise unreadable(source, reason_of(error)) from None
        raise


def _java_errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """Returns the exceptions of Java, and those with a message of Java; none if only the client is installed."""
    try:
        from py4j.protocol import Py4JError, Py4JJavaError
    except ImportError:
        return (), ()
    return (Py4JError,), (Py4JJavaError,)


def reason_of(error: Exception) -> str:
    """Returns the first sentence of Spark's message, without class, code and advice."""
    match = re.search(r"(?:^|\n)(?:An error occurred while calling \S+\n: \S+ )?(?:\[[\w.]+\] )?(.+)", str(error))
    sentence = match[1] if match else type(error).__name__
    return re.split(r"\.? SQLSTATE|(?<=\w[^.\s])\. ", sentence)[0].rstrip(".")
