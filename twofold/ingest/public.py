"""Public data sets by name: downloads them, finds their files, and converts them to canonical Parquet tables.

Each set is converted once; preparation then reads the tables, whichever engine runs it.
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Final

import duckdb
import yaml

from twofold.errors import DataError
from twofold.ingest.download import Archive, download, is_archive, is_named, unpack
from twofold.ingest.kuairand import kuairand_layouts
from twofold.ingest.layout import Layout
from twofold.ingest.movielens import MOVIELENS_1M, MOVIELENS_100K, MOVIELENS_CSV
from twofold.ingest.paper_splits import NCF, PAIR_FILES, SEQUENCE_FILE
from twofold.prepare.duckdb_connection import first_line, open_duckdb, quote_text, scan_sql
from twofold.progress import progress_bar
from twofold.recipe.data import Table
from twofold.recipe.messages import did_you_mean


@dataclass(frozen=True)
class PublicSet:
    """A data set: its terms of use, where it is published, and its known layouts, the published one first.

    `url` and `md5` are the publisher's; they are empty for a set without an archive or without a checksum.
    """

    name: str
    about: str
    size: str
    terms: str
    layouts: tuple[Layout, ...]
    url: str = ""
    md5: str = ""


@dataclass(frozen=True)
class ConvertedTables:
    """Number of rows of each table written, the recipe's `data` section that reads them, and the downloaded archive."""

    rows: Mapping[str, int]
    data: Table
    archive: Archive | None


# Of zstd; KuaiRand-Pure's events take 8.2 MB at 9 and at 19, which is four times slower. Parquet's second version would
# take 6.3, but it encodes doubles (BYTE_STREAM_SPLIT) in a way that Spark's fast reader cannot read.
_COMPRESSION_LEVEL: Final = 9


def find_set(name: str) -> PublicSet:
    """Returns the data set of that name; DataError with similar names if there is none."""
    known = {public.name: public for public in PUBLIC_SETS}
    if name not in known:
        raise DataError(
            f"there is no data set {name} ({did_you_mean(name, known)}data sets: {', '.join(known)}). To see the "
            f"columns of a recipe's log: twofold recipe check RECIPE --columns."
        )
    return known[name]


