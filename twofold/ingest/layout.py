"""How public data sets lie in their folders, as published and as rebuilt: the files, and the SELECTs that make tables.

Nothing is read here. A layout names its pieces; in its SELECTs a piece is a table. `public.py` runs them on DuckDB
alone, so they may say what Spark would not understand. Rows are those published, exact duplicates and all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final


@dataclass(frozen=True)
class SourceFiles:
    """Files with the same columns, read as one table: `*` in a name stands for what the publisher may have written.

    `reading` is the options of DuckDB's read_csv; Parquet needs none.
    """

    names: tuple[str, ...]
    reading: str = ""

    @property
    def is_parquet(self) -> bool:
        return PurePath(self.names[0]).suffix == ".parquet"


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies in a folder: its pieces, all in that folder; and table → SELECT over them."""

    pieces: Mapping[str, SourceFiles]
    tables: Mapping[str, str]


def _select_sql(columns: Mapping[str, tuple[str, str]], origin: str) -> str:
    listed = ", ".join(f'CAST({value} AS {type_}) AS "{name}"' for name, (type_, value) in columns.items())
    return f"SELECT {listed} FROM {origin}"


_HEADED: Final = "header=true, delim=',', quote='\"', escape='\"'"


def _columns(types: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"'{name}': '{type_}'" for name, type_ in types.items()) + "}"


# --- KuaiRand ---------------------------------------------------------------------------------------------------------

# our name → type, expression over the log, expression over the tails (they have order, long view and like alone).
# `date` and `hourmin` are kept so that an exact duplicate is one in every published column: without them, 412 more rows
# of KuaiRand-Pure's last 14 days would pass for duplicates.
_KUAIRAND_EVENTS: Final[dict[str, tuple[str, str, str]]] = {
    "user_id": ("BIGINT", "user_id", "user_id"),
    "item_id": ("BIGINT", "video_id", "video_id"),
    "at": (
        "BIGINT",
        "time_ms",
        # Rising times in the window the tails are from, which begins on 9 April 2022, 00:00 in Beijing: the event that
        # was the (pos + 1)th of history_len stands at that share of the way to the user's last time.
        "1649433600000 + (last_time_ms - 1649433600000) * (CAST(pos AS BIGINT) + 1) // history_len",
    ),
    "at_is_estimated": ("BOOLEAN", "FALSE", "TRUE"),
    "clicked": ("BOOLEAN", "is_click", "NULL"),
    "liked": ("BOOLEAN", "is_like", "is_like"),
    "followed": ("BOOLEAN", "is_follow", "NULL"),
    "commented": ("BOOLEAN", "is_comment", "NULL"),
    "shared": ("BOOLEAN", "is_forward", "NULL"),
    "disliked": ("BOOLEAN", "is_hate", "NULL"),
    "long_view": ("BOOLEAN", "long_view", "long_view"),
    "watch_s": ("DOUBLE", "CAST(play_time_ms AS DOUBLE) / 1000", "NULL"),
    "length_s": ("DOUBLE", "CAST(duration_ms AS DOUBLE) / 1000", "NULL"),
    "entered_profile": ("BOOLEAN", "is_profile_enter", "NULL"),
    "profile_s": ("DOUBLE", "CAST(profile_stay_time AS DOUBLE) / 1000", "NULL"),
    "comments_s": ("DOUBLE", "CAST(comment_stay_time AS DOUBLE) / 1000", "NULL"),
    "tab": ("INTEGER", "tab", "NULL"),
    "date": ("INTEGER", "date", "NULL"),
    "hourmin": ("INTEGER", "hourmin", "NULL"),
}
_KUAIRAND_LOG: Final = (
    "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward is_hate long_view "
    "play_time_ms duration_ms profile_stay_time comment_stay_time is_profile_enter is_rand tab"
)
# Of the published items, the statistic columns (`show_cnt`, `like_cnt`, …) stay out: platform aggregates over an
# unknown period that reaches past the log, so as features they would tell a model its own future.
_KUAIRAND_ITEMS: Final[dict[str, tuple[str, str]]] = {
    "item_id": ("BIGINT", "video_id"),
    "author_id": ("BIGINT", "author_id"),
    "tags": ("VARCHAR[]", "CASE WHEN tag <> 'unknown' THEN STRING_SPLIT(tag, ',') ELSE [] END"),
    "length_s": ("DOUBLE", "CAST(video_duration AS DOUBLE) / 1000"),
    "uploaded_at": ("BIGINT", "EPOCH_MS(CAST(upload_dt AS TIMESTAMP)) - 8 * 3600000"),  # a day that begins in Beijing
    "upload_type": ("VARCHAR", "upload_type"),
    "video_type": ("VARCHAR", "video_type"),
    "music_id": ("BIGINT", "music_id"),
}
_KUAIRAND_ITEM_TYPES: Final = {
    "video_id": "BIGINT",
    "author_id": "BIGINT",
    "tag": "VARCHAR",
    "video_duration": "DOUBLE",
    "upload_dt": "VARCHAR",
    "upload_type": "VARCHAR",
    "video_type": "VARCHAR",
    "music_id": "DOUBLE",  # written as 9155697141.0 where a row has none; exact, being far below 2^53
}
_KUAIRAND_SIDES: Final = {
    "items": _select_sql(_KUAIRAND_ITEMS, "videos"),
    "users": "SELECT * REPLACE (CAST(user_id AS BIGINT) AS user_id) FROM people",
}


