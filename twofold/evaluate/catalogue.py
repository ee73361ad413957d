"""The catalogue protocol: every unseen item is a candidate, ranked in full and exactly."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64

from twofold.errors import DataError, RequestError
from twofold.evaluate.metrics import KS, metrics_of_ranks
from twofold.evaluate.scores import ScoreBlock, rank_products, rank_rows, user_chunks
from twofold.evaluate.window import CHUNK_ELEMENTS, EvaluationWindow, PerUser, checked_scores, window_chunks
from twofold.ragged import chunks
from twofold.topk import NOT_ALLOWED, Products

TIE_RULE: Final = "equal scores are ordered by a fixed hash of the item row, never by the model"


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
        for part in chunks(len(wanted.values), max(1, CHUNK_ELEMENTS // depth)):
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

    def filtered(users: slice) -> Float32[np.ndarray, "queries items"]:
        scores = checked_scores(window, score_block, users)
        scores[:, ~allowed] = NOT_ALLOWED
        return scores

    judged = evaluate_catalogue(window, filtered, ks=ks)
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
        chosen = Products(score_block.queries[asked], score_block.items)
        for part in user_chunks(len(asked)):
            yield asked[part], rank_products(chosen, part, k, excluded=window.seen.of(asked[part]))
        return
    for users in window_chunks(window):
        asked = users.start + np.flatnonzero(window.relevant.sizes[users])
        scores = checked_scores(window, score_block, users)[asked - users.start]
        if len(asked):
            yield asked, rank_rows(scores, k, excluded=window.seen.of(asked))