def make_tables(public: PublicSet, origin: Path | None, to: Path, *, replace: bool = False) -> ConvertedTables:
    """Writes a data set's tables into a folder as Parquet: events ordered by time, the other tables by id.

    `origin` is a folder, an archive (.zip, .tar.gz) or, for a set of one file, that file; `None` means that the
    published archive is downloaded, beside the folder. Tables are written to a temporary folder and renamed, events
    last: if events.parquet exists, all tables do. DataError if the archive cannot be downloaded, if files are missing,
    ambiguous or unreadable, or if the folder holds events and `replace` is not set.
    """
    events = to / "events.parquet"
    if events.exists() and not replace:
        raise DataError(f"{events} exists already. Give another folder (--to), or --overwrite to replace them.")
    archive = None
    if origin is None:
        archive = _download(public, to)
        origin = archive.path
    partial = to.resolve() / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir(parents=True)
    try:
        layout, files = _locate(public, origin, partial / "unpacked")
        rows = _convert(layout, files, partial)
        events.unlink(missing_ok=True)
        for table in sorted(rows, key=lambda table: table == "events"):
            (partial / f"{table}.parquet").replace(to / f"{table}.parquet")
    except duckdb.Error as error:
        raise DataError(
            f"{origin} cannot be converted to tables: {first_line(error)}. Either one of its files is damaged or not "
            f"as published (get it again), or the disk of {to} is full."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not any(to.iterdir()):
            to.rmdir()
    return ConvertedTables(rows, _data_of(to, rows), archive)


def data_block(data: Table) -> str:
    """Returns the YAML to paste into a recipe that reads these tables."""
    return yaml.safe_dump({"data": data.model_dump(mode="json", exclude_defaults=True)}, sort_keys=False, width=1_000)


def _data_of(folder: Path, tables: Collection[str]) -> Table:
    """Returns the `data` section of these tables; the folder may hold those of another set, which was overwritten."""
    names = [name for name in ("events", "items", "users", "published_negatives") if name in tables]
    return Table.model_validate({"kind": "table"} | {name: folder.resolve() / f"{name}.parquet" for name in names})


def _download(public: PublicSet, to: Path) -> Archive:
    if not public.url:
        raise DataError(f"{public.name} is not published as an archive. Name your folder or file: --from PATH.")
    path = to.parent / PurePosixPath(public.url).name
    command = f"twofold data {public.name} --to {quote(str(to))}"
    return download(public.url, path, md5=public.md5, retry_command=command)


# --- finding the files ------------------------------------------------------------------------------------------------

Files = Mapping[str, list[Path]]


def _locate(public: PublicSet, origin: Path, unpacked: Path) -> tuple[Layout, Files]:
    """Returns the first layout whose files are together in the folder, or up to two levels below it."""
    if not origin.exists():
        raise DataError(f"there is nothing at {origin}. --from is a folder or an archive of {public.name}.")
    folder = origin
    if is_archive(origin):
        folder = unpacked
        patterns = {name for layout in public.layouts for source in layout.files.values() for name in source.names}
        unpack(origin, unpacked, patterns=patterns)
    if folder.is_dir():
        folders = [folder, *(path for depth in ("*", "*/*") for path in sorted(folder.glob(depth)) if path.is_dir())]
        listings = [sorted(path for path in each.iterdir() if path.is_file()) for each in folders]
    else:
        listings = [[folder]]
    candidates = [(layout, *_match(layout, listing)) for layout in public.layouts for listing in listings]
    layout, files, missing = min(candidates, key=lambda candidate: len(candidate[2]))
    if missing:
        names = ", ".join(name for source in layout.files.values() for name in source.names)
        get = f" The archive: {public.url}." if public.url else ""
        raise DataError(f"{origin} lacks {', '.join(missing)} of {public.name}, which is {names} in one folder.{get}")
    complete = [found for other, found, lacks in candidates if other is layout and not lacks]
    if len(complete) > 1:
        listed = " and ".join(str(next(iter(found.values()))[0].parent) for found in complete)
        raise DataError(f"{origin} holds {public.name} {len(complete)} times, in {listed}. Name one of these folders.")
    return layout, files


def _match(layout: Layout, listing: list[Path]) -> tuple[Files, list[str]]:
    """Returns the files of a folder that a layout names, and the names that match no file or several."""
    files: dict[str, list[Path]] = {}
    missing = []
    for name, source in layout.files.items():
        files[name] = []
        for pattern in source.names:
            matches = [path for path in listing if is_named(path.name, pattern)]
            files[name] += matches
            if not matches:
                missing.append(pattern)
            elif len(matches) > 1:
                listed = ", ".join(path.name for path in matches)
                missing.append(f"a single {pattern} (the folder has {listed}: name one)")
    return files, missing


def _convert(layout: Layout, files: Files, partial: Path) -> dict[str, int]:
    """Writes every table of the layout as a sorted Parquet file, and returns its number of rows."""
    folders = sorted({partial, *(path.resolve().parent for paths in files.values() for path in paths)})
    rows = {}
    with (
        open_duckdb(partial / "spill", folders=folders) as connection,
        progress_bar("convert", total=len(layout.tables), unit="tables") as advance,
    ):
        for name, source in layout.files.items():
            paths = [path.resolve() for path in files[name]]
            is_parquet = paths[0].suffix == ".parquet"
            scan = scan_sql(paths, "parquet") if is_parquet else scan_sql(paths, "csv", text_options=source.csv_options)
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {scan}")
        for table, sql in layout.tables.items():
            # Ordered by all columns, so that equal files give equal bytes; events by time first, to read single days.
            order = '"at", COLUMNS(*)' if table.endswith("events") else "COLUMNS(*)"
            copied = connection.execute(
                f"COPY (SELECT * FROM ({sql}) ORDER BY {order}) TO {quote_text(partial / f'{table}.parquet')} "
                f"(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL {_COMPRESSION_LEVEL})"
            ).fetchone()
            assert copied is not None
            rows[table] = int(copied[0])
            advance(1, table)
    return rows


# --- the data sets ----------------------------------------------------------------------------------------------------

_KUAIRAND_TERMS: Final = "CC BY-SA 4.0: with attribution, under the same licence (Gao et al. 2022)"
_MOVIELENS_TERMS: Final = "research use, no redistribution (GroupLens; Harper and Konstan 2015)"
_OWN_TERMS: Final = "those of the original data"
_ZENODO: Final = "https://zenodo.org/records/10439422/files"
_GROUPLENS: Final = "https://files.grouplens.org/datasets/movielens"

PUBLIC_SETS: Final = (
    PublicSet(
        "kuairand-pure",
        "short-video feed, 7,583 videos: 1.4 M impressions",
        "47 MB",
        _KUAIRAND_TERMS,
        kuairand_layouts("pure", ""),
        f"{_ZENODO}/KuaiRand-Pure.tar.gz",
        "0820331067a3784d9691136f772b35a7",
    ),
    PublicSet(
        "kuairand-1k",
        "short-video feed, 1,000 users: 11.7 M impressions of 4.4 M videos",
        "1.1 GB",
        _KUAIRAND_TERMS,
        kuairand_layouts("1k", ""),
        f"{_ZENODO}/KuaiRand-1K.tar.gz",
        "6b0b9c8222d67fcd4c676218edca3f1f",
    ),
    PublicSet(
        "kuairand-27k",
        "short-video feed, 27,285 users: 322 M impressions of 32 M videos",
        "9.9 GB",
        _KUAIRAND_TERMS,
        kuairand_layouts("27k", "_part1", "_part2"),
        f"{_ZENODO}/KuaiRand-27K.tar.gz",
        "3e3c799a24e2d23a4d2c757fbf9adf59",
    ),
    PublicSet(
        "ml-100k",
        "MovieLens: 100,000 ratings",
        "5 MB",
        _MOVIELENS_TERMS,
        (MOVIELENS_100K,),
        f"{_GROUPLENS}/ml-100k.zip",
        "0e33842e24a9c977be4e0107933c0723",
    ),
    # Published again from time to time, so no checksum stays valid.
    PublicSet(
        "ml-latest-small",
        "MovieLens: 100,836 ratings",
        "1 MB",
        _MOVIELENS_TERMS,
        (MOVIELENS_CSV,),
        f"{_GROUPLENS}/ml-latest-small.zip",
    ),
    PublicSet(
        "ml-1m",
        "MovieLens: 1,000,209 ratings",
        "6 MB",
        _MOVIELENS_TERMS,
        (MOVIELENS_1M,),
        f"{_GROUPLENS}/ml-1m.zip",
        "c4d9eecfca2ab87c1945afe126590906",
    ),
    PublicSet(
        "ml-20m",
        "MovieLens: 20,000,263 ratings",
        "199 MB",
        _MOVIELENS_TERMS,
        (MOVIELENS_CSV,),
        f"{_GROUPLENS}/ml-20m.zip",
        "cd245b17a1ae2cc31bb14903e1204af3",
    ),
    PublicSet(
        "ml-25m",
        "MovieLens: 25,000,095 ratings",
        "262 MB",
        _MOVIELENS_TERMS,
        (MOVIELENS_CSV,),
        f"{_GROUPLENS}/ml-25m.zip",
        "6b51fb2759a8657d3bfcbfc42b592ada",
    ),
    PublicSet(
        "sequences",
        "the sequence file of a paper: one line `user item` per event, in time order",
        "none",
        _OWN_TERMS,
        (SEQUENCE_FILE,),
    ),
    PublicSet(
        "ncf",
        "the NCF paper's leave-one-out files: train pairs, test item, 99 sampled negatives per user",
        "none",
        _OWN_TERMS,
        (NCF,),
    ),
    PublicSet(
        "pairs",
        "the files of graph papers such as LightGCN: train.txt and test.txt, one line `user item item …` per user",
        "none",
        _OWN_TERMS,
        (PAIR_FILES,),
    ),
)
