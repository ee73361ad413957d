"""The k best items of a query, whatever is filtered out or excluded.

A plan (`plan.py`) says what is scored; the scores of what can be among the k best are then computed anew in one fixed
order, and ties are decided as in `twofold/topk.py`. So an answer does not depend on whether it was asked for alone or
in a batch (sums are taken in another order there), and equal vectors do not answer in catalogue order.

Up to `FLAT_MOST` items every search is exact (`product.py`). Above, one that needs few enough candidates looks into
lists (`lists.py`), and `is_exact` says so.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Int64

from twofold.errors import RequestError, RunError
from twofold.index.candidates import SPARE, first_allowed, only_where, rescore_and_sort
from twofold.index.exact import CELLS, candidates_above_threshold, products
from twofold.index.item_mask import ItemMask, from_mask
from twofold.index.ivf import LISTS, IvfIndex, Measured, build_ivf, load_ivf
from twofold.index.plan import Plan, plan_search
from twofold.index.score_kinds import Score
from twofold.ragged import Ragged, chunks
from twofold.run_folder import write_json
from twofold.topk import NOT_ALLOWED, TopK, exclude

FLAT_MOST: Final = 300_000  # items that are scanned whole: 5 ms on one busy core
CALIBRATION_QUERIES: Final = 512  # items that lists are measured with, beside as many users
BLOCK: Final = 256  # queries a thread looks up in lists before the next
VECTORS: Final = "item_vectors.npy"
FACTS: Final = "index.json"


@dataclass(frozen=True)
class Index:
    """Item vectors, one line an item row, ready to be searched as they lie: mapped, where they were loaded."""

    vectors: Float32[np.ndarray, "items dim"]
    score: Score
    longest: float
    """The largest length of a vector: bounds the rounding error of a score."""
    lists: IvfIndex | None = None

    def __len__(self) -> int:
        """Number of items."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])

    @cached_property
    def squares(self) -> Float32[np.ndarray, "items"] | None:
        """‖v‖² of each vector where the score is a distance."""
        return np.vecdot(self.vectors, self.vectors) if self.score == "negative_distance" else None

    @property
    def facts(self) -> dict[str, Any]:
        """What index.json says: sizes, score, and of the lists what was measured."""
        facts: dict[str, Any] = {"score": self.score, "items": len(self), "dim": self.dim, "longest": self.longest}
        if self.lists is not None:
            measured = [asdict(each) for each in self.lists.measured]
            facts["lists"] = {
                "number": self.lists.ivf.nlist,
                "queries": self.lists.num_queries,
                "measured": measured,
            }
        return facts


@dataclass(frozen=True)
class Neighbours:
    """Item rows by falling score. Where fewer than k items are eligible the tail is -1 with score -inf.

    `counts` says how many answers of each line are real: min(k, eligible), always. `is_exact` holds if no line could
    miss an item; else each found at least .99 of them on average over the queries it was measured with.
    """

    item_rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]
    counts: Int64[np.ndarray, "queries"]
    is_exact: bool


def build_index(
    vectors: Float32[np.ndarray, "items dim"],
    *,
    score: Score = "cosine",
    queries: Float32[np.ndarray, "queries dim"] | None = None,
    flat_most: int = FLAT_MOST,
) -> Index:
    """An index whose line i is item row i. RunError for NaN, infinity, or cosine vectors not of length 1.

    More than `flat_most` items are sorted into lists, which are measured with `queries` (vectors of users) and items.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise RunError(
            f"{int((~finite).sum()):,} of {len(vectors):,} item vectors hold NaN or infinity (first: item row {row}): "
            f"the model has diverged. Lower train.learning_rate and run again."
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if score == "cosine" and (np.abs(lengths - 1) > 1e-3).any():
        row = int(np.argmax(np.abs(lengths - 1)))
        raise RunError(
            f"item vectors of a cosine index must have length 1; that of item row {row} has {lengths[row]:.4g}. "
            f"Normalise them, or build the index with score='dot' if the model was trained with it."
        )
    lists = None
    if len(vectors) > flat_most:
        chosen = np.random.default_rng(0).choice(len(vectors), min(CALIBRATION_QUERIES, len(vectors)), replace=False)
        held = [vectors[chosen], *([] if queries is None else [queries[:CALIBRATION_QUERIES]])]
        lists = build_ivf(vectors, held, score=score)
    return Index(vectors, score, float(lengths.max(initial=0.0)), lists)


def save_index(index: Index, folder: Path) -> None:
    """Writes the vectors, the lists and what they mean; checksums are the manifest's business."""
    np.save(folder / VECTORS, index.vectors)
    if index.lists is not None:
        index.lists.save(folder / LISTS)
    write_json(folder / FACTS, index.facts)


