"""The k best items of a query, whatever is filtered out or excluded.

A plan (`plan.py`) finds candidates, a few more than asked for; their scores are then computed anew in one fixed order,
and ties are decided as in `twofold/topk.py`. So an answer does not depend on whether it was asked for alone or in a
batch (FAISS sums in another order there, and breaks ties by its own), and equal vectors do not answer in catalogue
order. Where a tie may reach beyond the candidates, as in a collapsed model, all items are scored.

Up to `FLAT_MOST` items every search is exact. Above, one that needs few enough candidates looks into lists
(`lists.py`), and `is_exact` says so.

Measured (64 dimensions, 100 answers, two cores, one of them busy): one query 0.24 ms at 30,000 items and 5.7 ms at
300,000 in FAISS, against 8 ms each in a NumPy product with `top_k`, whose threads wait for one another; 1,000 queries
0.26 s against 0.87 s at 30,000 items. Settling the candidates adds 0.2 ms to a query and a tenth to a batch.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer

from twofold.bundle import write_json
from twofold.errors import RequestError, RunError
from twofold.index.candidates import SPARE, first_allowed, settle
from twofold.index.eligible import Eligible, everything, only_mask
from twofold.index.lists import LISTS, Lists, Measured, build_lists, load_lists
from twofold.index.plan import MANY, Plan, plan_search
from twofold.index.scan import scan
from twofold.index.scores import Score, pair_scores
from twofold.topk import NOT_ALLOWED, Ragged, TopK, blocks, top_k

FLAT_MOST: Final = 300_000  # items that are scanned whole: 5 ms on one busy core
HELD: Final = 512  # items that lists are measured with, beside as many users
BLOCK: Final = 2048  # queries at once: FAISS 1.15 takes a matrix product (twice as fast) from 128,000 numbers on
MOST_EXCLUDED: Final = 256  # a line that excludes more is searched alone, with a bitmap, not through more candidates
VECTORS: Final = "item_vectors.npy"
FACTS: Final = "index.json"


@dataclass(frozen=True)
class Index:
    """Item vectors, one line an item row, ready to be searched as they lie: mapped, where they were loaded."""

    vectors: Float32[np.ndarray, "items dim"]
    score: Score
    longest: float
    """The largest length of a vector: bounds the rounding error of a score."""
    lists: Lists | None = None

    def __len__(self) -> int:
        """Number of items."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])

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
        chosen = np.random.default_rng(0).choice(len(vectors), min(HELD, len(vectors)), replace=False)
        held = [vectors[chosen], *([] if queries is None else [queries[:HELD]])]
        lists = build_lists(vectors, held, score=score)
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


def _load_lists(folder: Path, facts: dict[str, Any]) -> Lists | None:
    said = facts.get("lists")
    if said is None:
        return None
    lists = load_lists(folder / LISTS, [Measured(**each) for each in said["measured"]], said["queries"])
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
    allowed: Eligible | Bool[np.ndarray, "items"] | None = None,
    excluded: Ragged | None = None,
) -> Neighbours:
    """The k best items of each query among the `allowed` ones that the query does not exclude.

    Where `is_exact`, equal to `top_k` over all items' scores, line by line. RequestError for k < 1, NaN, or vectors of
    another width. `Filters.eligible` keeps what it compiled: hand over its answer rather than a mask.
    """
    _check(index, queries, k)
    if len(queries) == 0:
        return Neighbours(np.empty((0, k), np.int64), np.empty((0, k), np.float32), np.empty(0, np.int64), True)
    eligible = only_mask(allowed) if isinstance(allowed, np.ndarray) else allowed
    if excluded is None:
        excluded = _nothing(len(queries))
    if len(queries) == 1:
        return _found([_search_part(index, queries, k, eligible=eligible, excluded=excluded)])
    lengths = excluded.sizes
    # Lines that exclude more need more candidates; sorted, they do not cost the others.
    order = np.argsort(lengths, kind="stable")
    shared = int((lengths <= MOST_EXCLUDED).sum())
    parts = [*blocks(shared, BLOCK), *(slice(line, line + 1) for line in range(shared, len(queries)))]

    def answer(part: slice) -> tuple[TopK, bool]:
        lines = order[part]
        return _search_part(index, queries[lines], k, eligible=eligible, excluded=excluded.of(lines))

    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return _found([*_mapped(answer, parts)], place)


def _mapped(answer: Callable[[slice], tuple[TopK, bool]], parts: list[slice]) -> Iterator[tuple[TopK, bool]]:
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


def _search_part(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    eligible: Eligible | None,
    excluded: Ragged,
) -> tuple[TopK, bool]:
    """Lines that exclude little, or one that may exclude much; on one thread."""
    with _one_thread():
        if len(queries) == 1 and len(excluded.values) > MOST_EXCLUDED:
            eligible, excluded = _without(eligible, excluded.values, items=len(index)), _nothing(1)
        return _search_block(index, queries, k, eligible=eligible, excluded=excluded)


