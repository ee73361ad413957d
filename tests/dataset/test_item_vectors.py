"""Vectors that were made elsewhere: read, reduced, grouped; cold items change nothing that is fitted."""

import numpy as np
import pyarrow as pa
import pytest

from twofold.dataset.item_vectors import (
    Projection,
    cluster_rows,
    fit_clusters,
    fit_pca,
    nearest_centroid,
    read_vectors,
    write_vectors,
)
from twofold.dataset.npy import map_array
from twofold.errors import DataError

DRAW = np.random.default_rng(0)
# Along one direction, with a little noise: one component holds nearly all.
LINE = (DRAW.standard_normal((40, 1)) * [[3.0, 4.0, 0.0]] + 0.01 * DRAW.standard_normal((40, 3)) + 5).astype(np.float32)
# Three groups far apart, of 20, 15 and 5 items.
GROUPS = np.repeat(np.array([[0, 9], [9, 0], [-9, -9]], np.float32), [20, 15, 5], axis=0)
GROUPS = GROUPS + DRAW.standard_normal(GROUPS.shape).astype(np.float32)


def written(tmp_path, vectors, *, num_known, pca=None, order=None):
    (tmp_path / "features").mkdir(parents=True)
    order = np.arange(len(vectors)) if order is None else order
    facts = write_vectors("look", vectors, order=order, num_known=num_known, pca=pca, out=tmp_path)
    return map_array(tmp_path / "vectors" / "look.npy"), facts


# --- reading ----------------------------------------------------------------------------------------------------------


def test_vectors_are_read_from_a_file_or_from_a_list_column(tmp_path):
    items = pa.table({"item_id": [1, 2, 3], "look": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64()))})
    expected = [[1, 2], [np.nan, np.nan], [3, 4]]
    np.testing.assert_array_equal(read_vectors(tmp_path, "look", items), expected)
    fixed = items.set_column(1, "look", pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2)))
    np.testing.assert_array_equal(read_vectors(tmp_path, "look", fixed), expected)
    (tmp_path / "vectors").mkdir()
    np.save(tmp_path / "vectors" / "look.npy", LINE[:3])
    assert read_vectors(tmp_path, "look", items).tobytes() == LINE[:3].tobytes()


def test_vectors_that_are_nowhere_or_of_unequal_length_are_refused(tmp_path):
    items = pa.table({"item_id": [1, 2], "tags": [["a"], ["b"]], "look": [[1.0], [1.0, 2.0]], "size": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"lists size, but data.vectors names no file .* List columns: tags, look"):
        read_vectors(tmp_path, "size", items)
    with pytest.raises(
        DataError, match=r"features.vectors.look: .* hold 1, 2 numbers; every list must hold the same number"
    ):
        read_vectors(tmp_path, "look", items)


def test_without_pca_vectors_are_as_given_in_the_order_of_the_rows(tmp_path):
    given = np.array([[1, 2], [np.nan, np.nan], [5, 6]])
    found, facts = written(tmp_path, given, num_known=1, order=np.array([2, 0, 1]))
    assert found.tolist() == [[5, 6], [1, 2], [0, 0]]  # an item without a vector has zeros
    assert facts == {"dim": 2, "given_dim": 2, "explained_variance": None, "items_without": 1}


# --- principal components ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [1, 5])
def test_pca_of_equal_vectors_has_nothing_to_keep(lines):
    with pytest.raises(DataError, match=rf"look\.pca has nothing to keep: the {lines} items .* all have the same one"):
        fit_pca("look", np.full((lines, 3), 0.1, np.float32), 1)


def test_a_column_without_any_vector_is_refused(tmp_path):
    items = pa.table({"item_id": [1, 2], "look": pa.array([None, None], pa.list_(pa.float32()))})
    with pytest.raises(DataError, match=r"^features\.vectors\.look: no item has a list in the items' column look\."):
        read_vectors(tmp_path, "look", items)


def test_pca_equals_the_singular_vectors_and_says_what_it_explains(tmp_path):
    found, facts = written(tmp_path, LINE, num_known=40, pca=2)
    centred = LINE - LINE.mean(axis=0)
    _, values, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(centred @ directions[:2].T), atol=1e-4)
    assert facts["explained_variance"] == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
    assert facts["explained_variance"] > 0.999


def test_a_saved_projection_gives_the_same_vectors(tmp_path):
    found, _ = written(tmp_path, LINE, num_known=30, pca=2)
    with np.load(tmp_path / "features" / "pca.look.npz") as saved:
        loaded = Projection(saved["mean"], saved["components"], saved["explained"])
    assert loaded.apply(LINE).tobytes() == found.tobytes()