def _kuairand_log_sql(log: str, *, without: str) -> str:
    columns = {name: (type_, value) for name, (type_, value, _) in _KUAIRAND_EVENTS.items() if name != without}
    return _select_sql(columns, log)


def kuairand(suffix: str, *parts: str) -> tuple[Layout, ...]:
    """As published, with and without the log of randomly exposed videos: another experiment, so another table."""
    days = ("4_08_to_4_21", "4_22_to_5_08")
    logs = tuple(f"log_standard_{span}_{suffix}{part}.csv" for span in days for part in parts)
    reading = f"{_HEADED}, types={_columns(dict.fromkeys(_KUAIRAND_LOG.split(), 'BIGINT'))}"
    pieces = {
        "standard": SourceFiles(logs, reading),
        "videos": SourceFiles(
            (f"video_features_basic_{suffix}.csv",), f"{_HEADED}, types={_columns(_KUAIRAND_ITEM_TYPES)}"
        ),
        "people": SourceFiles((f"user_features_{suffix}.csv",), f"{_HEADED}, sample_size=-1"),
    }
    random = {"random": SourceFiles((f"log_random_4_22_to_5_08_{suffix}.csv",), reading)}
    tables = {"events": _kuairand_log_sql("standard", without="at_is_estimated"), **_KUAIRAND_SIDES}
    random_events = {"random_events": _kuairand_log_sql("random", without="at_is_estimated")}
    return Layout(pieces | random, tables | random_events), Layout(pieces, tables)


# What the repository ships: 14 days of the standard log, and of the days before only each user's last 50 impressions.
KUAIRAND_TAILS: Final = Layout(
    {
        "standard": SourceFiles(("kuairand-pure-log-0425-0508.parquet",)),
        "tails": SourceFiles(("kuairand-pure-train-tail50-0409-0424.parquet",)),
        "tail_users": SourceFiles(("kuairand-pure-train-users.parquet",)),
        "videos": SourceFiles(("kuairand-pure-items.parquet",)),
        "people": SourceFiles(("kuairand-pure-users.parquet",)),
    },
    {
        "events": _kuairand_log_sql("standard", without="")
        + " UNION ALL "
        + _select_sql(
            {name: (type_, value) for name, (type_, _, value) in _KUAIRAND_EVENTS.items()},
            "tails JOIN tail_users USING (user_id)",
        ),
        **_KUAIRAND_SIDES,
    },
)

# --- MovieLens --------------------------------------------------------------------------------------------------------

_YEAR: Final = r"TRY_CAST(REGEXP_EXTRACT(title, '\((\d{4})[–-]?\d*\)\s*$', 1) AS INTEGER)"  # (1995), (2006–2007)
_DAT: Final = "delim='::', header=false, quote='', escape='', encoding='latin-1'"
_BARS: Final = _DAT.replace("::", "|")
_100K_GENRES: Final = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
)


def _ratings_sql(user: str, item: str, seconds: str, *, order: str = "place", estimated: str = "") -> str:
    """Ratings with `at` in milliseconds: of a user's ratings in one second, the nth as published is n - 1 ms later.

    More than half of MovieLens shares its second with the user's rating before it; papers that hold out "the last"
    break these ties by the order of the file, and so does this. Above 1,000 in a second the order is lost.
    """
    flag = f", {estimated} AS at_is_estimated" if estimated else ""
    return f"""
        SELECT CAST({user} AS BIGINT) AS user_id, CAST({item} AS BIGINT) AS item_id,
            CAST({seconds} AS BIGINT) * 1000 + LEAST(999, ROW_NUMBER() OVER (
                PARTITION BY {user}, {seconds} ORDER BY {order}
            ) - 1) AS "at",
            CAST(rating AS DOUBLE) AS rating{flag}
        FROM (SELECT *, ROW_NUMBER() OVER () AS place FROM ratings)
    """


