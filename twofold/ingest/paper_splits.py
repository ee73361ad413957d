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

# `(user,item)` and 99 items, read as one column: the file has neither bars nor quotation marks.
_NEGATIVES_OPTIONS: Final = f"delim='|', quote='', header=false, columns={column_types_sql({'row': 'VARCHAR'})}"
NCF: Final = Layout(
    {
        "train": SourceFiles(("*.train.rating",), TAB_SEPARATED_RATINGS),
        "test": SourceFiles(("*.test.rating",), TAB_SEPARATED_RATINGS),
        "negatives": SourceFiles(("*.test.negative",), _NEGATIVES_OPTIONS),
    },
    {
        # The training pairs and, last, the test item of every user.
        "events": """
            SELECT "user" AS user_id, item AS item_id, "timestamp" * 1000 + LEAST(999, ROW_NUMBER() OVER (
                    PARTITION BY "user", "timestamp" ORDER BY is_test, position
                ) - 1) AS "at", rating, is_test
            FROM (
                SELECT "user", item, rating, "timestamp", FALSE AS is_test, ROW_NUMBER() OVER () AS position FROM train
                UNION ALL SELECT "user", item, rating, "timestamp", TRUE, 0 FROM test
            )
        """,
        "published_negatives": r"""
            SELECT CAST(REGEXP_EXTRACT("row", '^\((\d+),', 1) AS BIGINT) AS user_id,
                CAST(STRING_SPLIT(TRIM("row"), CHR(9))[2:] AS BIGINT[]) AS item_id
            FROM negatives
        """,
    },
)
