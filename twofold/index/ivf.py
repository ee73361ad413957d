"""IVF index: vectors sorted into lists around centres, of which a search scans only the nearest.

How many lists are enough depends on how many candidates a search needs. So this is measured when the index is built, on
calibration queries beside an exact scan: for each depth (the best 128, the best 256, …) the smallest number of lists
that finds at least 99 of 100. A filter or an exclusion raises the depth; beyond the measured depths the search is
exact.

Items belong to the nearest centre by distance, for every score; a query probes the lists whose centres score highest
with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from twofold.errors import RunError
from twofold.index.score_kinds import Score
from twofold.ragged import chunks

LISTS: Final = "item_lists.faiss"
TARGET_RECALL: Final = 0.99
DEPTHS: Final = (128, 256, 512, 1024, 2048)
"""Depths that are measured. 100 results need 116 candidates; under a filter that keeps a sixteenth, they need 2,048."""
MAX_PROBED: Final = 1 / 4  # of all lists: beyond this share an exact scan is as fast
SAMPLE_PER_LIST: Final = 48  # vectors per list that the centres are fitted to; FAISS recommends more than 39
KMEANS_ROUNDS: Final = 8  # 6 and 10 gave the same recall (not measured on other data)
# Queries per call of FAISS: it sums larger batches in another order, so a result would depend on the other queries.
QUERIES_PER_CALL: Final = 16
VECTORS_PER_CALL: Final = 8192


@dataclass(frozen=True)
class CalibrationPoint:
    """Smallest number of probed lists that reached `TARGET_RECALL` at a depth, and its mean recall of an exact scan."""

    depth: int
    probes: int
    recall: float


@dataclass(frozen=True)
class IvfIndex:
    """An IVF-Flat index of FAISS with its calibration; a loaded index is mapped, so that processes share its memory."""

    faiss_index: Any  # faiss.IndexIVFFlat
    calibration: tuple[CalibrationPoint, ...]
    num_queries: int

    def probes(self, depth: int) -> int | None:
        """Returns how many lists find `depth` items at the target recall; `None` means it was not measured."""
        return next((each.probes for each in self.calibration if each.depth >= depth), None)

    def search(
        self, queries: Float32[np.ndarray, "queries dim"], depth: int, probes: int
    ) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
        """Returns the highest scores of the nearest lists, best first, with their rows; missing ones are -inf and -1.

        The scores are FAISS's own: equal to the exact ones up to rounding.
        """
        import faiss

        scores = np.empty((len(queries), depth), np.float32)
        rows = np.empty((len(queries), depth), np.int64)
        params = faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]  # stubs know only C++'s form
        for part in chunks(len(queries), QUERIES_PER_CALL):
            self.faiss_index.search(queries[part], depth, params=params, D=scores[part], I=rows[part])
        if self.faiss_index.metric_type == faiss.METRIC_L2:
            np.negative(scores, out=scores)
        scores[rows < 0] = -np.inf
        return scores, rows

    def save(self, path: Path) -> None:
        """Writes the index as a file of FAISS."""
        import faiss

        faiss.write_index(self.faiss_index, str(path))


def load_ivf(path: Path, calibration: Sequence[CalibrationPoint], num_queries: int) -> IvfIndex:
    """Maps a file of `save` into memory; raises RunError if FAISS cannot read it."""
    import faiss

    try:
        faiss_index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:  # the one class that FAISS raises
        raise RunError(
            f"{path} cannot be read as an IVF index: {str(error).splitlines()[0]}. Delete {path.parent} and run "
            f"`twofold run` again."
        ) from error
    return IvfIndex(faiss_index, tuple(calibration), num_queries)


def build_ivf(
    vectors: Float32[np.ndarray, "items dim"],
    query_groups: Sequence[np.ndarray],
    *,
    score: Score,
) -> IvfIndex:
    """Assigns the vectors to about 2 √items lists, and measures how many of these a search must read.

    `query_groups` are the queries, (queries, dim) each, on which that is measured. Users and items are groups of their
    own, because they are found differently; a depth's recall is that of the worst group.
    """
    centres = _fit_centres(vectors)
    uncalibrated = IvfIndex(_fill_lists(vectors, centres, score), (), sum(map(len, query_groups)))
    return replace(uncalibrated, calibration=_calibrate(uncalibrated, vectors, query_groups, score))


def _fit_centres(vectors: Float32[np.ndarray, "items dim"]) -> Float32[np.ndarray, "_ dim"]:
    """Runs k-means on a sample: at a million vectors of 64 numbers, 8 s for 2,048 lists."""
    import faiss

    items, dim = vectors.shape
    lists = max(1, 2 ** round(np.log2(2 * np.sqrt(items))))
    sample = np.random.default_rng(0).choice(items, min(items, SAMPLE_PER_LIST * lists), replace=False)
    kmeans = faiss.Kmeans(dim, lists, niter=KMEANS_ROUNDS, seed=0, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray(vectors[np.sort(sample)]))
    assert kmeans.centroids is not None
    return kmeans.centroids


def _fill_lists(vectors: Float32[np.ndarray, "items dim"], centres: Float32[np.ndarray, "_ dim"], score: Score) -> Any:
    """Returns a FAISS index in which each vector is in the list of its nearest centre, whatever the score."""
    import faiss

    items, dim = vectors.shape
    metric = faiss.METRIC_L2 if score == "negative_distance" else faiss.METRIC_INNER_PRODUCT
    coarse = faiss.IndexFlat(dim, metric)
    coarse.add(centres)
    faiss_index = faiss.IndexIVFFlat(coarse, dim, len(centres), metric)
    half_squares = np.vecdot(centres, centres) / 2
    for part in chunks(items, VECTORS_PER_CALL):
        added, rows = np.ascontiguousarray(vectors[part]), np.arange(part.start, part.stop)
        nearest = (added @ centres.T - half_squares).argmax(axis=1)  # ‖v‖² is the same for all centres
        faiss_index.add_core(len(added), *map(faiss.swig_ptr, (added, rows, nearest)))
    return faiss_index


def _calibrate(
    ivf: IvfIndex, vectors: Float32[np.ndarray, "items dim"], query_groups: Sequence[np.ndarray], score: Score
) -> tuple[CalibrationPoint, ...]:
    """Measures the smallest number of lists for each depth; a depth that a quarter of the lists misses is left out.

    A depth counts as reached if mean recall less three standard errors reaches the target: the queries are a sample,
    and where many items score nearly alike, a query finds all of them or none. With two standard errors, 200 other
    queries found .988 where .997 had been measured.
    """
    deepest = min(DEPTHS[-1], len(vectors))
    exact_scores = [scan(vectors, queries, deepest, score=score)[0] for queries in query_groups]
    most = max(1, int(ivf.faiss_index.nlist * MAX_PROBED))
    open_depths, points = [depth for depth in DEPTHS if depth <= deepest], []
    for probes in sorted({min(most, round(2 ** (step / 2))) for step in range(2 * most.bit_length())}):
        ivf_scores = [ivf.search(queries, deepest, probes)[0] for queries in query_groups]
        while open_depths:
            depth = open_depths[0]
            recalls = [_recalls(*pair, depth) for pair in zip(ivf_scores, exact_scores, strict=True)]
            if min(each.mean() - 3 * each.std() / np.sqrt(len(each)) for each in recalls) < TARGET_RECALL:
                break
            points.append(CalibrationPoint(open_depths.pop(0), probes, round(float(min(map(np.mean, recalls))), 5)))
    return tuple(points)


def _recalls(
    ivf_scores: Float32[np.ndarray, "queries k"], exact_scores: Float32[np.ndarray, "queries k"], depth: int
) -> Float64[np.ndarray, "queries"]:
    """Returns the share of the `depth` best that each query found; an item tied with the last of the scan counts."""
    slack = 1e-5 * np.abs(exact_scores[:, :1])  # rounding must not count as a miss
    return np.asarray((ivf_scores[:, :depth] >= exact_scores[:, depth - 1 : depth] - slack).mean(axis=1))


def scan(
    vectors: Float32[np.ndarray, "items dim"], queries: Float32[np.ndarray, "queries dim"], count: int, *, score: Score
) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """Returns the `count` highest scores of each query, best first, with their rows; missing ones are -inf and -1.

    Runs the loops of FAISS's `IndexFlatIP` and `IndexFlatL2` on the caller's array, without a copy. IVF lists are
    calibrated against it; exact searches use `exact.py`, which can skip items.
    """
    import faiss

    vectors, queries = np.ascontiguousarray(vectors), np.ascontiguousarray(queries)
    scores = np.empty((len(queries), count), np.float32)
    rows = np.empty((len(queries), count), np.int64)
    sizes = queries.shape[1], len(queries), len(vectors), count
    query_ptr, vector_ptr, score_ptr, row_ptr = (faiss.swig_ptr(array) for array in (queries, vectors, scores, rows))
    if score == "negative_distance":
        faiss.knn_L2sqr(query_ptr, vector_ptr, *sizes, score_ptr, row_ptr)
        np.negative(scores, out=scores)
    else:
        faiss.knn_inner_product(query_ptr, vector_ptr, *sizes, score_ptr, row_ptr)
    scores[rows < 0] = -np.inf  # FAISS fills with the lowest finite number
    return scores, rows