def _movies_sql(item: str) -> str:
    """Items with title, year (from the title) and genres; `(no genres listed)` is an empty list."""
    return f"""
        SELECT CAST({item} AS BIGINT) AS item_id, title, {_YEAR} AS year, CAST(CASE
            WHEN genres IS NULL OR genres = '(no genres listed)' THEN [] ELSE STRING_SPLIT(genres, '|')
        END AS VARCHAR[]) AS genres FROM movies
    """


_MOVIES_CSV: Final = SourceFiles(
    ("movies.csv",), f"{_HEADED}, types={_columns({'title': 'VARCHAR', 'genres': 'VARCHAR'})}"
)
_MOVIES_CSV_SQL: Final = _movies_sql('"movieId"')
MOVIELENS_CSV: Final = Layout(
    {"ratings": SourceFiles(("ratings.csv",), _HEADED), "movies": _MOVIES_CSV},
    {"events": _ratings_sql('"userId"', '"movieId"', '"timestamp"'), "items": _MOVIES_CSV_SQL},
)
MOVIELENS_PARQUET: Final = Layout(
    {"ratings": SourceFiles(("ml-latest-small.parquet",)), "movies": _MOVIES_CSV}, MOVIELENS_CSV.tables
)

_RATING: Final = {"user": "BIGINT", "item": "BIGINT", "rating": "DOUBLE", "timestamp": "BIGINT"}
_TABS: Final = rf"delim='\t', header=false, columns={_columns(_RATING)}"
MOVIELENS_1M: Final = Layout(
    {
        "ratings": SourceFiles(("ratings.dat",), f"{_DAT}, columns={_columns(_RATING)}"),
        "movies": SourceFiles(
            ("movies.dat",),
            f"{_DAT}, columns={_columns({'item': 'BIGINT', 'title': 'VARCHAR', 'genres': 'VARCHAR'})}",
        ),
        "people": SourceFiles(
            ("users.dat",),
            f"{_DAT}, columns="
            + _columns(
                {"user": "BIGINT", "gender": "VARCHAR", "age": "INTEGER", "occupation": "INTEGER", "zip": "VARCHAR"}
            ),
        ),
    },
    {
        "events": _ratings_sql('"user"', "item", '"timestamp"'),
        "items": _movies_sql("item"),
        "users": """
            SELECT CAST("user" AS BIGINT) AS user_id, gender, CAST(age AS INTEGER) AS age,
                CAST(occupation AS INTEGER) AS occupation, zip FROM people
        """,
    },
)
# Rebuilt: a tenth of the times are published there, `timestamp_est` interpolates the rest, and `pos` is the place in
# the sequence file of the SASRec paper. The 598 ratings of films with fewer than 5 have no place, and 537 of them no
# time either: their `at` is NULL, which preparation counts out.
MOVIELENS_1M_PARQUET: Final = Layout(
    {
        "ratings": SourceFiles(("ml-1m.parquet",)),
        "movies": SourceFiles(("ml-1m-movies.parquet",)),
        "people": SourceFiles(("ml-1m-users.parquet",)),
    },
    {
        **MOVIELENS_1M.tables,
        "events": _ratings_sql(
            '"user"', "item", "timestamp_est", order="pos NULLS LAST, place", estimated='"timestamp" IS NULL'
        ),
    },
)

MOVIELENS_100K_RATINGS: Final = SourceFiles(("u.data",), _TABS)


def movielens_100k(ratings: SourceFiles) -> Layout:
    """Films whose genres are columns, and ratings of either kind."""
    flags = ", ".join(f"CASE WHEN {_identifier(genre)} THEN {_text(genre)} END" for genre in _100K_GENRES.split())
    films = {"item": "BIGINT", "title": "VARCHAR", "released": "VARCHAR", "on_video": "VARCHAR", "page": "VARCHAR"}
    films_sql = ", ".join(f"{_text(name)}: '{type_}'" for name, type_ in films.items())
    genres_sql = ", ".join(f"{_text(genre)}: 'BOOLEAN'" for genre in ("unknown", *_100K_GENRES.split()))
    people = {"user": "BIGINT", "age": "INTEGER", "gender": "VARCHAR", "occupation": "VARCHAR", "zip": "VARCHAR"}
    return Layout(
        {
            "ratings": ratings,
            "movies": SourceFiles(("u.item",), f"{_BARS}, columns={{{films_sql}, {genres_sql}}}"),
            "people": SourceFiles(("u.user",), f"{_BARS}, columns={_columns(people)}"),
        },
        {
            "events": _ratings_sql('"user"', "item", '"timestamp"'),
            "items": f"""
                SELECT item AS item_id, title, {_YEAR} AS year,
                    LIST_FILTER([{flags}], lambda genre: genre IS NOT NULL) AS genres FROM movies
            """,
            "users": 'SELECT "user" AS user_id, age, gender, occupation, zip FROM people',
        },
    )


