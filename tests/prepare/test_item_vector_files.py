"""Files of vectors, in the order of the prepared items."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tests.prepare.tables import TEST, TRAIN, VALIDATION, column, log_of
from tests.worlds import world_recipe, write_world
from twofold.errors import DataError
from twofold.prepare.run_plan import prepare

# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_of_a_file_follow_the_order_of_the_prepared_items(tmp_path: Path) -> None:
    rows = [(1, 5, TRAIN, True), (2, 3, TRAIN + 1, True), (2, 4, TRAIN + 2, True)]
    items = pa.table({"item_id": [5, 100, 3]})
    data = write_world(tmp_path / "log", log_of(rows), items)
    np.save(tmp_path / "look.npy", np.array([[5.0, 0.5], [100.0, 1.0], [3.0, 0.3]]))
    prepare(world_recipe(data | {"vectors": {"look": tmp_path / "look.npy"}}), tmp_path / "out")
    found = np.load(tmp_path / "out" / "vectors" / "look.npy")
    assert column(pq.read_table(tmp_path / "out" / "items.parquet").to_pylist(), "item_id") == [3, 4, 5, 100]
    np.testing.assert_array_equal(found, np.array([[3, 0.3], [np.nan, np.nan], [5, 0.5], [100, 1]], np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 4)), r"look\.npy holds float64 of shape \(2, 4\); it must be floats of shape \(3, length\)"),
        (np.zeros(3), r"holds float64 of shape \(3,\)"),
        (np.zeros((3, 2), np.int64), r"holds int64 of shape \(3, 2\); it must be floats"),
        (np.array([None] * 3), r"cannot be read as \.npy: .* Write it with numpy\.save"),
    ],
)
def test_a_file_of_vectors_that_is_none_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    data = write_world(
        tmp_path / "log", log_of([(1, 5, TRAIN, True), (2, 3, TRAIN, True)]), pa.table({"item_id": [5, 100, 3]})
    )
    np.save(tmp_path / "look.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        prepare(world_recipe(data | {"vectors": {"look": tmp_path / "look.npy"}}), tmp_path / "out")


def test_ids_of_a_csv_are_matched_by_the_engine_that_read_the_log(tmp_path: Path) -> None:
    rows = [("a", "007", TRAIN, True), ("b", "003", TRAIN + 1, True), ("b", "100", TRAIN + 2, True)]
    judged = [(user, "100", at, True) for user in ("a", "b") for at in (VALIDATION, TEST)]
    user, item, at, liked = zip(*rows, *judged, strict=True)
    log = pa.table({"user_id": list(user), "item_id": list(item), "at": list(at), "liked": list(liked)})
    data = write_world(tmp_path / "log", log)
    (tmp_path / "items.csv").write_text("item_id;name\n007;x\n100;y\n003;z\n")  # pyarrow reads these ids as integers
    np.save(tmp_path / "look.npy", np.array([[7.0], [100.0], [3.0]], np.float32))
    data |= {"items": tmp_path / "items.csv", "vectors": {"look": tmp_path / "look.npy"}}
    prepare(world_recipe(data), tmp_path / "out")
    assert column(pq.read_table(tmp_path / "out" / "items.parquet").to_pylist(), "item_id") == ["003", "007", "100"]
    assert np.load(tmp_path / "out" / "vectors" / "look.npy").tolist() == [[3], [7], [100]]


def test_an_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    data = write_world(tmp_path / "log", log_of([(1, 5, TRAIN, True), (2, 3, TRAIN, True)]), pa.table({"item_id": [5]}))
    np.savez(tmp_path / "look.npz", a=np.zeros((1, 2)), b=np.zeros((1, 2)))
    with pytest.raises(DataError, match=r"look\.npz is an archive of arrays \(a, b\)\. Write the one of the"):
        prepare(world_recipe(data | {"vectors": {"look": tmp_path / "look.npz"}}), tmp_path / "out")


@pytest.mark.parametrize("name", ["../../victim", "a/b", "..", ""])
def test_a_name_of_vectors_is_never_a_path(tmp_path: Path, name: str) -> None:
    data = write_world(tmp_path / "log", log_of([(1, 5, TRAIN, True)]), pa.table({"item_id": [5]}))
    with pytest.raises(ValidationError, match="String should match pattern"):
        world_recipe(data | {"vectors": {name: tmp_path / "look.npy"}})
    features = {"user": [{"kind": "id"}], "item": [{"kind": "id"}], "vectors": {name: {}}}
    with pytest.raises(ValidationError, match="String should match pattern"):
        world_recipe(data, {"features": features})
