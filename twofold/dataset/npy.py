"""Arrays in .npy files: written piece by piece and memory-mapped when read, so that none has to fit in memory."""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike


@contextmanager
def append_array(path: Path, dtype: DTypeLike) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends a piece to the .npy file, which is complete when the context closes."""
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


def map_array(path: Path, *, is_read_at_random: bool = False) -> np.ndarray:
    """Maps a saved array; an empty one is read, because a file of length zero cannot be mapped.

    With `is_read_at_random`, the system reads no pages of a large file ahead: for a batch of random rows of a file that
    is not in memory it read 1 GB instead of 17 MB. A smaller file is in memory after the first epoch anyway.
    """
    try:
        mapped = np.load(path, mmap_mode="r")
        if is_read_at_random and mapped.nbytes >= _large_bytes() and hasattr(mmap, "MADV_RANDOM"):
            mapped._mmap.madvise(mmap.MADV_RANDOM)
        return np.asarray(mapped)  # a plain view: indexing a memmap costs 5 µs each time
    except ValueError:
        return np.asarray(np.load(path))


def read_ahead(array: np.ndarray, part: slice) -> None:
    """Asks the system to read a part of a mapped array; of other arrays this does nothing."""
    _advise(array, part, "MADV_WILLNEED")


def release(array: np.ndarray, part: slice) -> None:
    """Gives the memory of a part of a mapped array back to the system; of other arrays this does nothing.

    The system may keep the part in its cache.
    """
    _advise(array, part, "MADV_DONTNEED")


def _advise(array: np.ndarray, part: slice, advice: str) -> None:
    """Passes advice on the pages of a part of an array, if it is mapped and the system knows the advice."""
    mapped: object = array
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, advice) or part.stop <= part.start:
        return
    page = mmap.PAGESIZE
    first = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    begin = (first + part.start * array.strides[0]) // page * page
    mapped.madvise(getattr(mmap, advice), begin, first + part.stop * array.strides[0] - begin)


def _large_bytes() -> int:
    """Returns a quarter of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def _write_header(file: BinaryIO, dtype: DTypeLike, length: int) -> None:
    """Writes a header that has one size for every length: the format reserves room for the first axis to grow."""
    description = npy.dtype_to_descr(np.dtype(dtype))
    npy.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": (length,)})
