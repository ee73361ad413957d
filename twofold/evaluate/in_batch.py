"""The in-batch protocol: each positive among the items of a batch, with the scores that training compares.

A batch tests something else than the catalogue does. Its items are those of other positives, so popular ones occur in
most batches, and training subtracts log Q from their scores. The same pairs are therefore also ranked among as many
items that are drawn uniformly from the catalogue, which shows what the choice of candidates alone changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.errors import DataError
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.significance import Estimate, estimates_of
from twofold.evaluate.window import CHUNK_ELEMENTS, EvaluationWindow, PerUser, checked_scores, window_chunks
from twofold.ragged import chunks
from twofold.render.numbers import format_decimal
from twofold.topk import sortable_keys

IN_BATCH_KS: Final = (1, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class InBatch:
    """Hit rates within batches, and of the same pairs among as many items drawn uniformly.

    `per_user` contains `in_batch/hit_rate@k` and `in_batch/uniform_hit_rate@k`, means over the positives of a user.
    `distinct_items` is the mean number of distinct items of a batch.
    """

    per_user: PerUser
    ks: tuple[int, ...]
    batch_size: int
    distinct_items: float
    is_corrected: bool
    """Whether log Q, or another correction, is subtracted within batches."""
    pairs: int
    seed: int


@dataclass(frozen=True)
class BatchLine:
    """Hit rates@k of the same pairs in batches, among as many items drawn uniformly, and in the whole catalogue."""

    k: int
    in_batch: Estimate
    uniform: Estimate
    catalogue: Estimate


@dataclass(frozen=True)
class BatchSection:
    """Report section of the in-batch protocol, for the stage that is trained in batches."""

    batch_size: int
    distinct_items: float
    """Mean number of distinct items of a batch."""
    pairs: int
    users_judged: int
    seed: int
    lines: tuple[BatchLine, ...]
    sentence: str


@dataclass(frozen=True)
class _Batches:
    """Batches of pairs: the batch of each pair, and the candidates of each batch.

    Each row of `popular` is sorted; `is_first` marks its distinct items once each. The same columns of `uniform` hold
    as many distinct items of the catalogue.
    """

    of_pair: Int64[np.ndarray, "pairs"]
    popular: Int64[np.ndarray, "_ batch"]
    uniform: Int64[np.ndarray, "_ batch"]
    is_first: Bool[np.ndarray, "_ batch"]


def evaluate_in_batch(
    window: EvaluationWindow,
    score_block: ScoreBlock,
    *,
    batch_size: int,
    seed: int,
    correction: Float32[np.ndarray, "items"] | None = None,
) -> InBatch:
    """Ranks every relevant pair of the window among the distinct items of a random batch of such pairs.

    Within a batch, `correction` (temperature · log Q) is subtracted from the score of each item, as in training; `None`
    subtracts nothing. Seen items compete; the user's other positives do not. Fewer pairs than `batch_size` form one
    smaller batch; the last batch is filled up from the one before.
    """
    item, total = window.relevant.values, len(window.relevant.values)
    if batch_size < 2 or total == 0:
        raise DataError(
            f"an in-batch hit rate needs a batch of at least 2 and some positives, not a batch of {batch_size} and "
            f"{total} positives in window {window.name!r}"
        )
    batches = _draw_batches(item, min(batch_size, total), seed=seed, num_items=window.num_items)
    corrected = np.zeros(window.num_items, np.float32) if correction is None else correction
    in_batch, uniform = np.empty(total, np.int64), np.empty(total, np.int64)
    for users in window_chunks(window):
        first, end = window.relevant.offsets[[users.start, users.stop]]
        scores, pairs = checked_scores(window, score_block, users), slice(int(first), int(end))
        in_batch[pairs], uniform[pairs] = _pair_ranks(scores, corrected, batches, window=window, users=users)
    distinct_items = float(batches.is_first.sum(axis=1).mean())
    ks = tuple(k for k in IN_BATCH_KS if k <= distinct_items)  # beyond, every order finds everything
    return InBatch(
        per_user=_hit_rates(window, ks, {"in_batch/hit_rate": in_batch, "in_batch/uniform_hit_rate": uniform}),
        ks=ks,
        batch_size=batches.popular.shape[1],
        distinct_items=distinct_items,
        is_corrected=bool(corrected.any()),
        pairs=total,
        seed=seed,
    )


def _hit_rates(
    window: EvaluationWindow, ks: tuple[int, ...], ranks: Mapping[str, Int64[np.ndarray, "pairs"]]
) -> PerUser:
    """Returns the share of each user's pairs whose rank is at most k, by name of the ranks."""
    relevant, sizes = window.relevant, np.where(window.relevant.sizes > 0, window.relevant.sizes, np.nan)
    values = {
        f"{name}@{k}": np.bincount(relevant.lines, weights=rank <= k, minlength=len(sizes)) / sizes
        for name, rank in ranks.items()
        for k in ks
    }
    evaluated = int((relevant.sizes > 0).sum())
    return PerUser(values, evaluated, {window.why_skipped: len(sizes) - evaluated})


