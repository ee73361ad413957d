"""The catalogue protocol: every unseen item is a candidate, ranked in full and exactly."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64

from twofold.errors import DataError, RequestError
from twofold.evaluate.metrics import KS, metrics_of_ranks
from twofold.evaluate.scores import ScoreBlock, TwoStages, rank_products, rank_rows, user_chunks
from twofold.evaluate.window import CHUNK_ELEMENTS, EvaluationWindow, PerUser, checked_scores, window_chunks
from twofold.ragged import chunks
from twofold.topk import NOT_ALLOWED, Products

TIE_RULE: Final = "equal scores are ordered by a fixed hash of the item row, never by the model"


def evaluate_catalogue(
    window: EvaluationWindow, score_block: ScoreBlock, *, ks: Sequence[int] | None = None
) -> PerUser:
    """Ranks every item that the user had not seen before the window, cold ones included, in full and exactly.

    `ks` defaults to those of `metrics.KS` up to the median number of unseen items. Users without a relevant item are
    skipped and counted. DataError if no user is left.
    """
    ks, absent = _default_ks(window) if ks is None else (ks, {})
    if max(ks) > window.num_items:
        raise RequestError(
            f"a metric @{max(ks)} needs {max(ks)} items, but the catalogue has {window.num_items}: choose a smaller k"
        )
    check_relevant(window)
    num_relevant, depth = window.relevant.sizes, max(ks)
    ranks = np.zeros(len(window.relevant.values), np.int64)
    for users, lists in ranked_lists(window, score_block, depth, of=num_relevant > 0):
        relevant = window.relevant.of(users)
        first = np.repeat(window.relevant.offsets[users] - relevant.offsets[:-1], relevant.sizes)
        for part in chunks(len(relevant.values), max(1, CHUNK_ELEMENTS // depth)):
            pair, position = np.nonzero(lists[relevant.lines[part]] == relevant.values[part, None])
            pair += part.start
            ranks[first[pair] + pair] = position + 1
    user = window.relevant.lines
    hits = np.lexsort((ranks, user))
    hits = hits[ranks[hits] > 0]
    values = metrics_of_ranks(user[hits], ranks[hits], num_relevant.astype(np.int64), ks=ks)
    without = int((num_relevant == 0).sum())
    return PerUser(
        {f"catalogue/{name}": value for name, value in values.items()},
        evaluated=len(num_relevant) - without,
        skipped={window.why_skipped: without},
        absent=absent,
        ranks=ranks,
    )


def check_relevant(window: EvaluationWindow) -> None:
    """Raises DataError if no user of the window has a relevant item."""
    if not len(window.relevant.values):
        raise DataError(
            f"the {len(window.relevant.sizes)} users of window {window.name!r} have {window.why_skipped}, so the "
            "catalogue ranking has nothing to find. Check prepare.positive, or choose a longer window."
        )


def _default_ks(window: EvaluationWindow) -> tuple[Sequence[int], dict[int, str]]:
    """Returns each k of `KS` at which metrics are given, and the reasons for the others."""
    unseen = window.num_items - window.seen.sizes[window.relevant.sizes > 0]
    # The metrics at up to a tenth of the catalogue are always given: the primary metric is one of them.
    longest = max(float(np.median(unseen)) if len(unseen) else 0.0, window.num_items / 10, 1.0)
    absent = {k: f"half of the users have at most {longest:,.0f} unseen items" for k in KS if k > longest}
    return [k for k in KS if k not in absent], absent


def evaluate_filtered(
    window: EvaluationWindow,
    score_block: ScoreBlock,
    allowed: Bool[np.ndarray, "items"],
    *,
    ks: Sequence[int] | None = None,
) -> PerUser:
    """Ranks the allowed items only, and compares the ranking with *all* relevant items.

    The filter comes first, as in serving: the ranker of `TwoStages` gets the retriever's best *allowed* items.
    `catalogue_filtered/ceiling` is the share of each user's relevant items that are allowed, which no ranking under
    this filter can exceed.
    """

    if isinstance(score_block, TwoStages):
        score_block = score_block.among(allowed, seen=window.seen)

    def allowed_scores(users: slice) -> Float32[np.ndarray, "queries items"]:
        scores = checked_scores(window, score_block, users)
        scores[:, ~allowed] = NOT_ALLOWED
        return scores

    result = evaluate_catalogue(window, allowed_scores, ks=ks)
    values = {name.replace("catalogue/", "catalogue_filtered/"): value for name, value in result.values.items()}
    findable = np.bincount(window.relevant.lines, allowed[window.relevant.values], minlength=len(window.user_rows))
    relevant = np.where(window.relevant.sizes > 0, window.relevant.sizes, np.nan)
    return PerUser(values | {"catalogue_filtered/ceiling": findable / relevant}, result.evaluated, result.skipped)


def ranked_lists(
    window: EvaluationWindow, score_block: ScoreBlock, k: int, *, of: Bool[np.ndarray, "users"]
) -> Iterator[tuple[Int64[np.ndarray, "queries"], Int64[np.ndarray, "queries k"]]]:
    """Yields chunks of the users that `of` flags, with their k best unseen items; -1 if fewer are left."""
    if isinstance(score_block, Products):
        users = np.flatnonzero(of)
        products = score_block.of(users)
        for part in user_chunks(len(users)):
            yield users[part], rank_products(products, part, k, excluded=window.seen.of(users[part]))
        return
    for part in window_chunks(window):
        users = part.start + np.flatnonzero(of[part])
        scores = checked_scores(window, score_block, part)[users - part.start]
        if len(users):
            yield users, rank_rows(scores, k, excluded=window.seen.of(users))
