"""Layouts of the files that papers publish: sequence files, the split of the NCF paper, and pairs without an order."""

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

_DAY_MS: Final = 86_400_000


def pairs_sql(train: str, test: str) -> str:
    """Returns the SELECT of events for two relations of (user, item), pairs whose order nobody knows.

    A training pair is at a random moment of 1 January 2000 (UTC), or, one in ten, of the 2nd, for validation; a test
    pair is at one of the 3rd. The moments depend on the pair alone.
    """

    pair = """"user" || ',' || item"""
    held_out = f"CAST(md5_number_upper({pair}) % 10 = 0 AS BIGINT)"

    def at(day: str) -> str:
        return f"946684800000 + {_DAY_MS} * {day} + CAST(md5_number_lower({pair}) % {_DAY_MS} AS BIGINT)"

    return f"""
        SELECT "user" AS user_id, item AS item_id, {at(held_out)} AS "at" FROM ({train})
        UNION ALL SELECT "user", item, {at("2")} FROM ({test})
    """


def _pairs_of_lines(table: str) -> str:
    return f"""
        SELECT CAST("row"[1] AS BIGINT) AS "user", CAST(UNNEST("row"[2:]) AS BIGINT) AS item
        FROM (SELECT STRING_SPLIT(TRIM("row"), ' ') AS "row" FROM {table})
    """


# `user item item …`, read as one column.
_LINES: Final = f"delim='|', quote='', header=false, columns={column_types_sql({'row': 'VARCHAR'})}"
PAIR_FILES: Final = Layout(
    {"train": SourceFiles(("train.txt",), _LINES), "test": SourceFiles(("test.txt",), _LINES)},
    {"events": pairs_sql(_pairs_of_lines("train"), _pairs_of_lines("test"))},
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
