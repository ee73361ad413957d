"""The k best items of a query, exactly, whatever is filtered out or excluded.

FAISS finds candidates, a few more than asked for; their scores are then computed anew in one fixed order, and ties are
decided as in `twofold/topk.py`. So an answer does not depend on whether it was asked for alone or in a batch (FAISS
sums in another order there, and breaks ties by its own), and equal vectors do not answer in catalogue order. Where a
tie may reach beyond the candidates, as in a collapsed model, all items are scored.

Measured (64 dimensions, 100 answers, two cores, one of them busy): one query 0.24 ms at 30,000 items and 5.7 ms at
300,000 in FAISS, against 8 ms each in a NumPy product with `top_k`, whose threads wait for one another; 1,000 queries
0.26 s against 0.87 s at 30,000 items. Settling the candidates adds 0.2 ms to a query and a tenth to a batch.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer

from twofold.bundle import write_json
from twofold.errors import RequestError, RunError
from twofold.index.candidates import SPARE, first_not_excluded, settle
from twofold.index.scores import Score, items_as_products, pair_scores, queries_as_products
from twofold.topk import NOT_ALLOWED, Ragged, TopK, blocks, top_k

BLOCK: Final = 2048  # queries at once: FAISS 1.15 takes a matrix product (twice as fast) from 128,000 numbers on
MOST_EXCLUDED: Final = 256  # a line that excludes more is searched alone, with a bitmap, not through more candidates
VECTORS: Final = "item_vectors.npy"
FACTS: Final = "index.json"


@dataclass(frozen=True)
class Index:
    """Item vectors, one line an item row, ready to be searched."""

    vectors: Float32[np.ndarray, "items dim"]
    score: Score
    longest: float
    """The largest length of a vector as FAISS has it: bounds the rounding error of a score."""
    flat: Any  # faiss.IndexFlatIP of `items_as_products`, a copy: `vectors` may be a mapped file

    def __len__(self) -> int:
        """Number of items."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])


@dataclass(frozen=True)
class Neighbours:
    """Item rows by falling score. Where fewer than k items are eligible the tail is -1 with score -inf.

    `counts` says how many answers of each line are real: min(k, eligible), always.
    """

    item_rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]
    counts: Int64[np.ndarray, "queries"]
    is_exact: bool


def build_index(vectors: Float32[np.ndarray, "items dim"], *, score: Score = "cosine") -> Index:
    """An exact index; line i is item row i. RunError for NaN, infinity, or cosine vectors not of length 1."""
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
    return _index(vectors, score)


def _index(vectors: Float32[np.ndarray, "items dim"], score: Score) -> Index:
    import faiss

    products = items_as_products(vectors, score)
    flat = faiss.IndexFlatIP(products.shape[1])
    flat.add(np.ascontiguousarray(products))
    return Index(vectors, score, float(np.linalg.norm(products, axis=1).max(initial=0.0)), flat)


def save_index(index: Index, folder: Path) -> None:
    """Writes the vectors and what they mean; checksums are the manifest's business."""
    np.save(folder / VECTORS, index.vectors)
    write_json(folder / FACTS, {"score": index.score, "items": len(index), "dim": index.dim})


def load_index(folder: Path) -> Index:
    """Reads what `save_index` wrote; RunError says what is wrong with it."""
    path = folder / VECTORS
    try:
        facts = json.loads((folder / FACTS).read_text())
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunError(
            f"the index in {folder} cannot be read: {error}. Delete the folder and run `twofold run` again."
        ) from error
    if vectors.shape != (facts["items"], facts["dim"]) or vectors.dtype != np.float32:
        raise RunError(
            f"{path} holds {vectors.dtype} vectors of shape {vectors.shape}, but {FACTS} speaks of "
            f"{facts['items']} x {facts['dim']} float32. They are of two runs: delete {folder} and run `twofold run` "
            f"again."
        )
    return build_index(np.asarray(vectors), score=facts["score"])


def search(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    allowed: Bool[np.ndarray, "items"] | None = None,
    excluded: Ragged | None = None,
) -> Neighbours:
    """The k best items of each query among the `allowed` ones that the query does not exclude.

    Equal to `top_k` over all items' scores, line by line. RequestError for k < 1, NaN, or vectors of another width.
    """
    _check(index, queries, k)
    if excluded is None:
        excluded = Ragged(np.empty(0, np.int64), np.zeros(len(queries) + 1, np.int64))
    lengths = excluded.sizes
    # Lines that exclude more need more candidates; sorted, they do not cost the others.
    order = np.argsort(lengths, kind="stable")
    shared = 0 if len(queries) == 1 else int((lengths <= MOST_EXCLUDED).sum())
    parts = [*blocks(shared, BLOCK), *(slice(line, line + 1) for line in range(shared, len(queries)))]
    rows = None if allowed is None else np.flatnonzero(allowed)
    # A block under a filter searches the eligible vectors alone: FAISS has no fast path for many queries with a bitmap.
    pool = index if rows is None or shared == 0 else _part(index, rows)

    def answer(part: slice) -> TopK:
        lines = order[part]
        own = excluded.of(lines)
        with _one_thread():
            if part.start >= shared:
                return _search_one(index, queries[lines], k, _without(index, allowed, own.values))
            return _search_block(index, pool, queries[lines], k, rows=rows, excluded=own)

    return _in_place([*_mapped(answer, parts)], k, order)