def load_index(folder: Path) -> Index:
    """Maps what `save_index` wrote, without reading it through; RunError says what is wrong with it."""
    path = folder / VECTORS
    try:
        facts = json.loads((folder / FACTS).read_text())
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        items, dim, score, longest = (facts[name] for name in ("items", "dim", "score", "longest"))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"the index in {folder} cannot be read: {error}. Delete the folder and run `twofold run` again."
        ) from error
    if vectors.shape != (items, dim) or vectors.dtype != np.float32:
        raise RunError(
            f"{path} holds {vectors.dtype} vectors of shape {vectors.shape}, but {FACTS} speaks of "
            f"{items} x {dim} float32. They are of two runs: delete {folder} and run `twofold run` again."
        )
    return Index(np.asarray(vectors), score, longest, _load_lists(folder, facts))


def _load_lists(folder: Path, facts: dict[str, Any]) -> IvfIndex | None:
    said = facts.get("lists")
    if said is None:
        return None
    lists = load_ivf(folder / LISTS, [Measured(**each) for each in said["measured"]], said["queries"])
    held = (lists.ivf.ntotal, lists.ivf.d, lists.ivf.nlist)
    if held != (facts["items"], facts["dim"], said["number"]):
        raise RunError(
            f"{folder / LISTS} holds {held[0]} x {held[1]} vectors in {held[2]} lists, but {FACTS} speaks of "
            f"{facts['items']} x {facts['dim']} in {said['number']}. They are of two runs: delete {folder} and run "
            f"`twofold run` again."
        )
    return lists


def search(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    allowed: ItemMask | Bool[np.ndarray, "items"] | None = None,
    excluded: Ragged | None = None,
) -> Neighbours:
    """The k best items of each query among the `allowed` ones that the query does not exclude.

    Where `is_exact`, equal to `top_k` over all items' scores, line by line. RequestError for k < 1, NaN, or vectors of
    another width. `Filters.eligible` keeps what it compiled: hand over its answer rather than a mask.
    """
    _check(index, queries, k)
    if len(queries) == 0:
        return Neighbours(np.empty((0, k), np.int64), np.empty((0, k), np.float32), np.empty(0, np.int64), True)
    eligible = from_mask(allowed) if isinstance(allowed, np.ndarray) else allowed
    if excluded is None:
        excluded = Ragged(np.empty(0, np.int64), np.zeros(len(queries) + 1, np.int64))
    if index.lists is None:
        best = _exactly(index, queries, k, eligible=eligible, excluded=excluded)
        return Neighbours(best.item_rows, best.scores, best.counts, is_exact=True)
    # Lines that exclude more need more candidates; sorted, they do not cost the others.
    order = np.argsort(excluded.sizes, kind="stable")
    parts = [order[part] for part in chunks(len(order), BLOCK)]

    def answer(lines: Int64[np.ndarray, "lines"]) -> tuple[TopK, bool]:
        with _one_thread():
            return _nearly(index, queries[lines], k, eligible=eligible, excluded=excluded.of(lines))

    answers = _mapped(answer, parts)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    best = _joined([best for best, _ in answers])
    is_exact = all(is_exact for _, is_exact in answers)
    return Neighbours(best.item_rows[place], best.scores[place], best.counts[place], is_exact)


def _mapped(
    answer: Callable[[Int64[np.ndarray, "_"]], tuple[TopK, bool]], parts: list[Int64[np.ndarray, "_"]]
) -> list[tuple[TopK, bool]]:
    """On as many threads as OpenMP would take, each with one of its own.

    Two OpenMP threads wait for one another at every small product: where another process holds a core they took 4.9 s
    for 200 single queries against 0.6 s.
    """
    import faiss

    if len(parts) == 1:
        return [answer(parts[0])]
    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        return [*threads.map(answer, parts)]


# --- exactly ----------------------------------------------------------------------------------------------------------


