import numpy as np
import pytest

from twofold.dataset.npy import append_array, map_array


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.dtype([("at", np.int64), ("label", np.bool_)], align=True)])
def test_pieces_come_back_as_one_array(tmp_path, dtype):
    pieces = [np.ones(3, dtype), np.zeros(0, dtype), np.zeros(100_000, dtype)]
    with append_array(tmp_path / "new" / "array.npy", dtype) as append:
        for piece in pieces:
            append(piece)
    found = map_array(tmp_path / "new" / "array.npy")
    assert found.dtype == np.dtype(dtype)
    assert (found == np.concatenate(pieces)).all()


def test_nothing_appended_is_an_empty_array(tmp_path):
    with append_array(tmp_path / "array.npy", np.float32):
        pass
    assert map_array(tmp_path / "array.npy").shape == (0,)
