"""Vectors of items that were made elsewhere: reduced by PCA and grouped by k-means, both fitted on the items of the
training window and applied to all.
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
"""At most 1 GiB of vectors is fitted on: 4 M items of 64 dimensions, 500 k of 512. More would not move a covariance."""
EXACT_DISTANCES = 4_000_000
"""Above so many items × clusters, k-means reads small random batches: the exact one takes half a minute there."""
BLOCK = 65_536


@dataclass(frozen=True)
class Projection:
    """Principal components of the vectors of the training window's items; `explained` is each one's share of the
    variance.
    """

    mean: Float32[np.ndarray, "dim"]
    components: Float32[np.ndarray, "k dim"]
    explained: Float64[np.ndarray, "k"]

    def apply(self, vectors: Float32[np.ndarray, "lines dim"]) -> Float32[np.ndarray, "lines k"]:
        """The vectors, centred, in the components' directions."""
        reduced: np.ndarray = (vectors - self.mean) @ self.components.T
        return reduced

    def save(self, path: Path) -> None:
        """Writes one .npz file."""
        np.savez(path, mean=self.mean, components=self.components, explained=self.explained)


def load_projection(path: Path) -> Projection:
    """Reads what `save` wrote."""
    with np.load(path) as arrays:
        return Projection(arrays["mean"], arrays["components"], arrays["explained"])


def read_vectors(prepared: Path, name: str, items: pa.Table) -> Float[np.ndarray, "items dim"]:
    """A line a row of `items`: of `vectors/NAME.npy` (mapped), or of the list column NAME. NaN where there is none."""
    path = prepared / "vectors" / f"{name}.npy"
    if path.exists():
        return map_array(path)
    lists = [field.name for field in items.schema if isinstance(field.type, pa.ListType | pa.FixedSizeListType)]
    if name not in lists:
        raise DataError(
            f"features.vectors lists {name}, but data.vectors names no file for it, and the items have no list column "
            f"of that name. Lists at hand: {', '.join(lists) or 'none'}."
        )
    return _of_lists(name, items[name].combine_chunks())


def write_vectors(
    name: str,
    vectors: Float[np.ndarray, "items dim"],
    *,
    order: Int64[np.ndarray, "items"],
    num_known: int,
    pca: int | None,
    out: Path,
) -> dict[str, Any]:
    """Writes `vectors/NAME.npy`, one line an item row, zeros where an item has no vector; returns facts.

    `order` is the line of each item row; the first `num_known` are items of the training window, and PCA is fitted on
    those of them that have a vector.
    """
    projection = None
    if pca is not None:
        projection = fit_pca(name, _sample(vectors, order[:num_known]), pca)
        projection.save(out / "features" / f"pca.{name}.npz")
    width = vectors.shape[1] if pca is None else pca
    (out / "vectors").mkdir(exist_ok=True)
    written = np.lib.format.open_memmap(out / "vectors" / f"{name}.npy", "w+", np.float32, (len(order), width))
    without = 0
    for block in chunks(len(order), BLOCK):
        raw = np.asarray(vectors[order[block]], np.float32)
        is_there = _is_there(raw)
        written[block] = 0
        written[block][is_there] = raw[is_there] if projection is None else projection.apply(raw[is_there])
        without += int((~is_there).sum())
    written.flush()
    explained = None if projection is None else float(projection.explained.sum())
    return {"dim": width, "given_dim": vectors.shape[1], "explained_variance": explained, "items_without": without}


def fit_pca(name: str, vectors: Float32[np.ndarray, "lines dim"], k: int) -> Projection:
    """The k first principal components; DataError if the vectors have not so many."""
    lines, dim = vectors.shape
    if k > min(lines, dim):
        raise DataError(
            f"features.vectors.{name}.pca asks for {k} components, but {lines:,} items of the training window have a "
            f"vector, of {dim} dimensions. Set it to {min(lines, dim)} or less, or leave it out."
        )
    from sklearn.decomposition import PCA

    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    # Centred before: scikit-learn subtracts n · mean² from the sum of squares, which in float32 loses small variances.
    fitted = PCA(n_components=k, svd_solver="covariance_eigh").fit(vectors - mean)
    return Projection(mean, fitted.components_.astype(np.float32), fitted.explained_variance_ratio_.astype(np.float64))


def fit_clusters(
    name: str, vectors: Float32[np.ndarray, "items dim"], *, num_known: int, k: int
) -> Float32[np.ndarray, "k dim"]:
    """Centroids of k-means over the items of the training window that have a vector (not all zeros).

    Cluster 0 is the largest; equally large ones are ordered by centroid, so that a number means the same in every run.
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
    # With more threads the order of a sum, and so the result, differs from run to run.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct vectors than k: some clusters then stay empty
        centroids = method.fit(sample).cluster_centers_.astype(np.float32)
    sizes = np.bincount(nearest_centroid(centroids, sample), minlength=k)
    order = np.lexsort((*centroids.T[::-1], -sizes))
    return np.asarray(centroids[order])


def nearest_centroid(
    centroids: Float32[np.ndarray, "k dim"], vectors: Float32[np.ndarray, "lines dim"]
) -> Int32[np.ndarray, "lines"]:
    """The cluster of each vector: Euclidean; of equally near ones the first."""
    half_norms = (centroids**2).sum(axis=1) / 2
    found = np.empty(len(vectors), np.int32)
    for block in chunks(len(vectors), BLOCK):
        found[block] = (half_norms - vectors[block] @ centroids.T).argmin(axis=1)
    return found


def cluster_rows(
    centroids: Float32[np.ndarray, "k dim"], vectors: Float32[np.ndarray, "items dim"]
) -> Int32[np.ndarray, "rows"]:
    """By table row (0 none, else item row + 1): cluster + 1, or 0 for an item without a vector."""
    clusters = np.where(vectors.any(axis=1), nearest_centroid(centroids, vectors) + 1, 0)
    return np.append(0, clusters).astype(np.int32)


def _sample(vectors: Float[np.ndarray, "items dim"], lines: Int64[np.ndarray, "lines"]) -> np.ndarray:
    """The vectors of these lines that are there; if they are more than fit in memory, of lines at equal distances."""
    lines = np.sort(lines)  # of a mapped file, in the order of the disk
    most = max(SAMPLE_FLOATS // vectors.shape[1], 1)
    taken = lines[np.linspace(0, len(lines) - 1, most).astype(np.int64)] if len(lines) > most else lines
    sample = np.asarray(vectors[taken], np.float32)
    return np.asarray(sample[_is_there(sample)])


def _is_there(vectors: Float32[np.ndarray, "lines dim"]) -> Bool[np.ndarray, "lines"]:
    return np.asarray(np.isfinite(vectors).all(axis=1))


def _of_lists(name: str, column: pa.Array) -> Float[np.ndarray, "items dim"]:
    lengths = pc.list_value_length(column)
    found = pc.unique(lengths.drop_null()).to_pylist()
    if len(found) != 1 or found == [0]:
        raise DataError(
            f"features.vectors.{name}: lists of the items' column {name} hold {', '.join(map(str, sorted(found)))} "
            f"numbers; each must hold equally many, and items without a vector NULL."
        )
    vectors = np.full((len(column), found[0]), np.nan, np.float32)
    values = pc.list_flatten(column).cast(pa.float32())
    vectors[np.asarray(column.is_valid())] = np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, found[0])
    return vectors
