"""Layouts of the MovieLens data sets, as published."""

from typing import Final

from twofold.ingest.layout import CSV_WITH_HEADER, Layout, SourceFiles, column_types_sql
from twofold.prepare.duckdb_connection import quote_name, quote_text

_YEAR: Final = r"TRY_CAST(REGEXP_EXTRACT(title, '\((\d{4})[–-]?\d*\)\s*$', 1) AS INTEGER)"  # (1995), (2006–2007)
_DAT: Final = "delim='::', header=false, quote='', escape='', encoding='latin-1'"
_BARS: Final = _DAT.replace("::", "|")
_100K_GENRES: Final = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
)


def _ratings_sql(user: str, item: str, seconds: str) -> str:
    """Returns the SELECT of ratings with `at` in milliseconds, distinct within each second of a user.

    Of a user's ratings in one second, the nth in the order of the file gets n - 1 added milliseconds: more than half of
    MovieLens shares its second with the user's rating before it, and papers that hold out "the last" rating break these
    ties by the order of the file. Beyond 1,000 ratings in a second the order is lost.
    """
    return f"""
        SELECT CAST({user} AS BIGINT) AS user_id, CAST({item} AS BIGINT) AS item_id,
            CAST({seconds} AS BIGINT) * 1000 + LEAST(999, ROW_NUMBER() OVER (
                PARTITION BY {user}, {seconds} ORDER BY position
            ) - 1) AS "at",
            CAST(rating AS DOUBLE) AS rating
        FROM (SELECT *, ROW_NUMBER() OVER () AS position FROM ratings)
    """


def _movies_sql(item: str) -> str:
    """Returns the SELECT of items with title, year (from the title) and genres (none: an empty list)."""
    return f"""
        SELECT CAST({item} AS BIGINT) AS item_id, title, {_YEAR} AS year, CAST(CASE
            WHEN genres IS NULL OR genres = '(no genres listed)' THEN [] ELSE STRING_SPLIT(genres, '|')
        END AS VARCHAR[]) AS genres FROM movies
    """


_MOVIES_CSV: Final = SourceFiles(
    ("movies.csv",), f"{CSV_WITH_HEADER}, types={column_types_sql({'title': 'VARCHAR', 'genres': 'VARCHAR'})}"
)
_MOVIES_CSV_SQL: Final = _movies_sql('"movieId"')
MOVIELENS_CSV: Final = Layout(
    {"ratings": SourceFiles(("ratings.csv",), CSV_WITH_HEADER), "movies": _MOVIES_CSV},
    {"events": _ratings_sql('"userId"', '"movieId"', '"timestamp"'), "items": _MOVIES_CSV_SQL},
)

_RATING_TYPES: Final = {"user": "BIGINT", "item": "BIGINT", "rating": "DOUBLE", "timestamp": "BIGINT"}
TAB_SEPARATED_RATINGS: Final = rf"delim='\t', header=false, columns={column_types_sql(_RATING_TYPES)}"
MOVIELENS_1M: Final = Layout(
    {
        "ratings": SourceFiles(("ratings.dat",), f"{_DAT}, columns={column_types_sql(_RATING_TYPES)}"),
        "movies": SourceFiles(
            ("movies.dat",),
            f"{_DAT}, columns={column_types_sql({'item': 'BIGINT', 'title': 'VARCHAR', 'genres': 'VARCHAR'})}",
        ),
        "raw_users": SourceFiles(
            ("users.dat",),
            f"{_DAT}, columns="
            + column_types_sql(
                {"user": "BIGINT", "gender": "VARCHAR", "age": "INTEGER", "occupation": "INTEGER", "zip": "VARCHAR"}
            ),
        ),
    },
    {
        "events": _ratings_sql('"user"', "item", '"timestamp"'),
        "items": _movies_sql("item"),
        "users": """
            SELECT CAST("user" AS BIGINT) AS user_id, gender, CAST(age AS INTEGER) AS age,
                CAST(occupation AS INTEGER) AS occupation, zip FROM raw_users
        """,
    },
)


def _movielens_100k() -> Layout:
    """Returns the layout of MovieLens-100K, whose items have one column per genre."""
    flags = ", ".join(f"CASE WHEN {quote_name(genre)} THEN {quote_text(genre)} END" for genre in _100K_GENRES.split())
    item_types = {"item": "BIGINT", "title": "VARCHAR", "released": "VARCHAR", "on_video": "VARCHAR", "page": "VARCHAR"}
    item_types |= dict.fromkeys(("unknown", *_100K_GENRES.split()), "BOOLEAN")
    user_types = {"user": "BIGINT", "age": "INTEGER", "gender": "VARCHAR", "occupation": "VARCHAR", "zip": "VARCHAR"}
    return Layout(
        {
            "ratings": SourceFiles(("u.data",), TAB_SEPARATED_RATINGS),
            "movies": SourceFiles(("u.item",), f"{_BARS}, columns={column_types_sql(item_types)}"),
            "raw_users": SourceFiles(("u.user",), f"{_BARS}, columns={column_types_sql(user_types)}"),
        },
        {
            "events": _ratings_sql('"user"', "item", '"timestamp"'),
            "items": f"""
                SELECT item AS item_id, title, {_YEAR} AS year,
                    LIST_FILTER([{flags}], lambda genre: genre IS NOT NULL) AS genres FROM movies
            """,
            "users": 'SELECT "user" AS user_id, age, gender, occupation, zip FROM raw_users',
        },
    )


MOVIELENS_100K: Final = _movielens_100k()
