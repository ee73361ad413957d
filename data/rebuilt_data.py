"""Data sets in Parquet that were rebuilt from published pieces: the shipped log, MovieLens, splits of papers.

    python -m data.rebuilt_data kuairand-pure --from FOLDER --to data/kuairand-pure --overwrite

writes the tables that `twofold data` writes from the published archives. Whoever has the archives needs none of this.
"""

import argparse
from pathlib import Path
from typing import Final

from twofold.ingest.kuairand import EVENTS, SIDE_TABLES
from twofold.ingest.layout import Layout, SourceFiles
from twofold.ingest.movielens import MOVIELENS_1M, MOVIELENS_CSV
from twofold.ingest.paper_splits import NCF, pairs_sql
from twofold.ingest.public import PublicSet, make_tables
from twofold.prepare.sources import projection_sql

# The tails are each user's last 50 impressions before the log; they have only the order, long view and like. Their
# times are estimated and rise within the window of the tails, which begins on 9 April 2022, 00:00 in Beijing: event
# number pos + 1 of history_len is placed at that share of the time from the window's start to the user's last event.
_TAILS: Final = {
    "user_id": "user_id",
    "item_id": "video_id",
    "at": "1649433600000 + (last_time_ms - 1649433600000) * (CAST(pos AS BIGINT) + 1) // history_len",
    "liked": "is_like",
    "long_view": "long_view",
}


def _kuairand_sql(origin: str, *, is_tail: bool) -> str:
    columns = {}
    for name, (type_, value) in EVENTS.items():
        columns[name] = (type_, _TAILS.get(name, "NULL") if is_tail else value)
        if name == "at":
            columns["at_is_estimated"] = ("BOOLEAN", "TRUE" if is_tail else "FALSE")
    return projection_sql(columns, origin)


# 14 days of the standard log, and the tails before them.
_KUAIRAND_PURE: Final = Layout(
    {
        "standard": SourceFiles(("kuairand-pure-log-0425-0508.parquet",)),
        "tails": SourceFiles(("kuairand-pure-train-tail50-0409-0424.parquet",)),
        "tail_users": SourceFiles(("kuairand-pure-train-users.parquet",)),
        "videos": SourceFiles(("kuairand-pure-items.parquet",)),
        "raw_users": SourceFiles(("kuairand-pure-users.parquet",)),
    },
    {
        "events": _kuairand_sql("standard", is_tail=False)
        + " UNION ALL "
        + _kuairand_sql("tails JOIN tail_users USING (user_id)", is_tail=True),
        **SIDE_TABLES,
    },
)
_MOVIELENS_SMALL: Final = Layout(
    {"ratings": SourceFiles(("ml-latest-small.parquet",)), "movies": MOVIELENS_CSV.files["movies"]},
    MOVIELENS_CSV.tables,
)
# Only a tenth of the times are published: `timestamp_est` interpolates the others, and `pos` is the position in the
# sequence file of the SASRec paper. The 598 ratings of movies with fewer than 5 ratings have no position, and 537 of
# them no time: their `at` is NULL, and preparation drops and counts them.
_MOVIELENS_1M: Final = Layout(
    {
        "ratings": SourceFiles(("ml-1m.parquet",)),
        "movies": SourceFiles(("ml-1m-movies.parquet",)),
        "raw_users": SourceFiles(("ml-1m-users.parquet",)),
    },
    {
        **MOVIELENS_1M.tables,
        "events": """
            SELECT CAST("user" AS BIGINT) AS user_id, CAST(item AS BIGINT) AS item_id,
                CAST(timestamp_est AS BIGINT) * 1000 + LEAST(999, ROW_NUMBER() OVER (
                    PARTITION BY "user", timestamp_est ORDER BY pos NULLS LAST, position
                ) - 1) AS "at",
                CAST(rating AS DOUBLE) AS rating, "timestamp" IS NULL AS at_is_estimated
            FROM (SELECT *, ROW_NUMBER() OVER () AS position FROM ratings)
        """,
    },
)
# Training pairs without ratings and times. `ml-1m.parquet` gives their order (pairs without a position in it come
# first); their times count seconds back from the user's test item, and are marked as estimated.
_NCF: Final = Layout(
    {
        "pairs": SourceFiles(("ncf-*.parquet",)),
        "ratings": SourceFiles(("ml-1m.parquet",)),
        "test": NCF.files["test"],
        "negatives": NCF.files["negatives"],
    },
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
            SELECT "user" AS user_id, item AS item_id,
                1000 * (MAX("timestamp") OVER (PARTITION BY "user") + 1 - ROW_NUMBER() OVER (
                    PARTITION BY "user" ORDER BY is_test DESC, position DESC
                )) AS "at", rating, is_test, NOT is_test AS at_is_estimated
            FROM (
                SELECT "user", item, rating, "timestamp", FALSE AS is_test, position FROM train
                UNION ALL SELECT "user", item, rating, "timestamp", TRUE, 0 FROM test
            )
        """,
        "published_negatives": NCF.tables["published_negatives"],
    },
)
_GOWALLA: Final = Layout(
    {"train": SourceFiles(("gowalla-train.parquet",)), "test": SourceFiles(("gowalla-test.parquet",))},
    {
        "events": pairs_sql(
            *(
                f'SELECT CAST(user_id AS BIGINT) AS "user", CAST(item_id AS BIGINT) AS item FROM {name}'
                for name in ("train", "test")
            )
        )
    },
)
SETS: Final = {
    name: PublicSet(name, "rebuilt as Parquet", "none", "those of the original data", (layout,))
    for name, layout in (
        ("kuairand-pure", _KUAIRAND_PURE),
        ("ml-latest-small", _MOVIELENS_SMALL),
        ("ml-1m", _MOVIELENS_1M),
        ("ncf", _NCF),
        ("gowalla", _GOWALLA),
    )
}


def main() -> None:
    """Converts the set that the command line names, and prints the number of rows of each table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--from", dest="origin", type=Path, required=True, help="folder with the pieces")
    parser.add_argument("--to", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--overwrite", action="store_true")
    given = parser.parse_args()
    print(make_tables(SETS[given.name], given.origin, given.to, replace=given.overwrite).rows)


if __name__ == "__main__":
    main()
