"""Vectors sorted into lists around centres: a search looks into the nearest lists only, as many as are enough.

How many are enough depends on how deep an answer reaches. So it is measured when the lists are built, on held queries
beside an exact scan: for each depth (the 128 best, the 256 best, …) the fewest lists that find at least 99 of 100. A
filter or an exclusion asks for more depth, never for a guess; beyond what was measured the search is exact.

Items belong to the nearest centre, by distance, for every score; a query looks into the lists whose centres score
highest with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from twofold.errors import RunError
from twofold.index.scan import scan
from twofold.index.score_kinds import Score
from twofold.ragged import chunks

LISTS: Final = "item_lists.faiss"
WANTED: Final = 0.99
DEPTHS: Final = (128, 256, 512, 1024, 2048)
"""Depths that are measured. 100 answers need 116 candidates; 2,048 are those under a filter of a sixteenth."""
MOST_PROBED: Final = 1 / 4  # of all lists: beyond, an exact scan is as fast
SAMPLED: Final = 48  # vectors a list that the centres are fitted to; more than 39 is FAISS's own advice
ROUNDS: Final = 8  # of k-means; 6 and 10 gave the same recall (not measured on other data)
ALIKE: Final = 16  # queries at once: FAISS sums in another order for many, and an answer would depend on its neighbours
BLOCK: Final = 8192


@dataclass(frozen=True)
class Measured:
    """The fewest lists that reached `WANTED` at a depth, and what they found of an exact scan, on average."""

    depth: int
    probes: int
    recall: float


@dataclass(frozen=True)
class IvfIndex:
    """An IVF-Flat index of FAISS and what was measured with it; on disk it is mapped, so that processes share it."""

    ivf: Any  # faiss.IndexIVFFlat
    measured: tuple[Measured, ...]
    num_queries: int

    def probes(self, depth: int) -> int | None:
        """How many lists find `depth` items at the wanted recall; None where no number was measured to."""
        return next((each.probes for each in self.measured if each.depth >= depth), None)

    def search(
        self, queries: Float32[np.ndarray, "queries dim"], depth: int, probes: int
    ) -> tuple[Float32[np.ndarray, "queries depth"], Int64[np.ndarray, "queries depth"]]:
        """The highest scores found in the nearest lists, best first, and their rows; missing ones are -inf and -1.

        A score is FAISS's own: right up to rounding.
        """
        import faiss

        found = np.empty((len(queries), depth), np.float32)
        rows = np.empty((len(queries), depth), np.int64)
        how = faiss.SearchParametersIVF(nprobe=probes)  # type: ignore[call-arg]  # stubs know only C++'s form
        for part in chunks(len(queries), ALIKE):
            self.ivf.search(queries[part], depth, params=how, D=found[part], I=rows[part])
        if self.ivf.metric_type == faiss.METRIC_L2:
            np.negative(found, out=found)
        found[rows < 0] = -np.inf
        return found, rows

    def save(self, path: Path) -> None:
        """Writes FAISS's file."""
        import faiss

        faiss.write_index(self.ivf, str(path))


def load_ivf(path: Path, measured: Sequence[Measured], num_queries: int) -> IvfIndex:
    """Maps what `save` wrote; RunError if it is no such file."""
    import faiss

    try:
        ivf = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:  # the one class that FAISS raises
        raise RunError(
            f"{path} cannot be read as lists of vectors: {str(error).splitlines()[0]}. Delete {path.parent} and run "
            f"`twofold run` again."
        ) from error
    return IvfIndex(ivf, tuple(measured), num_queries)


def build_ivf(
    vectors: Float32[np.ndarray, "items dim"],
    held: Sequence[np.ndarray],
    *,
    score: Score,
    seed: int = 0,
) -> IvfIndex:
    """Sorts the vectors into about 2 √items lists and measures on held queries, (queries, dim), group by group.

    Users and items ask differently, so each is a group, and what is said of all is said of the worst.
    """
    centres = _centres(vectors, seed)
    unmeasured = IvfIndex(_filled(vectors, centres, score), (), sum(map(len, held)))
    return replace(unmeasured, measured=_measure(unmeasured, vectors, held, score))


def _centres(vectors: Float32[np.ndarray, "items dim"], seed: int) -> Float32[np.ndarray, "lists dim"]:
    """K-means on a sample: at a million vectors of 64 numbers, 8 s for 2,048 lists."""
    import faiss

    items, dim = vectors.shape
    lists = max(1, 2 ** round(np.log2(2 * np.sqrt(items))))
    chosen = np.sort(np.random.default_rng(seed).choice(items, min(items, SAMPLED * lists), replace=False))
    fit = faiss.Kmeans(dim, lists, niter=ROUNDS, seed=seed, min_points_per_centroid=1)
    fit.train(np.ascontiguousarray(vectors[chosen]))
    assert fit.centroids is not None
    return fit.centroids


def _filled(vectors: Float32[np.ndarray, "items dim"], centres: Float32[np.ndarray, "lists dim"], score: Score) -> Any:
    """An index whose lists hold the vectors nearest to their centres, whatever the score."""
    import faiss

    items, dim = vectors.shape
    metric = faiss.METRIC_L2 if score == "negative_distance" else faiss.METRIC_INNER_PRODUCT
    coarse = faiss.IndexFlat(dim, metric)
    coarse.add(centres)
    ivf = faiss.IndexIVFFlat(coarse, dim, len(centres), metric)
    half_squares = np.vecdot(centres, centres) / 2
    for part in chunks(items, BLOCK):
        held, rows = np.ascontiguousarray(vectors[part]), np.arange(part.start, part.stop)
        own = (held @ centres.T - half_squares).argmax(axis=1)  # the nearest: ‖v‖² is the same for all
        ivf.add_core(len(held), *map(faiss.swig_ptr, (held, rows, own)))
    return ivf


def _measure(
    lists: IvfIndex, vectors: Float32[np.ndarray, "items dim"], held: Sequence[np.ndarray], score: Score
) -> tuple[Measured, ...]:
    """The fewest lists for each depth, more and more of them tried; a depth that a quarter of them misses is left out.

    "Reached" is said of a mean less three standard errors: the queries are a sample, and where answers lie close
    together one query finds all or nothing. With two, 200 other queries found .988 for .997.
    """
    deepest = min(DEPTHS[-1], len(vectors))
    truths = [scan(vectors, queries, deepest, score=score)[0] for queries in held]
    most = max(1, int(lists.ivf.nlist * MOST_PROBED))
    open_depths, measured = [depth for depth in DEPTHS if depth <= deepest], []
    for probes in sorted({min(most, round(2 ** (step / 2))) for step in range(2 * most.bit_length())}):
        founds = [lists.search(queries, deepest, probes)[0] for queries in held]
        while open_depths:
            depth = open_depths[0]
            groups = [_recalls(*pair, depth) for pair in zip(founds, truths, strict=True)]
            if min(each.mean() - 3 * each.std() / np.sqrt(len(each)) for each in groups) < WANTED:
                break
            measured.append(Measured(open_depths.pop(0), probes, round(float(min(map(np.mean, groups))), 5)))
    return tuple(measured)


def _recalls(
    found: Float32[np.ndarray, "queries deepest"], truth: Float32[np.ndarray, "queries deepest"], depth: int
) -> Float64[np.ndarray, "queries"]:
    """The share of the `depth` best that each query found. A tie at the end is as good as what the scan took."""
    slack = 1e-5 * np.abs(truth[:, :1])  # rounding must not count as a miss
    return np.asarray((found[:, :depth] >= truth[:, depth - 1 : depth] - slack).mean(axis=1))
