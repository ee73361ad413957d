"""Each public data set → events, users, items: SELECTs over its files that give the tables of `twofold/tables.py`.

Rows are not read here, but for the one that shows that a file has any: names and types come from Parquet footers and
from the first lines of CSV, so that a recipe is checked before its data is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

import duckdb

from twofold.digest import digest_of, file_digest
from twofold.errors import DataError
from twofold.recipe.problems import nearest
from twofold.recipe.schema import Data, KuaiRand, Table
from twofold.tables import EVENTS, ITEMS, USERS

INTEGERS: Final = frozenset(
    f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
)
_ZONELESS: Final = frozenset({"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"})
_ZONED: Final = frozenset({"TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"})
_ENDINGS: Final = {".parquet": "read_parquet", ".csv": "read_csv"}
_WHOLE_DIGEST_BYTES: Final = 64 * 2**20
_END_BYTES: Final = 2**20


@dataclass(frozen=True)
class Source:
    """A log as SQL: each SELECT gives a canonical table, its further columns behind the required ones.

    The column maps (name → SQL type) are known before rows are read. A BOOLEAN event column `at_is_estimated`, where
    there is one, marks events whose order is known and whose time is not.
    """

    events_sql: str
    items_sql: str
    users_sql: str
    event_columns: Mapping[str, str]
    item_columns: Mapping[str, str]
    user_columns: Mapping[str, str]
    files: tuple[Path, ...]

    def fingerprint(self) -> str:
        """A digest that changes when a file does, and not when its folder moves.

        Above 64 MiB, size, time of writing, first and last MiB stand for the content: a terabyte takes too long.
        """
        return digest_of([[path.name, path.stat().st_size, _content_digest(path)] for path in self.files])


def open_source(data: Data) -> Source:
    """The source a recipe names; DataError if a file is missing, damaged or empty, or a column absent or mistyped."""
    match data:
        case KuaiRand():
            return _kuairand(data.path)
        case Table():
            return _table(data)
        case _:
            assert_never(data)


def quoted(name: str) -> str:
    """A column's name as SQL, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def table_paths(data: Data) -> dict[str, Path]:
    """Where events, items and users come from, for messages; items and users may come from the events alone."""
    match data:
        case KuaiRand():
            return {"events": data.path, "items": data.path / "items.parquet", "users": data.path / "users.parquet"}
        case Table():
            return {"events": data.events, "items": data.items or data.events, "users": data.users or data.events}
        case _:
            assert_never(data)


def select_sql(columns: Mapping[str, tuple[str, str]], origin: str) -> str:
    """SELECT of name → (type, expression) from `origin`, every column cast to its type."""
    listed = ", ".join(f"CAST({value} AS {type_}) AS {quoted(name)}" for name, (type_, value) in columns.items())
    return f"SELECT {listed} FROM {origin}"


# --- KuaiRand ---------------------------------------------------------------------------------------------------------

# canonical name → type, expression over the log, expression over the tails (they have order, long view and like alone).
# `date` and `hourmin` are kept so that an exact duplicate is one in every published column: without them, 412 more
# rows would pass for duplicates.
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
# What those expressions read, file by file: a folder of something else is refused by name.
_KUAIRAND_FILES: Final[dict[str, str]] = {
    "log": "user_id video_id date hourmin time_ms is_click is_like is_follow is_comment is_forward is_hate long_view "
    "play_time_ms duration_ms profile_stay_time comment_stay_time is_profile_enter tab",
    "tails": "user_id pos video_id long_view is_like",
    "tails_users": "user_id history_len last_time_ms",
    "items": "video_id author_id tag video_duration upload_dt upload_type video_type music_id",
    "users": "user_id",
}


def _kuairand(folder: Path) -> Source:
    if not folder.is_dir():
        raise DataError(
            f"data.path: there is no folder {folder}. The repository ships the data set as data/kuairand-pure; "
            f"a path is relative to the recipe file."
        )
    files = {name: (folder.resolve() / f"{name}.parquet",) for name in _KUAIRAND_FILES}
    columns = {name: _columns_of(paths, field="data.path") for name, paths in files.items()}
    for name, needed in _KUAIRAND_FILES.items():
        for column in needed.split():
            _type_of(column, columns[name], files[name])
    log, tails, tails_users, items, users = (scan_sql(paths) for paths in files.values())
    full = {name: (type_, of_log) for name, (type_, of_log, _) in _KUAIRAND_EVENTS.items()}
    early = {name: (type_, of_tail) for name, (type_, _, of_tail) in _KUAIRAND_EVENTS.items()}
    dated_tails = f"{tails} AS tails JOIN {tails_users} AS tails_users USING (user_id)"
    user_types = {**columns["users"], "user_id": "BIGINT"}
    return Source(
        f"{select_sql(full, log)} UNION ALL {select_sql(early, dated_tails)}",
        select_sql(_KUAIRAND_ITEMS, items),
        select_sql({name: (type_, quoted(name)) for name, type_ in user_types.items()}, users),
        {name: type_ for name, (type_, _) in full.items()},
        {name: type_ for name, (type_, _) in _KUAIRAND_ITEMS.items()},
        user_types,
        tuple(path for paths in files.values() for path in paths),
    )


# --- any table --------------------------------------------------------------------------------------------------------


def _table(data: Table) -> Source:
    """Integer ids become BIGINT; timestamps become UTC milliseconds, those without a zone being taken for UTC."""
    events_sql, events, files = _one_table(data.events, "data.events", EVENTS)
    sides = {}
    for name, path, needed in (("items", data.items, ITEMS), ("users", data.users, USERS)):
        (column,) = needed
        if path is None:
            sides[name] = (f'SELECT CAST(NULL AS {events[column]}) AS "{column}" WHERE FALSE', {column: events[column]})
            continue
        sql, columns, found = _one_table(path, f"data.{name}", needed)
        if columns[column] != events[column]:
            raise DataError(
                f"{column} is {columns[column]} in {path}, but {events[column]} in {data.events}: nothing would match. "
                f"Write both as integers or both as text."
            )
        sides[name] = (sql, columns)
        files += found
    return Source(events_sql, sides["items"][0], sides["users"][0], events, sides["items"][1], sides["users"][1], files)


