"""Layouts of the leave-one-out files that papers publish: sequence files, and the split of the NCF paper."""

from typing import Final

from twofold.ingest.layout import Layout, SourceFiles, column_types_sql
from twofold.ingest.movielens import TAB_SEPARATED_RATINGS

# A sequence file has only the order of events, so `at` has no other meaning: it counts one second per event from
# 1 January 2000, 00:00 UTC.
SEQUENCE_FILE: Final = Layout(
    {
        "sequences": SourceFiles(
            ("*.txt",), f"delim=' ', header=false, columns={column_types_sql({'user': 'BIGINT', 'item': 'BIGINT'})}"
        )
    },
    {
        "events": """
            SELECT "user" AS user_id, item AS item_id,
                946684800000 + 1000 * (ROW_NUMBER() OVER (PARTITION BY "user" ORDER BY position) - 1) AS "at"
            FROM (SELECT *, ROW_NUMBER() OVER () AS position FROM sequences)
        """,
    },
)

_NCF_TEST: Final = {
    "test": SourceFiles(("*.test.rating",), TAB_SEPARATED_RATINGS),
    # `(user,item)` and 99 items, read as one column: the file has neither bars nor quotation marks.
    "negatives": SourceFiles(
        ("*.test.negative",), f"delim='|', quote='', header=false, columns={column_types_sql({'row': 'VARCHAR'})}"
    ),
}
_NCF_NEGATIVES_SQL: Final = r"""
    SELECT CAST(REGEXP_EXTRACT("row", '^\((\d+),', 1) AS BIGINT) AS user_id,
        CAST(STRING_SPLIT(TRIM("row"), CHR(9))[2:] AS BIGINT[]) AS item_id
    FROM negatives
"""


def _ncf_sql(at: str, *, position: str = "ROW_NUMBER() OVER ()", estimated: str = "") -> str:
    """Returns the SELECT of the training pairs and, last, the test item of every user.

    `position` orders pairs with equal times.
    """
    flag = f", {estimated} AS at_is_estimated" if estimated else ""
    return f"""
        SELECT "user" AS user_id, item AS item_id, {at} AS "at", rating, is_test{flag}
        FROM (
            SELECT "user", item, rating, "timestamp", FALSE AS is_test, {position} AS position FROM train
            UNION ALL SELECT "user", item, rating, "timestamp", TRUE, 0 FROM test
        )
    """


NCF: Final = Layout(
    {"train": SourceFiles(("*.train.rating",), TAB_SEPARATED_RATINGS), **_NCF_TEST},
    {
        "events": _ncf_sql(
            '"timestamp" * 1000 + LEAST(999, ROW_NUMBER() OVER '
            '(PARTITION BY "user", "timestamp" ORDER BY is_test, position) - 1)'
        ),
        "published_negatives": _NCF_NEGATIVES_SQL,
    },
)


# The split of the NCF paper rebuilt as Parquet, for benchmarks/movielens.py: training pairs without ratings and times.
# `ml-1m.parquet` gives their order (pairs without a position in it come first); their times count seconds back from the
# user's test item, and are marked as estimated.
NCF_REBUILT: Final = Layout(
    {"pairs": SourceFiles(("ncf-*.parquet",)), "ratings": SourceFiles(("ml-1m.parquet",)), **_NCF_TEST},
    {
        "events": """
            WITH train AS (
                SELECT CAST(pairs."user" AS BIGINT) AS "user", CAST(ncf_item AS BIGINT) AS item,
                    CAST(NULL AS DOUBLE) AS rating, CAST(NULL AS BIGINT) AS "timestamp",
                    ROW_NUMBER() OVER (ORDER BY timestamp_est NULLS FIRST, pos NULLS FIRST, file_order) AS position
                FROM (SELECT *, ROW_NUMBER() OVER () AS file_order FROM pairs) AS pairs
                LEFT JOIN ratings ON ratings."user" = pairs."user" + 1 AND ratings.item = pairs.ml_item
                WHERE NOT is_test
            )
        """
        + _ncf_sql(
            '1000 * (MAX("timestamp") OVER (PARTITION BY "user") + 1 - ROW_NUMBER() OVER '
            '(PARTITION BY "user" ORDER BY is_test DESC, position DESC))',
            position="position",
            estimated="NOT is_test",
        ),
        "published_negatives": _NCF_NEGATIVES_SQL,
    },
)
