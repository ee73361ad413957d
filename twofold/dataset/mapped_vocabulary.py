"""Vocabulary of texts in files that are mapped into memory, so that the workers of a host share one copy.

```
├── NAME.ids.arrow       the ids in the order of their rows; num_known in the metadata
├── NAME.hashes.npy      64-bit hashes of the ids, rising
└── NAME.rows.npy        the row of each hash
```

A million UUIDs take 255 MB of a worker's own memory as a `Vocabulary` and 1 s to open.
"""

from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, Int64, UInt64

from twofold.dataset.npy import map_array
from twofold.dataset.vocabulary import UNKNOWN, Ids, Vocabulary


@dataclass(frozen=True)
class MappedVocabulary(Vocabulary):
    """A vocabulary of texts whose parts are mapped files. Equal hashes are told apart by the ids themselves."""

    hashes: UInt64[np.ndarray, "length"] = field(repr=False, compare=False)
    rows: Int32[np.ndarray, "length"] = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        """Does nothing: the files hold the keys, which were checked when the vocabulary was built."""

    def row_of(self, id_: Any) -> int:
        """Returns the row of one id, or `UNKNOWN`."""
        if id_ is None:
            return UNKNOWN
        text, hashes = str(id_), self.hashes
        hash_ = np.uint64(_hash(text))
        place = int(hashes.searchsorted(hash_))
        while place < len(hashes) and hashes[place] == hash_:
            row = int(self.rows[place])
            if self.ids[row].as_py() == text:
                return row
            place += 1
        return UNKNOWN

    def rows_of(self, ids: Ids) -> Int64[np.ndarray, "_"]:
        """Returns the row of each id, `UNKNOWN` for an id that has none."""
        return np.array([self.row_of(text) for text in self.typed(ids).to_pylist()], np.int64)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def save_mapped(vocabulary: Vocabulary, folder: Path, name: str) -> None:
    """Writes the files of a vocabulary of texts; integers need none, since 16 bytes each are little."""
    if not pa.types.is_string(vocabulary.ids.type):
        return
    hashes = np.fromiter(map(_hash, vocabulary.ids.to_pylist()), np.uint64, len(vocabulary))
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    np.save(folder / f"{name}.hashes.npy", hashes[order])
    np.save(folder / f"{name}.rows.npy", order)
    table = pa.table({"id": vocabulary.ids}).replace_schema_metadata({"num_known": str(vocabulary.num_known)})
    with pa.ipc.new_file(folder / f"{name}.ids.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=max(1, len(table)))


def load_mapped(folder: Path, name: str) -> Vocabulary:
    """Maps the files that `save_mapped` wrote, or reads the Parquet file of a vocabulary without them."""
    path = folder / f"{name}.ids.arrow"
    if not path.exists():
        return Vocabulary.load(folder / f"{name}.parquet")
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    hashes, rows = (map_array(folder / f"{name}.{part}.npy") for part in ("hashes", "rows"))
    if not len(table) == len(hashes) == len(rows):
        raise ValueError(f"{path.name} has {len(table)} ids, but there are {len(hashes)} hashes and {len(rows)} rows")
    return MappedVocabulary(_whole(table["id"]), int(table.schema.metadata[b"num_known"]), hashes, rows)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Returns the one chunk of a column, which is mapped; to combine chunks would copy them."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