def _one_table(path: Path, field: str, needed: Mapping[str, str]) -> tuple[str, dict[str, str], tuple[Path, ...]]:
    files = _files_at(path, field)
    columns = _columns_of(files, field=field)
    chosen = {name: (type_, quoted(name)) for name, type_ in columns.items()}
    for name in needed:
        type_ = _type_of(name, columns, files)
        chosen[name] = _moment(name, type_, files) if name == "at" else _id(name, type_, files)
    if "uploaded_at" in columns and needed == ITEMS:
        chosen["uploaded_at"] = _moment("uploaded_at", columns["uploaded_at"], files)
    if columns.get("at_is_estimated", "BOOLEAN") != "BOOLEAN":
        raise DataError(f"{_named(files)}: at_is_estimated is {columns['at_is_estimated']}; write it as BOOLEAN.")
    return select_sql(chosen, scan_sql(files)), {name: type_ for name, (type_, _) in chosen.items()}, files


def _id(name: str, type_: str, files: tuple[Path, ...]) -> tuple[str, str]:
    if type_ in INTEGERS:
        return "BIGINT", f'"{name}"'
    if type_ in ("VARCHAR", "UUID") or type_.startswith("ENUM"):
        return "VARCHAR", f'"{name}"'
    raise DataError(
        f"{_named(files)}: {name} is {type_}; an id is an integer or text (floats merge ids above 2^53). "
        f"Write the column as BIGINT or VARCHAR."
    )


def _moment(name: str, type_: str, files: tuple[Path, ...]) -> tuple[str, str]:
    if type_ in INTEGERS:
        return "BIGINT", f'"{name}"'
    if type_ in _ZONED:
        return "BIGINT", f'EPOCH_MS(CAST("{name}" AS TIMESTAMP WITH TIME ZONE))'
    if type_ in _ZONELESS:
        return "BIGINT", f'EPOCH_MS(CAST("{name}" AS TIMESTAMP))'
    raise DataError(
        f"{_named(files)}: {name} is {type_}; it must be UTC time in whole milliseconds, as BIGINT (1650816000000), "
        f"or a timestamp (2022-04-24 16:00:00). Floats lose the order of events, days have none."
    )


# --- files ------------------------------------------------------------------------------------------------------------


def scan_sql(files: tuple[Path, ...]) -> str:
    """The FROM clause that reads files of one kind."""
    listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    if files[0].suffix == ".csv":
        return f"read_csv([{listed}])"
    # A folder called `split=train` on the way would otherwise add a column of that name.
    return f"read_parquet([{listed}], hive_partitioning = false)"


def _files_at(path: Path, field: str) -> tuple[Path, ...]:
    """The file at a path, or those directly in a folder, in the order of their names."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    files = tuple(file.resolve() for file in found if file.suffix in _ENDINGS)
    if len({file.suffix for file in files}) != 1:
        kinds = "no .parquet and no .csv file" if not files else ".parquet and .csv files together"
        raise DataError(f"{field}: {path} holds {kinds}. Name one file, or a folder of files of one kind.")
    return files


def _columns_of(files: tuple[Path, ...], *, field: str) -> dict[str, str]:
    """Name → SQL type. One file after the other, so that the message about a bad one names it."""
    described: dict[str, str] = {}
    for path in files:
        if not path.is_file():
            beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(
                f"{field}: there is no file {path} ({nearest(path.name, beside)}a path is relative to the recipe file)."
            )
        scan = scan_sql((path,))
        try:
            with duckdb.connect() as connection:
                columns = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()}
                is_empty = not connection.execute(f"SELECT 1 FROM {scan} LIMIT 1").fetchall()
        except duckdb.Error as error:
            raise _damaged(path, error) from error
        if is_empty:
            raise DataError(f"{field}: {path} holds no rows. Check that the export that wrote it finished.")
        if described and columns != described:
            raise DataError(
                f"{field}: {path} has the columns {columns}, but {files[0]} has {described}. "
                f"All files of a folder need the same names and types."
            )
        described = columns
    return described


def _damaged(path: Path, error: duckdb.Error) -> DataError:
    """What is said of a file that the engine cannot read, with the engine's own reason."""
    return DataError(
        f"{path} cannot be read as {path.suffix[1:]} ({path.stat().st_size:,} bytes): {first_line(error)}. "
        f"It is damaged, cut short or of another kind: copy or export it again."
    )


def first_line(error: duckdb.Error) -> str:
    """The engine's reason without its advice, which is about calls the user never made."""
    return str(error).split("\n\n")[0].replace("\n", "; ").rstrip(".")


def _type_of(name: str, columns: Mapping[str, str], files: tuple[Path, ...]) -> str:
    if name in columns:
        return columns[name]
    raise DataError(
        f"{_named(files)} has no column {name} ({nearest(name, columns)}its columns: {', '.join(columns)}). "
        f"Rename the one that is meant."
    )


def _named(files: tuple[Path, ...]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"


def _content_digest(path: Path) -> str:
    facts = path.stat()
    if facts.st_size <= _WHOLE_DIGEST_BYTES:
        return file_digest(path)
    with path.open("rb") as file:
        first = file.read(_END_BYTES)
        file.seek(-_END_BYTES, 2)
        return digest_of([facts.st_mtime_ns, first.hex(), file.read().hex()])
