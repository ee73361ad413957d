"""Who is judged against which candidates:

catalogue, impressions, in-batch. Three candidate sets, three names, never mixed.

A model is a function from a slice of the judged users to their scores of the whole catalogue, so popularity and a
transformer are judged by the same code. Users go through in blocks: memory is bounded by `_CELLS`, however many users
there are; and however many items, where scores are `Products`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.errors import DataError, RequestError
from twofold.evaluate.metrics import (
    KS,
    best_metrics,
    chance_metrics,
    impression_metrics,
    metrics_of_ranks,
    pooled_auc,
)
from twofold.evaluate.scores import Products, ScoreBlock, rank_products, rank_rows, users_at_once
from twofold.evaluate.two_stages import TwoStages
from twofold.ragged import Ragged, chunks
from twofold.topk import NOT_ALLOWED, sortable_keys, tie_order

Protocol = Literal["time_free", "query_time"]

TIE_RULE: Final = "equal scores are ordered by a fixed hash of the item row, never by the model"
IN_BATCH_KS: Final = (1, 5, 10, 50)
_CELLS: Final = 2**22  # scores held at once: about 100 MiB with their sort keys; larger blocks were slower


@dataclass(frozen=True)
class EvaluationWindow:
    """The users of one evaluated window, asked once each, and what they did then.

    Lists hold distinct item rows. An item met before the window is in `seen`, and then never in `relevant`: the
    catalogue ranking excludes it. `candidates` are the user's own impressions in the window, seen before or not.
    """

    name: str
    user_rows: Int64[np.ndarray, "users"]
    query_at: Int64[np.ndarray, "users"]
    """Moment of the request, UTC ms."""
    seen: Ragged
    relevant: Ragged
    candidates: Ragged
    labels: Bool[np.ndarray, "length"]
    """Aligned with `candidates.values`: the pair has a positive event in the window."""
    num_items: int
    is_cold: Bool[np.ndarray, "items"]
    """The item has no event in training."""
    track: Protocol

    def __post_init__(self) -> None:
        users = len(self.user_rows)
        if users == 0:
            raise DataError(
                f"window {self.name!r} holds no event, so nobody can be judged in it. Check its dates in prepare.split "
                "against the days that the log covers."
            )
        for name in ("seen", "relevant", "candidates"):
            lists: Ragged = getattr(self, name)
            assert len(lists.offsets) == users + 1, f"{name} has {len(lists.offsets) - 1} lists for {users} users"
            assert lists.offsets[0] == 0, f"{name}: offsets begin at 0"
            assert lists.offsets[-1] == len(lists.values), f"{name}: offsets end at the last value"
        assert len(self.labels) == len(self.candidates.values), "a label for every candidate"
        assert len(self.is_cold) == self.num_items, "is_cold has an entry for every item"


@dataclass(frozen=True)
class PerUser:
    """Numbers of one model under one protocol: name → value of each judged user, NaN where the user is skipped."""

    values: dict[str, Float64[np.ndarray, "users"]]
    judged: int
    skipped: dict[str, int]
    """Why users were skipped → how many."""
    pooled: dict[str, float] = field(default_factory=dict)
    """Numbers over all pairs at once, which no user has alone."""
    ranks: Int64[np.ndarray, "pairs"] | None = None
    """Catalogue: the rank at which each pair of `window.relevant` was found, 0 where it was not."""

    def mean(self, name: str) -> float:
        """The mean over the users that have a value; NaN if nobody has."""
        known = self.values[name][~np.isnan(self.values[name])]
        return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True)
class InBatch:
    """Hit rates within batches, and those of the same pairs in the whole catalogue at the rank that a batch stands for.

    `ranks` maps each k to K = k·N/B, before rounding. `per_user` holds `in_batch/hit_rate@k` and
    `catalogue/hit_rate@round(K)`.
    """

    per_user: PerUser
    ranks: dict[int, float]
    batch_size: int
    pairs: int
    seed: int


def evaluate_catalogue(
    window: EvaluationWindow, score_block: ScoreBlock, *, ks: Sequence[int] | None = None
) -> PerUser:
    """Full ranking, exact: every item that the user had not seen before the window, cold ones included.

    `ks` defaults to `metrics.KS` as far as the catalogue reaches. Users without a relevant item are skipped and
    counted; if no user is left, DataError.
    """
    if ks is None:
        ks = [k for k in KS if k <= window.num_items]
    if max(ks) > window.num_items:
        raise RequestError(
            f"a metric @{max(ks)} needs {max(ks)} items, but the catalogue has {window.num_items}: choose k up to that"
        )
    num_relevant, depth = window.relevant.sizes, max(ks)
    if not num_relevant.any():
        raise DataError(
            f"none of the {len(num_relevant)} users of window {window.name!r} has a positive on an item not seen "
            "before, so the catalogue ranking has nothing to find. Check prepare.positive, or choose a longer window."
        )
    ranks = np.zeros(len(window.relevant.values), np.int64)
    for users, answers in _answers(window, score_block, depth):
        wanted = window.relevant.of(users)
        first = np.repeat(window.relevant.offsets[users] - wanted.offsets[:-1], wanted.sizes)
        for part in chunks(len(wanted.values), max(1, _CELLS // depth)):
            pair, place = np.nonzero(answers[wanted.lines[part]] == wanted.values[part, None])
            pair += part.start
            ranks[first[pair] + pair] = place + 1
    line = window.relevant.lines
    found = np.lexsort((ranks, line))
    found = found[ranks[found] > 0]
    values = metrics_of_ranks(line[found], ranks[found], num_relevant.astype(np.int64), ks=ks)
    without = int((num_relevant == 0).sum())
    return PerUser(
        {f"catalogue/{name}": value for name, value in values.items()},
        judged=len(num_relevant) - without,
        skipped={"no positive on an item not seen before": without},
        ranks=ranks,
    )


def evaluate_filtered(
    window: EvaluationWindow,
    score_block: ScoreBlock,
    allowed: Bool[np.ndarray, "items"],
    *,
    ks: Sequence[int] | None = None,
) -> PerUser:
    """The catalogue ranking of what passes a filter of the index, judged against *all* positives.

    Beside it `catalogue_filtered/ceiling`: the share of each user's positives that are still eligible, which no ranking
    under this filter can exceed.
    """

    def passing(users: slice) -> Float32[np.ndarray, "queries items"]:
        scores = _scores(window, score_block, users)
        scores[:, ~allowed] = NOT_ALLOWED
        return scores

    judged = evaluate_catalogue(window, passing, ks=ks)
    values = {name.replace("catalogue/", "catalogue_filtered/"): value for name, value in judged.values.items()}
    eligible = np.bincount(window.relevant.lines, allowed[window.relevant.values], minlength=len(window.user_rows))
    wanted = np.where(window.relevant.sizes > 0, window.relevant.sizes, np.nan)
    return PerUser(values | {"catalogue_filtered/ceiling": eligible / wanted}, judged.judged, judged.skipped)


def _answers(
    window: EvaluationWindow, score_block: ScoreBlock, k: int
) -> Iterator[tuple[Int64[np.ndarray, "queries"], Int64[np.ndarray, "queries k"]]]:
    """Users who have something to find, block by block, and their k best unseen items, -1 where fewer were left."""
    if isinstance(score_block, Products):
        asked = np.flatnonzero(window.relevant.sizes)
        chosen = Products(score_block.queries[asked], score_block.factors)
        for part in users_at_once(len(asked)):
            yield asked[part], rank_products(chosen, part, k, excluded=window.seen.of(asked[part]))
        return
    for users in _user_blocks(window):
        asked = users.start + np.flatnonzero(window.relevant.sizes[users])
        scores = _scores(window, score_block, users)[asked - users.start]
        if len(asked):
            yield asked, rank_rows(scores, k, excluded=window.seen.of(asked))


def evaluate_impressions(window: EvaluationWindow, score_block: ScoreBlock) -> PerUser:
    """The order of each user's own impressions in the window. Users with a single class are skipped and counted."""
    flat = scores_of_lists(window, score_block, window.candidates)
    ties = tie_order(window.num_items)[0][window.candidates.values]
    values = impression_metrics(flat, window.labels, ties=ties, offsets=window.candidates.offsets)
    positives, sizes = _positives(window), window.candidates.sizes
    skipped = {
        "no positive impression": int((positives == 0).sum()),
        "no negative impression": int(((positives == sizes) & (positives > 0)).sum()),
    }
    return PerUser(
        {f"impressions/{name}": value for name, value in values.items()},
        judged=len(sizes) - sum(skipped.values()),
        skipped=skipped,
        pooled={"impressions/auc_pooled": pooled_auc(flat, window.labels)},
    )