def _draw_batches(item: Int64[np.ndarray, "pairs"], size: int, *, seed: int, num_items: int) -> _Batches:
    """Divides the pairs at random into batches. Uniform items are a stretch of one shuffle, where none repeats."""
    rng, total = np.random.default_rng(seed), len(item)
    order = rng.permutation(total)
    of_pair = np.empty(total, np.int64)
    of_pair[order] = np.arange(total) // size
    starts = np.minimum(np.arange(0, total, size), total - size)
    popular = np.sort(item[order[starts[:, None] + np.arange(size)]], axis=1)
    is_first = np.diff(popular, axis=1, prepend=-1) != 0
    first = rng.integers(0, num_items, (len(starts), 1))
    uniform = rng.permutation(num_items)[(first + np.cumsum(is_first, axis=1)) % num_items]
    return _Batches(of_pair, popular, uniform, is_first)


def _pair_ranks(
    scores: Float32[np.ndarray, "queries items"],
    correction: Float32[np.ndarray, "items"],
    batches: _Batches,
    *,
    window: EvaluationWindow,
    users: slice,
) -> tuple[Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"]]:
    """Returns the ranks of each relevant pair of some users among its batch's items and among uniform ones."""
    relevant = window.relevant.part(users)
    user, own = relevant.lines, relevant.values
    plain, corrected = sortable_keys(scores), sortable_keys(scores - correction)
    may_compete = np.ones(plain.shape, bool)
    may_compete[user, own] = False
    of_pair = batches.of_pair[window.relevant.offsets[users.start] : window.relevant.offsets[users.stop]]
    in_batch, uniform = np.empty(len(own), np.int64), np.empty(len(own), np.int64)
    for part in chunks(len(own), max(1, CHUNK_ELEMENTS // max(plain.shape[1], batches.popular.shape[1]))):
        row, batch = user[part, None], of_pair[part]
        popular_at, uniform_at = (row, batches.popular[batch]), (row, batches.uniform[batch])
        competes = batches.is_first[batch] & may_compete[popular_at]
        above = corrected[popular_at] > corrected[user[part], own[part], None]
        in_batch[part] = 1 + (above & competes).sum(axis=1)
        above = plain[uniform_at] > plain[user[part], own[part], None]
        uniform[part] = 1 + (above & competes & may_compete[uniform_at]).sum(axis=1)
    return in_batch, uniform


def batch_section(
    in_batch: InBatch, recall: Mapping[str, Float64[np.ndarray, "users"]], *, num_items: int
) -> BatchSection:
    """Returns the section; `recall` are the stage's catalogue metrics: recall@k is the hit rate of the same pairs.

    A k at which the catalogue has no recall, since most lists are shorter, has no line.
    """
    ks = [k for k in in_batch.ks if f"catalogue/recall@{k}" in recall]
    values = in_batch.per_user.values | {f"recall@{k}": recall[f"catalogue/recall@{k}"] for k in ks}
    found = estimates_of(values)
    lines = tuple(
        BatchLine(k, found[f"in_batch/hit_rate@{k}"], found[f"in_batch/uniform_hit_rate@{k}"], found[f"recall@{k}"])
        for k in ks
    )
    return BatchSection(
        batch_size=in_batch.batch_size,
        distinct_items=in_batch.distinct_items,
        pairs=in_batch.pairs,
        users_judged=in_batch.per_user.evaluated,
        seed=in_batch.seed,
        lines=lines,
        sentence=_sentence(in_batch, lines, num_items=num_items),
    )


def _sentence(in_batch: InBatch, lines: tuple[BatchLine, ...], *, num_items: int) -> str:
    """Says how a batch differs from the catalogue, and what share of the same pairs is found in either."""
    line = [line for line in lines if line.k <= 10][-1]
    first = "first" if line.k == 1 else f"among the first {line.k}"
    corrected = ", and training subtracts log Q from the score of each" if in_batch.is_corrected else ""
    return (
        f"A batch of {in_batch.batch_size:,} is a smaller and different exam: its {in_batch.distinct_items:,.0f} "
        f"distinct items are mostly popular ones{corrected}. There, {format_decimal(line.in_batch.value)} of a user's "
        f"positives come {first}; among as many items drawn uniformly {format_decimal(line.uniform.value)} do, and in "
        f"the whole catalogue of {num_items:,} {format_decimal(line.catalogue.value)}."
    )
