from pathlib import Path

import numpy as np
import pytest

from twofold.dataset import npy
from twofold.dataset.npy import append_array, map_array, read_ahead, release


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


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says how a file is mapped")
def test_a_large_file_that_is_read_at_random_is_not_read_ahead(tmp_path, monkeypatch):
    path = tmp_path / "array.npy"
    np.save(path, np.zeros(10_000))

    def flags():
        own = Path("/proc/self/smaps").read_text(encoding="utf-8").rpartition(str(path))[2]
        return own.partition("VmFlags:")[2].partition("\n")[0].split()

    small = map_array(path, is_read_at_random=True)
    assert small.sum() == 0
    assert "rr" not in flags()
    del small
    monkeypatch.setattr(npy, "_large_bytes", lambda: 80_000)
    in_order = map_array(path)
    assert "rr" not in flags()
    del in_order
    large = map_array(path, is_read_at_random=True)
    assert "rr" in flags()
    assert large.sum() == 0


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux says what is resident")
def test_pages_of_a_part_leave_memory_and_are_read_again(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, np.arange(1_000_000))

    def resident_kb():
        own = Path("/proc/self/smaps").read_text(encoding="utf-8").rpartition(str(path))[2]
        return int(own.partition("Rss:")[2].split()[0])

    mapped = map_array(path)
    records = mapped.view([("left", np.int64)])["left"]  # a column of records is a view of a view
    assert records.sum() == 499_999_500_000
    assert resident_kb() > 7_800
    release(records, slice(0, 500_000))
    assert 3_000 < resident_kb() < 4_800
    release(mapped, slice(500_000, 1_000_000))
    assert resident_kb() < 100
    read_ahead(mapped, slice(10, 900_000))
    assert mapped[10:900_000].sum() == np.arange(10, 900_000).sum()


@pytest.mark.parametrize("part", [slice(0, 3), slice(2, 2), slice(0, 0)])
def test_an_array_in_memory_and_an_empty_part_are_left_alone(tmp_path, part):
    np.save(tmp_path / "array.npy", np.arange(5))
    for array in (np.arange(5), np.arange(5)[1:], map_array(tmp_path / "array.npy")):
        for advise in (read_ahead, release):
            advise(array, part)
        assert array[-1] == 4
