"""Hourly sums of `prepare.counters` and their priors, as SQL over the view `ruled`."""

from twofold.prepare.duckdb_connection import quote_name
from twofold.prepare.watch_labels import thousandths_sql
from twofold.recipe.prepare import Counters
from twofold.sql.rules import rule_sql
from twofold.tables import HOUR_MS


def counters_sql(key: str, counters: Counters) -> str:
    """Returns counts and sums per key and hour, for hours with events. `hour` counts from 1970."""
    return f"""
        SELECT {quote_name(key)} AS "key", CAST(("at" - "at" % {HOUR_MS}) / {HOUR_MS} AS BIGINT) AS "hour",
            {_sums_sql(counters)}
        FROM "ruled" WHERE "_tf_is_kept" AND NOT "_tf_is_estimated" AND {quote_name(key)} IS NOT NULL
        GROUP BY 1, 2 ORDER BY 1, 2
    """


def priors_sql(key: str, counters: Counters) -> str:
    """Returns one row with the same sums over the training window."""
    return f"""
        SELECT {_sums_sql(counters)} FROM "ruled"
        WHERE "_tf_split" = 0 AND NOT "_tf_is_estimated" AND {quote_name(key)} IS NOT NULL
    """


def counted_columns(counters: Counters) -> list[str]:
    """Returns the names of the sums of `counters_sql`, in its order."""
    return ["events", *(f"rate_{name}" for name in counters.rates), *(f"mean_{name}" for name in counters.means)]


def _sums_sql(counters: Counters) -> str:
    each = ["1"]
    each += [f"CASE WHEN {rule_sql(rule, result='condition')} THEN 1 ELSE 0 END" for rule in counters.rates.values()]
    each += [
        "COALESCE(" + thousandths_sql("(" + rule_sql(rule, result="number") + ")") + ", 0)"
        for rule in counters.means.values()
    ]
    named = zip(each, counted_columns(counters), strict=True)
    return ", ".join(f'CAST(COALESCE(SUM({value}), 0) AS BIGINT) AS "{name}"' for value, name in named)