def _identifier(name: str) -> str:
    return f'"{name}"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# --- files of papers --------------------------------------------------------------------------------------------------

# 1 January 2000, 00:00 UTC, and a second an event: order is all such a file knows, so it is all that `at` can mean.
SEQUENCES: Final = Layout(
    {
        "sequences": SourceFiles(
            ("*.txt",), f"delim=' ', header=false, columns={_columns({'user': 'BIGINT', 'item': 'BIGINT'})}"
        )
    },
    {
        "events": """
            SELECT "user" AS user_id, item AS item_id,
                946684800000 + 1000 * (ROW_NUMBER() OVER (PARTITION BY "user" ORDER BY place) - 1) AS "at"
            FROM (SELECT *, ROW_NUMBER() OVER () AS place FROM sequences)
        """,
    },
)

_NCF_TEST: Final = {
    "test": SourceFiles(("*.test.rating",), _TABS),
    # (user,item) and 99 items, in one column: neither a bar nor a quotation mark occurs.
    "negatives": SourceFiles(
        ("*.test.negative",), f"delim='|', quote='', header=false, columns={_columns({'line': 'VARCHAR'})}"
    ),
}
_NCF_NEGATIVES_SQL: Final = r"""
    SELECT CAST(REGEXP_EXTRACT(line, '^\((\d+),', 1) AS BIGINT) AS user_id,
        CAST(STRING_SPLIT(TRIM(line), CHR(9))[2:] AS BIGINT[]) AS item_id
    FROM negatives
"""


def _ncf_sql(at: str, *, place: str = "ROW_NUMBER() OVER ()", estimated: str = "") -> str:
    """Train pairs and the test item of every user, which comes last; `place` orders pairs of equal time."""
    flag = f", {estimated} AS at_is_estimated" if estimated else ""
    return f"""
        SELECT "user" AS user_id, item AS item_id, {at} AS "at", rating, is_test{flag}
        FROM (
            SELECT "user", item, rating, "timestamp", FALSE AS is_test, {place} AS place FROM train
            UNION ALL SELECT "user", item, rating, "timestamp", TRUE, 0 FROM test
        )
    """


NCF: Final = Layout(
    {"train": SourceFiles(("*.train.rating",), _TABS), **_NCF_TEST},
    {
        "events": _ncf_sql(
            '"timestamp" * 1000 + LEAST(999, ROW_NUMBER() OVER '
            '(PARTITION BY "user", "timestamp" ORDER BY is_test, place) - 1)'
        ),
        "sampled_negatives": _NCF_NEGATIVES_SQL,
    },
)


def _ncf_rebuilt(pieces: Mapping[str, SourceFiles], pairs: str, *, order: str) -> Layout:
    """Train pairs without ratings and times: a second apart before the user's test item, marked as estimated."""
    return Layout(
        {"pairs": SourceFiles(("ncf-*.parquet",)), **pieces, **_NCF_TEST},
        {
            "events": f"""
                WITH train AS (
                    SELECT CAST(pairs."user" AS BIGINT) AS "user", CAST(ncf_item AS BIGINT) AS item,
                        CAST(NULL AS DOUBLE) AS rating, CAST(NULL AS BIGINT) AS "timestamp",
                        ROW_NUMBER() OVER (ORDER BY {order}) AS place
                    FROM {pairs} WHERE NOT is_test
                )
            """
            + _ncf_sql(
                '1000 * (MAX("timestamp") OVER (PARTITION BY "user") + 1 - ROW_NUMBER() OVER '
                '(PARTITION BY "user" ORDER BY is_test DESC, place DESC))',
                place="place",
                estimated="NOT is_test",
            ),
            "sampled_negatives": _NCF_NEGATIVES_SQL,
        },
    )


_PLACED_PAIRS: Final = "(SELECT *, ROW_NUMBER() OVER () AS line FROM pairs) AS pairs"
# The order of the published file says nothing of time.
NCF_PARQUET: Final = _ncf_rebuilt({}, _PLACED_PAIRS, order="line")
# The order of the sequence file, from the rebuilt ratings; those without a place in it first.
NCF_PARQUET_IN_TIME: Final = _ncf_rebuilt(
    {"ratings": SourceFiles(("ml-1m.parquet",))},
    f'{_PLACED_PAIRS} LEFT JOIN ratings ON ratings."user" = pairs."user" + 1 AND ratings.item = pairs.ml_item',
    order="timestamp_est NULLS FIRST, pos NULLS FIRST, line",
)
