"""Vectors of items in .npy files → the same vectors in the order of the prepared items."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from twofold.errors import DataError
from twofold.prepare.sources import Source
from twofold.recipe.data import Table

_LINES_A_BLOCK = 100_000


def write_vectors(data: Table, source: Source, out: Path) -> None:
    """Writes vectors/NAME.npy for each of `data.vectors`: float32, a line a row of items.parquet, NaN where there is
    none.

    DataError if a file is no matrix of numbers with a line for every row of the items file.
    """
    if not data.vectors:
        return
    _, own_name = source.items.projection["item_id"]
    listed = ds.dataset([str(path) for path in source.items.files], format=source.items.kind)
    ids = listed.to_table(columns=[own_name.strip('"').replace('""', '"')]).column(0).combine_chunks()
    prepared = pq.read_table(out / "items.parquet", columns=["item_id"])["item_id"].combine_chunks()
    line = pc.index_in(prepared, value_set=ids.cast(prepared.type))
    has_line, lines = np.asarray(pc.is_valid(line)), np.asarray(pc.fill_null(line, 0))
    (out / "vectors").mkdir(exist_ok=True)
    for name, path in data.vectors.items():
        vectors = _matrix(path, f"data.vectors.{name}", rows=len(ids))
        shape = (len(prepared), vectors.shape[1])
        written = np.lib.format.open_memmap(out / "vectors" / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
        for first in range(0, len(prepared), _LINES_A_BLOCK):
            part = slice(first, first + _LINES_A_BLOCK)
            written[part] = np.where(has_line[part, None], vectors[lines[part]], np.nan)
        written.flush()


def _matrix(path: Path, field: str, *, rows: int) -> np.ndarray:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{field}: {path} cannot be read as .npy: {error}. Write it with numpy.save.") from None
    is_matrix = isinstance(vectors, np.ndarray) and vectors.ndim == 2 and vectors.dtype.kind == "f"
    if not is_matrix or len(vectors) != rows:
        raise DataError(
            f"{field}: {path} holds {vectors.dtype} of shape {vectors.shape}; it must be floats of shape ({rows:,}, "
            f"length), a line for each row of the items file."
        )
    return np.asanyarray(vectors)
