"""Arrays on disk: written piece by piece, mapped when read, so that none has to fit in memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

Pieces = Mapping[str, np.ndarray]


@contextmanager
def append_arrays(
    folder: Path, prefix: str, dtypes: Mapping[str, type[np.generic]]
) -> Iterator[Callable[[Pieces], None]]:
    """Yields a function that appends one piece to each of the arrays `prefix.NAME.npy`, which are whole afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    length = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{prefix}.{name}.npy").open("wb")) for name in dtypes}

        def append(pieces: Pieces) -> None:
            nonlocal length
            for name, dtype in dtypes.items():
                files[name].write(np.ascontiguousarray(pieces[name], dtype).tobytes())
            length += len(pieces[next(iter(dtypes))])

        for name, dtype in dtypes.items():
            _write_header(files[name], dtype, 0)
        yield append
        for name, dtype in dtypes.items():
            files[name].seek(0)
            _write_header(files[name], dtype, length)


def map_array(path: Path) -> np.ndarray:
    """A saved array, memory-mapped; an empty one is read, since nothing of length zero can be mapped."""
    try:
        return np.asanyarray(np.load(path, mmap_mode="r"))
    except ValueError:
        return np.asanyarray(np.load(path))


def _write_header(file: BinaryIO, dtype: type[np.generic], length: int) -> None:
    """The header has one size for every length: the format leaves room for the first axis to grow."""
    description = npy.dtype_to_descr(np.dtype(dtype))
    npy.write_array_header_1_0(file, {"descr": description, "fortran_order": False, "shape": (length,)})
