"""The in-batch protocol: each positive among the items of a batch, as in training."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from twofold.errors import DataError
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.window import CHUNK_ELEMENTS, EvaluationWindow, PerUser, checked_scores, window_chunks
from twofold.ragged import chunks
from twofold.topk import sortable_keys

IN_BATCH_KS: Final = (1, 5, 10, 50)


@dataclass(frozen=True)
class InBatch:
    """Hit rates within batches, and those of the same pairs in the catalogue at the corresponding rank.

    `ranks` maps each k to K = k·N/B, before rounding. `per_user` contains `in_batch/hit_rate@k` and
    `catalogue/hit_rate_of_pairs@round(K)`.
    """

    per_user: PerUser
    ranks: dict[int, float]
    batch_size: int
    pairs: int
    seed: int


def evaluate_in_batch(window: EvaluationWindow, score_block: ScoreBlock, *, batch_size: int, seed: int) -> InBatch:
    """Ranks every relevant pair of the window among the items of a random batch of such pairs.

    Columns are as in training: an item occurs as often as it was drawn, and seen items stay; the positive's own item
    elsewhere and the user's other positives are masked. Fewer pairs than `batch_size` form one smaller batch; the last
    batch is filled up from the one before. A user's value is the mean over the user's pairs, so that
    `catalogue/hit_rate_of_pairs@K` *is* recall@K.
    """
    pairs, item = window.relevant.lines, window.relevant.values
    if batch_size < 2 or len(pairs) == 0:
        raise DataError(
            f"an in-batch hit rate needs a batch of at least 2 and some positives, not a batch of {batch_size} and "
            f"{len(pairs)} positives in window {window.name!r}"
        )
    size, total = min(batch_size, len(pairs)), len(pairs)
    order = np.random.default_rng(seed).permutation(total)
    batch = np.empty(total, np.int64)
    batch[order] = np.arange(total) // size
    starts = np.minimum(np.arange(0, total, size), total - size)
    columns = item[order[starts[:, None] + np.arange(size)]]  # (batches, batch)
    in_batch, in_catalogue = np.empty(total, np.int64), np.empty(total, np.int64)
    for users in window_chunks(window):
        first, end = window.relevant.offsets[[users.start, users.stop]]
        keys = sortable_keys(checked_scores(window, score_block, users))
        in_batch[first:end], in_catalogue[first:end] = _pair_ranks(
            keys, columns, batch=batch[first:end], window=window, users=users
        )
    ranks = {k: k * window.num_items / size for k in IN_BATCH_KS if k <= size}
    sizes = np.where(window.relevant.sizes > 0, window.relevant.sizes, np.nan)

    def mean_per_user(hit: Bool[np.ndarray, "length"]) -> Float64[np.ndarray, "users"]:
        return np.bincount(pairs, weights=hit, minlength=len(sizes)) / sizes

    values = {f"in_batch/hit_rate@{k}": mean_per_user(in_batch <= k) for k in ranks}
    values |= {catalogue_name(rank): mean_per_user(in_catalogue <= _rounded(rank)) for rank in ranks.values()}
    evaluated = int((window.relevant.sizes > 0).sum())
    skipped = {"no positive on an item not seen before": len(sizes) - evaluated}
    return InBatch(PerUser(values, evaluated, skipped), ranks, size, total, seed)


def catalogue_name(rank: float) -> str:
    """Returns the name of the catalogue metric that corresponds to an in-batch hit rate at this catalogue rank."""
    return f"catalogue/hit_rate_of_pairs@{_rounded(rank)}"


def _rounded(rank: float) -> int:
    return max(1, round(rank))


def _pair_ranks(
    keys: Int64[np.ndarray, "queries items"],
    columns: Int64[np.ndarray, "_ batch"],
    *,
    batch: Int64[np.ndarray, "length"],
    window: EvaluationWindow,
    users: slice,
) -> tuple[Int64[np.ndarray, "length"], Int64[np.ndarray, "length"]]:
    """Returns the ranks of each relevant pair of some users among its batch's items and among all unseen items.

    Overwrites the keys of seen items.
    """
    relevant, seen = window.relevant.part(users), window.seen.part(users)
    user, own = relevant.lines, keys[relevant.lines, relevant.values]
    may_compete = np.ones(keys.shape, bool)
    may_compete[user, relevant.values] = False
    in_batch, in_catalogue = np.empty(len(own), np.int64), np.empty(len(own), np.int64)
    steps = chunks(len(own), max(1, CHUNK_ELEMENTS // max(keys.shape[1], columns.shape[1])))
    for part in steps:
        at = (user[part, None], columns[batch[part]])
        in_batch[part] = 1 + ((keys[at] > own[part, None]) & may_compete[at]).sum(axis=1)
    keys[seen.lines, seen.values] = np.iinfo(np.int64).min
    for part in steps:
        in_catalogue[part] = 1 + (keys[user[part]] > own[part, None]).sum(axis=1)
    return in_batch, in_catalogue