def _search_block(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    eligible: Eligible | None,
    excluded: Ragged,
) -> tuple[TopK, bool]:
    """The answers, and whether all of them are exact."""
    wanted = k + SPARE + int(excluded.sizes.max(initial=0))
    plan = plan_search(len(index), wanted, lines=len(queries), eligible=eligible, lists=index.lists)
    best, doubtful = _carried_out(index, queries, k, plan=plan, eligible=eligible, excluded=excluded)
    is_exact = plan.how != "lists" or bool(doubtful.all())
    if plan.trusts and doubtful.any():
        lines = np.flatnonzero(doubtful)
        plan = plan_search(len(index), wanted, eligible=eligible, lists=None, careful=True)
        again, tied = _carried_out(index, queries[lines], k, plan=plan, eligible=eligible, excluded=excluded.of(lines))
        best.item_rows[lines], best.scores[lines], doubtful[lines] = again.item_rows, again.scores, tied
    for line in np.flatnonzero(doubtful):
        own = excluded.of(np.array([line])).values
        again = _score_all(index, queries[[line]], k, _without(eligible, own, items=len(index)))
        best.item_rows[line], best.scores[line] = again.item_rows[0], again.scores[0]
    return best, is_exact


def _carried_out(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    plan: Plan,
    eligible: Eligible | None,
    excluded: Ragged,
) -> tuple[TopK, Bool[np.ndarray, "queries"]]:
    """A plan's answers, and the lines that it may have answered wrongly: too few were found, or a tie goes on."""
    if plan.depth == 0:
        nothing = settle(index.vectors, queries, np.full((len(queries), 1), -1), k, score=index.score)
        return nothing, np.zeros(len(queries), bool)
    found, rows = _candidates(index, queries, plan, eligible)
    # Nothing below this score has been looked at.
    floor = found[:, -1] if plan.depth < plan.reach else np.full(len(queries), NOT_ALLOWED)
    if eligible is not None or len(excluded.values):
        last, rows = first_allowed(
            found, rows, excluded, count=min(k + SPARE, plan.depth), items=len(index), eligible=eligible
        )
        floor = np.maximum(floor, last)
    best = settle(index.vectors, queries, rows, k, score=index.score)
    is_short = (best.counts < k) & (plan.depth < plan.reach)
    return best, is_short | _tie_may_reach_beyond(index, queries, floor, best)


def _candidates(
    index: Index, queries: Float32[np.ndarray, "queries dim"], plan: Plan, eligible: Eligible | None
) -> tuple[Float32[np.ndarray, "queries depth"], Int64[np.ndarray, "queries depth"]]:
    """Scores up to rounding, best first, and their rows; what is not eligible may be among them."""
    if plan.how == "lists":
        assert index.lists is not None
        return index.lists.search(queries, plan.depth, plan.probes)
    if plan.how == "flat":
        return scan(index.vectors, queries, plan.depth, score=index.score)
    assert eligible is not None
    rows, vectors = (None, None) if eligible.pool is None else (eligible.pool.rows, eligible.pool.vectors)
    if vectors is None and len(queries) < MANY:
        return scan(index.vectors, queries, plan.depth, score=index.score, only=eligible if rows is None else rows)
    rows = np.flatnonzero(eligible.mask) if rows is None else rows
    vectors = index.vectors[rows] if vectors is None else vectors
    found, places = scan(vectors, queries, plan.depth, score=index.score)
    return found, rows[places]


def _tie_may_reach_beyond(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    floor: Float32[np.ndarray, "queries"],
    best: TopK,
) -> Bool[np.ndarray, "queries"]:
    """Whether an item that FAISS scored at `floor` or below could, but for rounding, belong to the k best.

    Two sums of `dim` float32 products differ by at most dim · 2^-23 · |q| · |v| (Higham 2002, section 3.1). For a block
    of queries FAISS sums ‖q‖² - 2 q · v + ‖v‖², whose parts are at most (|q| + |v|)² together.
    """
    lengths = np.linalg.norm(queries, axis=1)
    size = (lengths + index.longest) ** 2 if index.score == "negative_distance" else lengths * index.longest
    slack = (index.dim + 2) * 2.0**-23 * size
    return np.asarray(np.isfinite(floor) & (best.scores[:, -1] <= floor + slack))


def _score_all(index: Index, query: Float32[np.ndarray, "1 dim"], k: int, eligible: Eligible | None) -> TopK:
    allowed = None if eligible is None else eligible.mask[None]
    return top_k(pair_scores(index.vectors, query, index.score)[None], k, allowed=allowed)


def _nothing(lines: int) -> Ragged:
    return Ragged(np.empty(0, np.int64), np.zeros(lines + 1, np.int64))


def _without(eligible: Eligible | None, item_rows: Integer[np.ndarray, "excluded"], *, items: int) -> Eligible | None:
    if len(item_rows) == 0:
        return eligible
    return (everything(items) if eligible is None else eligible).without(item_rows)


def _found(answers: list[tuple[TopK, bool]], place: Int64[np.ndarray, "queries"] | None = None) -> Neighbours:
    """The parts' answers in one piece, each query's line taken from its place."""
    item_rows = np.concatenate([best.item_rows for best, _ in answers])
    scores = np.concatenate([best.scores for best, _ in answers])
    if place is not None:
        item_rows, scores = item_rows[place], scores[place]
    return Neighbours(item_rows, scores, (item_rows >= 0).sum(axis=1), all(is_exact for _, is_exact in answers))


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
