"""Candidates → the k best of them: scored anew in one fixed order, and ties decided as in `twofold/topk.py`."""

from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.index.eligible import Eligible
from twofold.index.scores import Score, pair_scores
from twofold.topk import NOT_ALLOWED, Ragged, TopK, blocks, tie_order

SPARE: Final = 16  # candidates beyond k: without ties one would do
LINES_MARKED: Final = 64  # lines whose excluded items are marked at once, one byte an item
PAIRS: Final = 2**15  # of query and candidate, scored at once: their vectors stay in the cache


def first_allowed(
    found: Float32[np.ndarray, "queries candidates"],
    candidates: Int64[np.ndarray, "queries candidates"],
    excluded: Ragged,
    *,
    count: int,
    items: int,
    eligible: Eligible | None = None,
) -> tuple[Float32[np.ndarray, "queries"], Int64[np.ndarray, "queries kept"]]:
    """The best `count` candidates of each line that are eligible and that it does not exclude, and the last's score.

    Where there are fewer, the tail is -1 and that score -inf: none has been left out. Candidate -1 is none.
    """
    kept = np.full((len(candidates), count), -1, np.int64)
    floor = np.full(len(candidates), NOT_ALLOWED)
    for part in blocks(len(candidates), LINES_MARKED):
        stays = candidates[part] >= 0 if eligible is None else eligible.holds(candidates[part])
        own = excluded.part(part)
        if len(own.values):
            is_out = np.zeros((part.stop - part.start, items), bool)
            is_out[own.lines, own.values] = True
            stays &= ~np.take_along_axis(is_out, candidates[part], axis=1)
        first = np.argsort(~stays, axis=1, kind="stable")[:, :count]  # those that stay, in their order
        is_one = np.take_along_axis(stays, first, axis=1)
        kept[part, : first.shape[1]] = np.where(is_one, np.take_along_axis(candidates[part], first, axis=1), -1)
        if first.shape[1] == count:
            last = np.take_along_axis(found[part], first[:, -1:], axis=1)
            floor[part] = np.where(is_one[:, -1], last[:, 0], NOT_ALLOWED)
    return floor, kept


def settle(
    vectors: Float32[np.ndarray, "items dim"],
    queries: Float32[np.ndarray, "queries dim"],
    rows: Int64[np.ndarray, "queries candidates"],
    k: int,
    *,
    score: Score,
) -> TopK:
    """The k best candidates; row -1 is none."""
    scores = np.empty(rows.shape, np.float32)
    for part in blocks(len(rows), max(1, PAIRS // rows.shape[1])):
        scores[part] = pair_scores(vectors[rows[part]], queries[part, None, :], score)
    scores[rows < 0] = NOT_ALLOWED
    rank, _ = tie_order(len(vectors))
    order = np.lexsort((rank[rows], scores), axis=-1)[:, ::-1][:, :k]  # (queries, k)
    best = np.take_along_axis(scores, order, axis=1)
    item_rows = np.where(np.isneginf(best), -1, np.take_along_axis(rows, order, axis=1))
    return TopK(_widened(item_rows, k, -1), _widened(best, k, float(NOT_ALLOWED)), (item_rows >= 0).sum(axis=1))


def _widened(values: np.ndarray, k: int, filler: int | float) -> np.ndarray:
    if values.shape[1] == k:
        return values
    return np.pad(values, ((0, 0), (0, k - values.shape[1])), constant_values=filler)
