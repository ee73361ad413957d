"""Content vectors of items, computed elsewhere: PCA and k-means are fitted on the items of the training window and
applied to all items.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64

from twofold.dataset.npy import map_array
from twofold.errors import DataError
from twofold.ragged import chunks

SAMPLE_FLOATS = 2**28
"""Number of floats that PCA and k-means are fitted on (1 GiB): 4 M items of 64 dimensions, 500 k of 512. More would not
change a covariance noticeably."""
EXACT_DISTANCES = 4_000_000
"""Number of items × clusters above which k-means reads random mini-batches; the exact one takes half a minute there."""
CHUNK_ITEMS = 65_536
"""Number of items that are read and transformed at once."""


@dataclass(frozen=True)
class Projection:
    """Principal components of the vectors of the training window's items, with each one's share of the variance."""

    mean: Float32[np.ndarray, "dim"]
    components: Float32[np.ndarray, "k dim"]
    explained: Float64[np.ndarray, "k"]

    def apply(self, vectors: Float32[np.ndarray, "items dim"]) -> Float32[np.ndarray, "items k"]:
        """Projects the centered vectors onto the components."""
        return (vectors - self.mean) @ self.components.T

    def save(self, path: Path) -> None:
        """Writes one .npz file."""
        np.savez(path, mean=self.mean, components=self.components, explained=self.explained)


def read_vectors(prepared: Path, name: str, items: pa.Table) -> Float[np.ndarray, "items dim"]:
    """Reads one vector per row of `items`, from `vectors/NAME.npy` (mapped) or the list column NAME; NaN if missing."""
    path = prepared / "vectors" / f"{name}.npy"
    if path.exists():
        return map_array(path)
    lists = [field.name for field in items.schema if isinstance(field.type, pa.ListType | pa.FixedSizeListType)]
    if name not in lists:
        raise DataError(
            f"features.vectors lists {name}, but data.vectors names no file for it, and the items have no list column "
            f"of that name. List columns: {', '.join(lists) or 'none'}."
        )
    return _from_lists(name, items[name].combine_chunks())


def write_vectors(
    name: str,
    vectors: Float[np.ndarray, "items dim"],
    *,
    order: Int64[np.ndarray, "items"],
    num_known: int,
    pca: int | None,
    out: Path,
) -> dict[str, Any]:
    """Writes `vectors/NAME.npy`, one vector per item row, zeros where an item has none; returns facts.

    `order` is the position of each item row in `vectors`. The first `num_known` item rows are items of the training
    window, and PCA is fitted on those of them that have a vector.
    """
    projection = None
    if pca is not None:
        projection = fit_pca(name, _sample(vectors, order[:num_known]), pca)
        projection.save(out / "features" / f"pca.{name}.npz")
    dim = vectors.shape[1] if pca is None else pca
    (out / "vectors").mkdir(exist_ok=True)
    written = np.lib.format.open_memmap(out / "vectors" / f"{name}.npy", "w+", np.float32, (len(order), dim))
    without = 0
    for block in chunks(len(order), CHUNK_ITEMS):
        raw = np.asarray(vectors[order[block]], np.float32)
        is_present = _is_present(raw)
        written[block] = 0
        written[block][is_present] = raw[is_present] if projection is None else projection.apply(raw[is_present])
        without += int((~is_present).sum())
    written.flush()
    explained = None if projection is None else float(projection.explained.sum())
    return {"dim": dim, "given_dim": vectors.shape[1], "explained_variance": explained, "items_without": without}


def fit_pca(name: str, vectors: Float32[np.ndarray, "items dim"], k: int) -> Projection:
    """Fits the first k principal components; DataError if the vectors have fewer, or are all equal."""
    items, dim = vectors.shape
    if k > min(items, dim):
        raise DataError(
            f"features.vectors.{name}.pca asks for {k} components, but {items:,} items of the training window have a "
            f"vector, of {dim} dimensions. Set it to {min(items, dim)} or less, or leave it out."
        )
    if not np.ptp(vectors, axis=0).any():
        raise DataError(
            f"features.vectors.{name}.pca has nothing to keep: the {items:,} items of the training window that have a "
            f"vector all have the same one. Leave the vectors out, or look for a constant in their place."
        )
    from sklearn.decomposition import PCA

    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    # Centered first: scikit-learn subtracts n · mean² from the sum of squares, which in float32 loses small variances.
    fitted = PCA(n_components=k, svd_solver="covariance_eigh").fit(vectors - mean)
    return Projection(mean, fitted.components_.astype(np.float32), fitted.explained_variance_ratio_.astype(np.float64))


def fit_clusters(
    name: str, vectors: Float32[np.ndarray, "items dim"], *, num_known: int, k: int
) -> Float32[np.ndarray, "k dim"]:
    """Fits the centroids of k-means on the items of the training window that have a vector (not all zeros).

    Cluster 0 is the largest; equally large ones are ordered by centroid, so that numbers are the same in every run.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    known = np.arange(num_known)
    sample = _sample(vectors, known[vectors[:num_known].any(axis=1)])
    if k > len(sample):
        raise DataError(
            f"a feature of kind clusters asks for k: {k} over the vectors {name}, but {len(sample):,} items of the "
            f"training window have one. Set k to {len(sample)} or less."
        )
    method = (
        KMeans(k, n_init=1, random_state=0)
        if len(sample) * k <= EXACT_DISTANCES
        else MiniBatchKMeans(k, n_init=1, random_state=0, batch_size=max(4096, 4 * k))
    )
    # With more threads the order of summation, and so the result, differs from run to run.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with fewer distinct vectors than k, some clusters stay empty
        centroids = method.fit(sample).cluster_centers_.astype(np.float32)
    sizes = np.bincount(nearest_centroid(centroids, sample), minlength=k)
    order = np.lexsort((*centroids.T[::-1], -sizes))
    return np.asarray(centroids[order])