def _exactly(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    eligible: ItemMask | None,
    excluded: Ragged,
) -> TopK:
    """All that is eligible is scored, and of nothing else is anything known."""
    vectors, rows, squares, mask = index.vectors, None, index.squares, None
    if eligible is not None and eligible.pool is not None:
        rows = eligible.pool.rows
        vectors = index.vectors[rows] if eligible.pool.vectors is None else eligible.pool.vectors
        squares = None if squares is None else squares[rows]
        mask = None if len(rows) == eligible.count else eligible.holds(rows)
        excluded = _in_pool(excluded, rows)
    elif eligible is not None:
        mask = eligible.mask
    slack, found = _slack(index, queries), []
    for part in chunks(len(queries), max(1, CELLS // max(1, len(vectors)))):
        scores = products(vectors, queries[part], squares)
        if mask is not None:
            np.copyto(scores, NOT_ALLOWED, where=~mask)
        exclude(scores, excluded.part(part))
        lines, places = candidates_above_threshold(scores, k, slack[part])
        pairs = places if rows is None else rows[places]
        found.append(rescore_and_sort(index.vectors, queries[part], lines=lines, rows=pairs, k=k, score=index.score))
    return _joined(found)


def _in_pool(excluded: Ragged, rows: Int64[np.ndarray, "pool"]) -> Ragged:
    """What is excluded, as places in the pool."""
    if len(rows) == 0 or len(excluded.values) == 0:
        return only_where(excluded, excluded.values, np.zeros(len(excluded.values), bool))
    places = np.minimum(np.searchsorted(rows, excluded.values), len(rows) - 1)
    return only_where(excluded, places, rows[places] == excluded.values)


# --- nearly, by lists -------------------------------------------------------------------------------------------------


def _nearly(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    eligible: ItemMask | None,
    excluded: Ragged,
) -> tuple[TopK, bool]:
    """The answers, and whether all of them are exact: they are where lists will not do."""
    wanted = k + SPARE + int(excluded.sizes.max(initial=0))
    plan = plan_search(len(index), wanted, eligible=eligible, lists=index.lists)
    if plan.how != "lists":
        return _exactly(index, queries, k, eligible=eligible, excluded=excluded), True
    best, doubtful = _by_lists(index, queries, k, plan=plan, eligible=eligible, excluded=excluded)
    if doubtful.any():
        lines = np.flatnonzero(doubtful)
        again = _exactly(index, queries[lines], k, eligible=eligible, excluded=excluded.of(lines))
        best.item_rows[lines], best.scores[lines], best.counts[lines] = again.item_rows, again.scores, again.counts
    return best, bool(doubtful.all())


def _by_lists(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    plan: Plan,
    eligible: ItemMask | None,
    excluded: Ragged,
) -> tuple[TopK, Bool[np.ndarray, "queries"]]:
    """The answers, and the lines that may be wrong: too few were found, or a tie goes on beyond what was looked at."""
    assert index.lists is not None
    found, rows = index.lists.search(queries, plan.depth, plan.probes)
    floor = found[:, -1]  # nothing below this score has been looked at
    if eligible is not None or len(excluded.values):
        last, rows = first_allowed(
            found, rows, excluded, count=min(k + SPARE, plan.depth), items=len(index), eligible=eligible
        )
        floor = np.maximum(floor, last)
    lines, places = np.nonzero(rows >= 0)
    best = rescore_and_sort(index.vectors, queries, lines=lines, rows=rows[lines, places], k=k, score=index.score)
    # An item that was scored at the floor or below could, but for rounding, belong to the k best.
    is_tied = np.isfinite(floor) & (best.scores[:, -1] <= floor + _slack(index, queries))
    return best, (best.counts < k) | is_tied


def _slack(index: Index, queries: Float32[np.ndarray, "queries dim"]) -> Float32[np.ndarray, "queries"]:
    """How far two ways of summing up a score can be apart, by query.

    Two sums of `dim` float32 products differ by at most dim · 2^-23 · |q| · |v| (Higham 2002, section 3.1). A distance
    is summed as ‖q‖² - 2 q · v + ‖v‖², whose parts are at most (|q| + |v|)² together.
    """
    lengths = np.linalg.norm(queries, axis=1)
    size = (lengths + index.longest) ** 2 if index.score == "negative_distance" else lengths * index.longest
    return np.asarray((index.dim + 2) * 2.0**-23 * size, np.float32)


def _joined(parts: list[TopK]) -> TopK:
    if len(parts) == 1:
        return parts[0]
    return TopK(
        np.concatenate([part.item_rows for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenMP on this thread alone, for this thread alone."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _check(index: Index, queries: Float32[np.ndarray, "queries dim"], k: int) -> None:
    if k < 1:
        raise RequestError(f"k must be at least 1, not {k}")
    if queries.shape[1] != index.dim:
        raise RequestError(
            f"query vectors have {queries.shape[1]} dimensions, the index has {index.dim}: they are of two models"
        )
    if not np.isfinite(queries).all():
        line = int(np.argmin(np.isfinite(queries).all(axis=1)))
        raise RequestError(
            f"query vector {line} holds NaN or infinity: the model has diverged; lower the learning rate"
        )