def _mapped(answer: Callable[[slice], TopK], parts: list[slice]) -> Iterator[TopK]:
    """On as many threads as OpenMP would take, each with one of its own.

    Two OpenMP threads wait for one another at every small product: where another process holds a core they took 4.9 s
    for 200 single queries against 0.6 s, and answered 5,000 queries/s of a batch against 10,000 (30,000 items).
    """
    import faiss

    if len(parts) <= 1:
        yield from map(answer, parts)
        return
    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        yield from threads.map(answer, parts)


def _search_one(
    index: Index, query: Float32[np.ndarray, "1 dim"], k: int, allowed: Bool[np.ndarray, "items"] | None
) -> TopK:
    import faiss

    eligible = len(index) if allowed is None else int(allowed.sum())
    fetch = min(k + SPARE, eligible)
    if fetch == 0:
        return settle(index.vectors, query, np.full((1, 1), -1), k, score=index.score)
    how = None
    if allowed is not None:
        bitmap = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(bitmap)  # type: ignore[call-arg, arg-type]  # stubs know only the C++ form
        how = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
    found, rows = index.flat.search(queries_as_products(query, index.score), fetch, params=how)
    best = settle(index.vectors, query, rows, k, score=index.score)
    if fetch < eligible and _tie_may_reach_beyond(index, query, found[:, -1], best)[0]:
        return _score_all(index, query, k, allowed)
    return best


def _search_block(
    index: Index,
    pool: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    rows: Int64[np.ndarray, "eligible"] | None,
    excluded: Ragged,
) -> TopK:
    fetch = min(k + SPARE + int(excluded.sizes.max(initial=0)), len(pool))
    if fetch == 0:
        return settle(index.vectors, queries, np.full((len(queries), 1), -1), k, score=index.score)
    found, candidates = pool.flat.search(queries_as_products(queries, index.score), fetch)
    if rows is not None:
        candidates = rows[candidates]
    # Nothing below this score has been looked at.
    floor = found[:, -1] if fetch < len(pool) else np.full(len(queries), NOT_ALLOWED)
    if len(excluded.values):
        floor, candidates = first_not_excluded(found, candidates, excluded, count=k + SPARE, items=len(index))
    best = settle(index.vectors, queries, candidates, k, score=index.score)
    tied = np.flatnonzero(_tie_may_reach_beyond(index, queries, floor, best))
    allowed = None if rows is None or len(tied) == 0 else _mask(len(index), rows)
    for line in tied:
        own = excluded.of(np.array([line])).values
        again = _score_all(index, queries[[line]], k, _without(index, allowed, own))
        best.item_rows[line], best.scores[line] = again.item_rows[0], again.scores[0]
    return best


def _tie_may_reach_beyond(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    floor: Float32[np.ndarray, "queries"],
    best: TopK,
) -> Bool[np.ndarray, "queries"]:
    """Whether an item that FAISS scored at `floor` or below could, but for rounding, belong to the k best.

    Two sums of `dim` float32 products differ by at most dim · 2^-23 · |q| · |v| (Higham 2002, section 3.1). A sum of
    squared differences errs less than the longer sum of products that stands for it.
    """
    products = queries_as_products(queries, index.score)
    slack = products.shape[1] * 2.0**-23 * np.linalg.norm(products, axis=1) * index.longest
    return np.asarray(np.isfinite(floor) & (best.scores[:, -1] <= floor + slack))


def _score_all(
    index: Index, query: Float32[np.ndarray, "1 dim"], k: int, allowed: Bool[np.ndarray, "items"] | None
) -> TopK:
    return top_k(
        pair_scores(index.vectors, query, index.score)[None], k, allowed=None if allowed is None else allowed[None]
    )


def _in_place(answers: list[TopK], k: int, order: Int64[np.ndarray, "queries"]) -> Neighbours:
    """The parts' answers in one piece, each query's in its own place."""
    item_rows, scores = np.empty((len(order), k), np.int64), np.empty((len(order), k), np.float32)
    if answers:
        item_rows[order] = np.concatenate([answer.item_rows for answer in answers])
        scores[order] = np.concatenate([answer.scores for answer in answers])
    return Neighbours(item_rows, scores, (item_rows >= 0).sum(axis=1), is_exact=True)


# --- who may answer ---------------------------------------------------------------------------------------------------


def _mask(items: int, rows: Int64[np.ndarray, "eligible"]) -> Bool[np.ndarray, "items"]:
    mask = np.zeros(items, bool)
    mask[rows] = True
    return mask


def _without(
    index: Index, allowed: Bool[np.ndarray, "items"] | None, item_rows: Integer[np.ndarray, "excluded"]
) -> Bool[np.ndarray, "items"] | None:
    if len(item_rows) == 0:
        return allowed
    mask = np.ones(len(index), bool) if allowed is None else allowed.copy()
    mask[item_rows] = False
    return mask


def _part(index: Index, rows: Int64[np.ndarray, "eligible"]) -> Index:
    return _index(index.vectors[rows], index.score)


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