def nearest_centroid(
    centroids: Float32[np.ndarray, "k dim"], vectors: Float32[np.ndarray, "items dim"]
) -> Int32[np.ndarray, "items"]:
    """Returns the cluster of each vector by Euclidean distance; of equally near ones, the first."""
    half_norms = (centroids**2).sum(axis=1) / 2
    clusters = np.empty(len(vectors), np.int32)
    for block in chunks(len(vectors), CHUNK_ITEMS):
        clusters[block] = (half_norms - vectors[block] @ centroids.T).argmin(axis=1)
    return clusters


def cluster_rows(
    centroids: Float32[np.ndarray, "k dim"], vectors: Float32[np.ndarray, "items dim"]
) -> Int32[np.ndarray, "_"]:
    """Returns cluster + 1 per table row (item row + 1), 0 for table row 0 and for an item without a vector."""
    clusters = np.where(vectors.any(axis=1), nearest_centroid(centroids, vectors) + 1, 0)
    return np.append(0, clusters).astype(np.int32)


def _sample(vectors: Float[np.ndarray, "items dim"], rows: Int64[np.ndarray, "_"]) -> np.ndarray:
    """Returns the vectors that exist at these rows; if memory does not hold them all, those of evenly spaced rows."""
    rows = np.sort(rows)  # a mapped file is read in the order of the disk
    most = max(SAMPLE_FLOATS // vectors.shape[1], 1)
    taken = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)] if len(rows) > most else rows
    sample = np.asarray(vectors[taken], np.float32)
    return np.asarray(sample[_is_present(sample)])


def _is_present(vectors: Float32[np.ndarray, "items dim"]) -> Bool[np.ndarray, "items"]:
    return np.asarray(np.isfinite(vectors).all(axis=1))


def _from_lists(name: str, column: pa.Array) -> Float[np.ndarray, "items dim"]:
    lengths = pc.list_value_length(column)
    dims = pc.unique(lengths.drop_null()).to_pylist()
    if not dims:
        raise DataError(f"features.vectors.{name}: no item has a list in the items' column {name}. Leave it out.")
    if len(dims) != 1 or dims == [0]:
        raise DataError(
            f"features.vectors.{name}: lists of the items' column {name} hold {', '.join(map(str, sorted(dims)))} "
            f"numbers; every list must hold the same number, and items without a vector must have NULL."
        )
    vectors = np.full((len(column), dims[0]), np.nan, np.float32)
    values = pc.list_flatten(column).cast(pa.float32())
    vectors[np.asarray(column.is_valid())] = np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, dims[0])
    return vectors