def bounds_of_impressions(window: EvaluationWindow) -> tuple[PerUser, PerUser]:
    """What a random and a perfect order of the impressions reach, exactly, on the users that have both classes."""
    positives, sizes = _positives(window), window.candidates.sizes
    judged = int(((positives > 0) & (positives < sizes)).sum())
    chance, best = chance_metrics(sizes, positives), best_metrics(sizes, positives)
    return (
        PerUser({f"impressions/{name}": value for name, value in chance.items()}, judged, {}),
        PerUser({f"impressions/{name}": value for name, value in best.items()}, judged, {}),
    )


def scores_of_lists(window: EvaluationWindow, score_block: ScoreBlock, lists: Ragged) -> Float32[np.ndarray, "length"]:
    """The score of every item of each user's list."""
    if isinstance(score_block, Products | TwoStages):
        return score_block.pairs(lists.lines, lists.values)
    scores = []
    for users in _user_blocks(window):
        part = lists.part(users)
        scores.append(_scores(window, score_block, users)[part.lines, part.values])
    return np.concatenate(scores)


def evaluate_in_batch(window: EvaluationWindow, score_block: ScoreBlock, *, batch_size: int, seed: int) -> InBatch:
    """Every relevant pair of the window against the items of a batch of such pairs, drawn at random.

    Columns are as in training: an item stands there as often as it was drawn, seen items stay; masked are the
    positive's own item elsewhere and the user's other positives. Fewer pairs than `batch_size` make one smaller
    batch; the last batch borrows from the one before. A user's value is the mean over the user's pairs, so that
    `catalogue/hit_rate@K` of all pairs *is* recall@K.
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
    for users in _user_blocks(window):
        first, end = window.relevant.offsets[[users.start, users.stop]]
        keys = sortable_keys(_scores(window, score_block, users))
        in_batch[first:end], in_catalogue[first:end] = _pair_ranks(
            keys, columns, batch=batch[first:end], window=window, users=users
        )
    ranks = {k: k * window.num_items / size for k in IN_BATCH_KS if k <= size}
    sizes = np.where(window.relevant.sizes > 0, window.relevant.sizes, np.nan)

    def mean_per_user(hit: Bool[np.ndarray, "length"]) -> Float64[np.ndarray, "users"]:
        return np.bincount(pairs, weights=hit, minlength=len(sizes)) / sizes

    values = {f"in_batch/hit_rate@{k}": mean_per_user(in_batch <= k) for k in ranks}
    values |= {catalogue_name(rank): mean_per_user(in_catalogue <= _whole(rank)) for rank in ranks.values()}
    judged = int((window.relevant.sizes > 0).sum())
    skipped = {"no positive on an item not seen before": len(sizes) - judged}
    return InBatch(PerUser(values, judged, skipped), ranks, size, total, seed)


def catalogue_name(rank: float) -> str:
    """The metric that an in-batch hit rate standing for this catalogue rank is compared with."""
    return f"catalogue/hit_rate_of_pairs@{_whole(rank)}"


def _whole(rank: float) -> int:
    return max(1, round(rank))


def _pair_ranks(
    keys: Int64[np.ndarray, "queries items"],
    columns: Int64[np.ndarray, "batches batch"],
    *,
    batch: Int64[np.ndarray, "length"],
    window: EvaluationWindow,
    users: slice,
) -> tuple[Int64[np.ndarray, "length"], Int64[np.ndarray, "length"]]:
    """Rank of each relevant pair of a user block: among its batch's items, and in the catalogue without seen items.

    Writes over the keys of seen items.
    """
    relevant, seen = window.relevant.part(users), window.seen.part(users)
    line, own = relevant.lines, keys[relevant.lines, relevant.values]
    may_compete = np.ones(keys.shape, bool)
    may_compete[line, relevant.values] = False
    in_batch, in_catalogue = np.empty(len(own), np.int64), np.empty(len(own), np.int64)
    steps = chunks(len(own), max(1, _CELLS // max(keys.shape[1], columns.shape[1])))
    for part in steps:
        at = (line[part, None], columns[batch[part]])
        in_batch[part] = 1 + ((keys[at] > own[part, None]) & may_compete[at]).sum(axis=1)
    keys[seen.lines, seen.values] = np.iinfo(np.int64).min
    for part in steps:
        in_catalogue[part] = 1 + (keys[line[part]] > own[part, None]).sum(axis=1)
    return in_batch, in_catalogue


def _user_blocks(window: EvaluationWindow) -> list[slice]:
    return chunks(len(window.user_rows), max(1, _CELLS // window.num_items))


def _scores(window: EvaluationWindow, score_block: ScoreBlock, users: slice) -> Float32[np.ndarray, "queries items"]:
    """The scores of a block of users, with the two mistakes a model can make told apart from a bad model."""
    scores = score_block(users)
    expected = (users.stop - users.start, window.num_items)
    assert scores.shape == expected, f"scores of shape {scores.shape} where {expected} were asked for"
    if np.isnan(scores.min()):
        line, item_row = np.argwhere(np.isnan(scores))[0]
        raise RequestError(
            f"a score is NaN for user row {window.user_rows[users.start + line]} and item row {item_row} (window "
            f"{window.name!r}): the model has diverged. Lower train.learning_rate, or look for NaN in the items."
        )
    return scores


def _positives(window: EvaluationWindow) -> Int64[np.ndarray, "users"]:
    return np.bincount(window.candidates.lines, weights=window.labels, minlength=len(window.user_rows)).astype(np.int64)
