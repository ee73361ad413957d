"""Public data sets → folders of canonical tables: `twofold data` finds the pieces, and DuckDB writes the Parquet.

Each set is converted once; preparation then reads tables alone, whichever engine runs it.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Final

import duckdb
import yaml

from twofold.errors import DataError
from twofold.ingest import layout as layouts
from twofold.ingest.download import Archive, download, is_archive, is_named, unpack
from twofold.ingest.layout import Layout, SourceFiles
from twofold.prepare.sources import first_line
from twofold.progress import progress_bar
from twofold.recipe.data import Table
from twofold.recipe.messages import did_you_mean


@dataclass(frozen=True)
class PublicSet:
    """A data set, its terms, where it is published, and the layouts it is known in, the published one first.

    `address` and `md5` are the publisher's; without an address there is no archive, without `md5` no checksum.
    """

    name: str
    about: str
    size: str
    terms: str
    layouts: tuple[Layout, ...]
    address: str = ""
    md5: str = ""


@dataclass(frozen=True)
class ConvertedTables:
    """The rows of each table written, the part of a recipe that reads them, and the archive, if one was downloaded."""

    rows: Mapping[str, int]
    data: Table
    archive: Archive | None


_MEMORY_LIMIT: Final = "50%"
# Of zstd; KuaiRand-Pure's events take 8.2 MB at 9 and at 19, which is four times slower. Parquet's second version would
# take 6.3, but writes doubles in a way (BYTE_STREAM_SPLIT) that Spark's fast reader does not know.
_LEVEL: Final = 9


def find_set(name: str) -> PublicSet:
    """The set of that name; DataError with the nearest names if there is none."""
    known = {public.name: public for public in PUBLIC_SETS}
    if name not in known:
        raise DataError(
            f"there is no data set {name} ({did_you_mean(name, known)}data sets: {', '.join(known)}). The columns of a "
            f"recipe's log: twofold recipe check RECIPE --columns."
        )
    return known[name]


def make_tables(public: PublicSet, origin: Path | None, to: Path, *, replace: bool = False) -> ConvertedTables:
    """Writes a set's tables into a folder as Parquet: events by time, the others by id.

    `origin` is a folder, an archive (.zip, .tar.gz) or, for a set of one file, that file; without it the published
    archive is downloaded, beside the folder. Tables are written apart and renamed, events last: where events.parquet
    is, all is there. DataError if the archive cannot be had, if pieces are not found, are found twice or cannot be
    read, or if the folder holds events and `replace` does not say that they may go.
    """
    events = to / "events.parquet"
    if events.exists() and not replace:
        raise DataError(f"{events} exists already. Give another folder (--to), or --overwrite to replace them.")
    archive = None
    if origin is None:
        archive = _download(public, to)
        origin = archive.path
    partial = to.resolve() / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by an attempt that was killed
    partial.mkdir(parents=True)
    try:
        layout, files = _locate(public, origin, partial / "unpacked")
        rows = _write(layout, files, partial)
        events.unlink(missing_ok=True)
        for table in sorted(rows, key=lambda table: table == "events"):
            (partial / f"{table}.parquet").replace(to / f"{table}.parquet")
    except duckdb.Error as error:
        raise DataError(
            f"{origin} cannot be made tables of: {first_line(error)}. Either a file of it is damaged or not as "
            f"published (get it again), or the disk of {to} is full."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not any(to.iterdir()):
            to.rmdir()
    return ConvertedTables(rows, _tables_in(to), archive)


def data_block(data: Table) -> str:
    """What to paste into a recipe to read those tables, as YAML."""
    return yaml.safe_dump({"data": data.model_dump(mode="json", exclude_defaults=True)}, sort_keys=False, width=1_000)


def _tables_in(folder: Path) -> Table:
    found = {name: folder.resolve() / f"{name}.parquet" for name in ("events", "items", "users", "sampled_negatives")}
    return Table.model_validate({"kind": "table"} | {name: path for name, path in found.items() if path.exists()})


def _download(public: PublicSet, to: Path) -> Archive:
    if not public.address:
        raise DataError(f"{public.name} is not published as an archive. Say where yours is: --from PATH.")
    path = to.parent / PurePosixPath(public.address).name
    return download(public.address, path, md5=public.md5, then=f"twofold data {public.name} --to {quote(str(to))}")


# --- where the pieces are ---------------------------------------------------------------------------------------------

Files = Mapping[str, list[Path]]


def _locate(public: PublicSet, origin: Path, unpacked: Path) -> tuple[Layout, Files]:
    """The first layout whose pieces lie together: in the folder, or up to two below it."""
    if not origin.exists():
        raise DataError(f"there is nothing at {origin}. --from is a folder or an archive of {public.name}.")
    folder = origin
    if is_archive(origin):
        folder = unpacked
        patterns = {name for layout in public.layouts for piece in layout.pieces.values() for name in piece.names}
        unpack(origin, unpacked, patterns=patterns, address=public.address)
    if folder.is_dir():
        homes = [folder, *(path for depth in ("*", "*/*") for path in sorted(folder.glob(depth)) if path.is_dir())]
        places = [sorted(path for path in home.iterdir() if path.is_file()) for home in homes]
    else:
        places = [[folder]]
    looked = [(layout, *_pieces(layout, place)) for layout in public.layouts for place in places]
    layout, files, missing = min(looked, key=lambda found: len(found[2]))
    if missing:
        names = ", ".join(name for piece in layout.pieces.values() for name in piece.names)
        get = f" The archive: {public.address}." if public.address else ""
        raise DataError(f"{origin} lacks {', '.join(missing)} of {public.name}, which is {names} in one folder.{get}")
    same = [other for also, other, lacks in looked if also is layout and not lacks]
    if len(same) > 1:
        listed = " and ".join(str(next(iter(found.values()))[0].parent) for found in same)
        raise DataError(f"{origin} holds {public.name} {len(same)} times, in {listed}. Name the one that is meant.")
    return layout, files


def _pieces(layout: Layout, place: list[Path]) -> tuple[Files, list[str]]:
    """The files of each piece among those of a folder, and the names of which there is none, or more than one."""
    files: dict[str, list[Path]] = {}
    missing = []
    for name, piece in layout.pieces.items():
        files[name] = []
        for pattern in piece.names:
            found = [path for path in place if is_named(path.name, pattern)]
            files[name] += found
            if not found:
                missing.append(pattern)
            elif len(found) > 1:
                missing.append(f"a single {pattern} ({', '.join(path.name for path in found)} are there: name one)")
    return files, missing


# --- tables -----------------------------------------------------------------------------------------------------------


def _write(layout: Layout, files: Files, partial: Path) -> dict[str, int]:
    """Every table of the layout as a sorted Parquet file; DuckDB reads and writes nothing but these folders."""
    folders = sorted({partial, *(path.resolve().parent for found in files.values() for path in found)})
    settings = {
        "memory_limit": f"'{_MEMORY_LIMIT}'",
        "temp_directory": _text(partial / "spill"),
        "TimeZone": "'UTC'",
        "allowed_directories": f"[{', '.join(_text(folder) for folder in folders)}]",
        "enable_external_access": "false",
        "lock_configuration": "true",  # last: nothing can be set after it
    }
    rows = {}
    with duckdb.connect() as engine, progress_bar("convert", total=len(layout.tables), unit="tables") as advance:
        for name, value in settings.items():
            engine.execute(f"SET {name} = {value}")
        for name, piece in layout.pieces.items():
            engine.execute(f"CREATE VIEW {name} AS SELECT * FROM {_scan_sql(piece, files[name])}")
        for table, sql in layout.tables.items():
            path = _text(partial / f"{table}.parquet")
            copied = engine.execute(
                f"COPY (SELECT * FROM ({sql}) ORDER BY {_order_sql(table)}) TO {path} "
                f"(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL {_LEVEL})"
            ).fetchone()
            assert copied is not None
            rows[table] = int(copied[0])
            advance(1, table)
    return rows


def _order_sql(table: str) -> str:
    """By all columns, so that the same pieces give the same bytes; events by time first, to read some days alone."""
    return '"at", COLUMNS(*)' if table.endswith("events") else "COLUMNS(*)"


def _scan_sql(piece: SourceFiles, files: list[Path]) -> str:
    listed = ", ".join(_text(path.resolve()) for path in files)
    # A folder called `part=1` on the way would otherwise add a column of that name.
    if piece.is_parquet:
        return f"read_parquet([{listed}], hive_partitioning=false)"
    return f"read_csv([{listed}], hive_partitioning=false, {piece.reading})"


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


# --- all of them ------------------------------------------------------------------------------------------------------

_KUAIRAND_TERMS: Final = "CC BY-SA 4.0: with attribution, under the same licence (Gao et al. 2022)"
_MOVIELENS_TERMS: Final = "research use, no redistribution (GroupLens; Harper and Konstan 2015)"
_OWN_TERMS: Final = "those of the data it was made from"
_ZENODO: Final = "https://zenodo.org/records/10439422/files"
_GROUPLENS: Final = "https://files.grouplens.org/datasets/movielens"

PUBLIC_SETS: Final = (
    PublicSet(
        "kuairand-pure",
        "short-video feed, 7,583 videos: 1.4 M impressions",
        "47 MB",
        _KUAIRAND_TERMS,
        (*layouts.kuairand("pure", ""), layouts.KUAIRAND_TAILS),
        f"{_ZENODO}/KuaiRand-Pure.tar.gz",
        "0820331067a3784d9691136f772b35a7",
    ),
    PublicSet(
        "kuairand-1k",
        "short-video feed, 1,000 users: 11.7 M impressions of 4.4 M videos",
        "1.1 GB",
        _KUAIRAND_TERMS,
        layouts.kuairand("1k", ""),
        f"{_ZENODO}/KuaiRand-1K.tar.gz",
        "6b0b9c8222d67fcd4c676218edca3f1f",
    ),
    PublicSet(
        "kuairand-27k",
        "short-video feed, 27,285 users: 322 M impressions of 32 M videos",
        "9.9 GB",
        _KUAIRAND_TERMS,
        layouts.kuairand("27k", "_part1", "_part2"),
        f"{_ZENODO}/KuaiRand-27K.tar.gz",
        "3e3c799a24e2d23a4d2c757fbf9adf59",
    ),
    PublicSet(
        "ml-100k",
        "MovieLens: 100,000 ratings",
        "5 MB",
        _MOVIELENS_TERMS,
        (
            layouts.movielens_100k(layouts.MOVIELENS_100K_RATINGS),
            layouts.movielens_100k(SourceFiles(("ml-100k.parquet",))),
        ),
        f"{_GROUPLENS}/ml-100k.zip",
        "0e33842e24a9c977be4e0107933c0723",
    ),
    # Renewed from time to time, so without a checksum that holds.
    PublicSet(
        "ml-latest-small",
        "MovieLens: 100,836 ratings",
        "1 MB",
        _MOVIELENS_TERMS,
        (layouts.MOVIELENS_CSV, layouts.MOVIELENS_PARQUET),
        f"{_GROUPLENS}/ml-latest-small.zip",
    ),
    PublicSet(
        "ml-1m",
        "MovieLens: 1,000,209 ratings",
        "6 MB",
        _MOVIELENS_TERMS,
        (layouts.MOVIELENS_1M, layouts.MOVIELENS_1M_PARQUET),
        f"{_GROUPLENS}/ml-1m.zip",
        "c4d9eecfca2ab87c1945afe126590906",
    ),
    PublicSet(
        "ml-20m",
        "MovieLens: 20,000,263 ratings",
        "199 MB",
        _MOVIELENS_TERMS,
        (layouts.MOVIELENS_CSV,),
        f"{_GROUPLENS}/ml-20m.zip",
        "cd245b17a1ae2cc31bb14903e1204af3",
    ),
    PublicSet(
        "ml-25m",
        "MovieLens: 25,000,095 ratings",
        "262 MB",
        _MOVIELENS_TERMS,
        (layouts.MOVIELENS_CSV,),
        f"{_GROUPLENS}/ml-25m.zip",
        "6b51fb2759a8657d3bfcbfc42b592ada",
    ),
    PublicSet(
        "sequences",
        "a sequence file of a paper: a line `user item` for each event, in time order",
        "yours",
        _OWN_TERMS,
        (layouts.SEQUENCES,),
    ),
    PublicSet(
        "ncf",
        "the NCF paper's leave-one-out files: train pairs, test item, 99 sampled negatives a user",
        "yours",
        _OWN_TERMS,
        (layouts.NCF, layouts.NCF_PARQUET_IN_TIME, layouts.NCF_PARQUET),
    ),
)
