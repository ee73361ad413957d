"""Public data sets in small: files written and packed as their publishers do, and tables read back."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

SECOND = 978300000
RATINGS_CSV = (
    f"userId,movieId,rating,timestamp\n1,9,3.5,{SECOND}\n1,2,4.0,{SECOND}\n1,5,0.5,{SECOND - 1}\n2,2,5.0,{SECOND}\n"
)
MOVIES_CSV = (
    "movieId,title,genres\n"
    '2,"American ""President"", The (1995)",Comedy|Drama\n'
    "5,Death Note: Desu nôto (2006–2007),(no genres listed)\n"
    "9,Babylon 5,Sci-Fi\n"
)


def write(folder: Path, files: Mapping[str, str], encoding: str = "utf-8") -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(encoding))
    return folder


def zipped(path: Path, files: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def tarred(path: Path, files: Mapping[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def rows(sql: str) -> list[tuple[Any, ...]]:
    return duckdb.execute(sql).fetchall()


def table(folder: Path, name: str, columns: str = "*", order: str = "ALL") -> list[tuple[Any, ...]]:
    return rows(f"SELECT {columns} FROM read_parquet('{folder / name}.parquet') ORDER BY {order}")
