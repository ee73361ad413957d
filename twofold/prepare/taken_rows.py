"""SQL of the columns that rules read beside those of the events, and of the events that `prepare.where` takes."""

from collections.abc import Collection

from twofold.prepare.duckdb_connection import quote_name
from twofold.prepare.sources import Source
from twofold.recipe.prepare import Prepare
from twofold.sql.rules import rule_sql


def taken_sql(prepare: Prepare, source: Source, used: Collection[str], events: str) -> str:
    """Returns the table `events` with the columns of `used` that the items and users have, derived columns, and
    _tf_is_taken, the value of `where`. It reads the views `source_items` and `source_users`.
    """
    sql = events
    have = set(source.events.columns)  # a column of two tables is the event's, else the item's
    for side, key, columns in (("items", "item_id", source.items.columns), ("users", "user_id", source.users.columns)):
        if extra := [name for name in columns if name in used and name not in have]:
            have |= set(extra)
            listed = ", ".join(f'"side".{quote_name(name)}' for name in extra)
            joined = f'LEFT JOIN "source_{side}" AS "side" ON "side"."{key}" = "events"."{key}"'
            sql = f'(SELECT "events".*, {listed} FROM (SELECT * FROM {sql}) AS "events" {joined}) AS "with {side}"'
    for name, rule in prepare.derive.items():
        sql = f'(SELECT *, {rule_sql(rule, result="number")} AS "{name}" FROM {sql}) AS "derived"'
    taken = "TRUE" if prepare.where is None else f"COALESCE({rule_sql(prepare.where, result='condition')}, FALSE)"
    return f'(SELECT *, {taken} AS "_tf_is_taken" FROM {sql}) AS "taken"'
