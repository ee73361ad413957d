"""Size of a log before it is prepared, for the estimate of what a run takes."""

from dataclasses import dataclass

from twofold.prepare.duckdb_connection import open_duckdb, quote_name
from twofold.prepare.sources import Source
from twofold.recipe.prepare import Prepare
from twofold.sql.rules import rule_columns, rule_sql


@dataclass(frozen=True)
class LogSize:
    """Numbers of events, users and items of a log; those of users and items are approximate."""

    rows: int
    users: int
    items: int
    positives: int | None
    """Events for which `prepare.positive` is true; `None` means that the rule reads more than the log."""


def log_size(prepare: Prepare, source: Source) -> LogSize:
    """Counts a log in one scan of the columns that are needed, without windows and filters."""
    derived = {name: rule for name, rule in prepare.derive.items() if rule_columns(rule) <= set(source.events.columns)}
    can_count = rule_columns(prepare.positive) <= {*source.events.columns, *derived}
    sql = f'({source.events.select_sql()}) AS "log"'
    for name, rule in derived.items() if can_count else ():
        sql = f'(SELECT *, {rule_sql(rule, result="number")} AS {quote_name(name)} FROM {sql}) AS "log"'
    positives = f"COUNT(CASE WHEN {rule_sql(prepare.positive, result='condition')} THEN 1 END)" if can_count else "NULL"
    ids = ", ".join(f'APPROX_COUNT_DISTINCT("{key}")' for key in ("user_id", "item_id"))
    with open_duckdb(None, files=source.files) as connection:
        found = connection.execute(f"SELECT COUNT(*), {ids}, {positives} FROM {sql}").fetchone()
    assert found is not None, "an aggregate has one row"
    return LogSize(*found)
