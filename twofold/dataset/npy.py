"""Arrays on disk: written piece by piece, mapped when read, so that none has to fit in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike


@contextmanager
def append_array(path: Path, dtype: DTypeLike) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends a piece to the .npy file, which is whole afterwards."""
    length = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:

        def append(piece: np.ndarray) -> None:
            nonlocal length
            file.write(np.ascontiguousarray(piece, dtype).tobytes())
            length += len(piece)

        _write_header(file, dtype, 0)
        yield append
        file.seek(0)
        _write_header(file, dtype, length)


def map_array(path: Path) -> np.ndarray:
    """A saved array, memory-mapped; an empty one is read, since nothing of length zero can be mapped."""
    try:
        return np.asarray(np.load(path, mmap_mode="r"))  # a plain view: a memmap costs 5 µs whenever it is indexed
    except ValueError:
        return np.asarray(np.load(path))


def _write_header(file: BinaryIO, dtype: DTypeLike, length: int) -> None:
    """The header has one size for every length: the format leaves room for the first axis to grow."""
    description = npy.dtype_to_descr(np.dtype(dtype))
    npy.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": (length,)})