def test_items_without_a_vector_have_zeros_after_centring(tmp_path):
    vectors = LINE.copy()
    vectors[[3, 39]] = np.nan
    found, facts = written(tmp_path, vectors, num_known=30, pca=2)
    assert facts["items_without"] == 2
    assert not found[[3, 39]].any()
    assert found[[2, 38]].all()


@pytest.mark.parametrize(("lines", "k", "most"), [(40, 4, 3), (2, 3, 2)])
def test_more_components_than_there_can_be_are_refused(lines, k, most):
    message = rf"features.vectors.look.pca asks for {k} components, but {lines} items .*Set it to {most} or less"
    with pytest.raises(DataError, match=message):
        fit_pca("look", LINE[:lines], k)


# --- clusters ---------------------------------------------------------------------------------------------------------


def test_clusters_are_the_groups_largest_first():
    shuffled = DRAW.permutation(len(GROUPS))
    centroids = fit_clusters("look", GROUPS[shuffled], num_known=len(GROUPS), k=3)
    assert nearest_centroid(centroids, GROUPS).tolist() == [0] * 20 + [1] * 15 + [2] * 5
    np.testing.assert_allclose(centroids[2], GROUPS[35:].mean(axis=0), rtol=1e-5)


def test_equally_large_clusters_are_ordered_by_centroid():
    corners = np.repeat(np.array([[9, 0], [-9, 5], [-9, -5]], np.float32), 4, axis=0)
    assert fit_clusters("look", corners, num_known=12, k=3).tolist() == [[-9, -5], [-9, 5], [9, 0]]


def test_cold_items_are_in_the_nearest_cluster_and_those_without_a_vector_in_none():
    vectors = np.concatenate([GROUPS, [[-8, -8]], [[0, 0]]]).astype(np.float32)
    centroids = fit_clusters("look", vectors, num_known=40, k=3)
    found = cluster_rows(centroids, vectors)
    assert (found[0], found[1], found[-2], found[-1]) == (0, 1, 3, 0)  # row 0 is none; cluster 0 is 1


def test_more_clusters_than_items_are_refused():
    vectors = np.array([[1, 1], [0, 0], [2, 2]], np.float32)
    with pytest.raises(DataError, match=r"asks for k: 3 over the vectors look, but 2 items .* Set k to 2 or less"):
        fit_clusters("look", vectors, num_known=3, k=3)


def test_fewer_distinct_vectors_than_clusters_leave_some_empty():
    vectors = np.repeat(np.array([[1, 1], [5, 5]], np.float32), 4, axis=0)
    centroids = fit_clusters("look", vectors, num_known=8, k=3)
    assert set(nearest_centroid(centroids, vectors).tolist()) == {0, 1}


# --- what is fitted ---------------------------------------------------------------------------------------------------


def test_vectors_of_cold_items_change_neither_components_nor_centroids(tmp_path):
    changed = LINE.copy()
    changed[30:] = DRAW.standard_normal((10, 3)) * 1e3
    changed[33] = np.nan
    one, _ = written(tmp_path / "one", LINE, num_known=30, pca=2)
    other, _ = written(tmp_path / "other", changed, num_known=30, pca=2)
    components = [np.load(tmp_path / which / "features" / "pca.look.npz")["components"] for which in ("one", "other")]
    assert components[0].tobytes() == components[1].tobytes()
    assert one[:30].tobytes() == other[:30].tobytes()
    centroids = [fit_clusters("look", vectors, num_known=30, k=4) for vectors in (one, other)]
    assert centroids[0].tobytes() == centroids[1].tobytes()


def test_two_fits_of_one_catalogue_are_equal_also_by_batches(monkeypatch):
    from twofold.dataset import item_vectors as vectors

    for most in (vectors.EXACT_DISTANCES, 1):
        monkeypatch.setattr(vectors, "EXACT_DISTANCES", most)
        first, second = (fit_clusters("look", GROUPS, num_known=40, k=3) for _ in range(2))
        assert first.tobytes() == second.tobytes()
        assert nearest_centroid(first, GROUPS).tolist() == [0] * 20 + [1] * 15 + [2] * 5


def test_what_does_not_fit_in_memory_is_fitted_on_items_at_equal_distances(monkeypatch):
    from twofold.dataset import item_vectors as vectors

    monkeypatch.setattr(vectors, "SAMPLE_FLOATS", 3 * 10)
    half = np.concatenate([LINE, np.full((1, 3), np.nan, np.float32)])
    assert len(vectors._sample(half, np.arange(41))) == 9  # ten were taken, the last has no vector
