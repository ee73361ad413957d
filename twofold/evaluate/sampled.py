"""The sampled protocol of many papers: each positive among sampled items. Its only use is comparison with papers.

The protocol can rank two models differently than the catalogue does (Krichene and Rendle, KDD 2020), so its metrics
begin with `sampled/`, and a report has separate tables for them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import DataError, RequestError
from twofold.evaluate.metrics import ranking_metrics
from twofold.evaluate.peers import Interactions
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.window import EvaluationWindow, PerUser, scores_of_lists
from twofold.ragged import Ragged, chunks
from twofold.recipe.evaluate import DrawnNegatives, PublishedNegatives, Sampled
from twofold.topk import tie_order

Draw = Literal["popularity", "uniform", "published"]
KS: Final = (1, 5, 10)
CHUNK_ELEMENTS: Final = 2**22  # random numbers in memory at a time


@dataclass(frozen=True)
class Negatives:
    """Negatives of every pair of `window.relevant`, in its order, and how they were drawn."""

    draw: Draw
    seed: int | None
    """Seed of the draw; `None` means that the negatives are published."""
    items: Int64[np.ndarray, "pairs _"]

    def description(self, *, includes_seen: bool) -> str:
        """Returns a description of the items among which a positive is ranked."""
        count = self.items.shape[1]
        if self.draw == "published":
            return f"itself and the {count} items published for its user"
        how = "by popularity" if self.draw == "popularity" else "uniformly"
        others = "other items" if includes_seen else "other items unseen by its user"
        return f"itself and {count} {others}, drawn {how} without replacement, seed {self.seed}"


def negatives_of(
    specs: tuple[Sampled, ...],
    window: EvaluationWindow,
    dataset: Dataset,
    *,
    positives: Interactions,
    published: Path | None,
) -> tuple[Negatives, ...]:
    """Returns the negatives of a recipe's `evaluate.sampled`. Popularity counts the `positives` before the window."""
    negatives = []
    for spec in specs:
        match spec:
            case DrawnNegatives(draw=draw, count=count, seed=seed):
                counts = np.bincount(positives.item_rows, minlength=window.num_items).astype(np.float64)
                weights = counts if draw == "popularity" else None
                negatives.append(Negatives(draw, seed, draw_negatives(window, count, seed=seed, weights=weights)))
            case PublishedNegatives():
                assert published is not None, "a recipe with published negatives names their file"
                table = pq.read_table(published)
                items = published_negatives(window, table, users=dataset.users, items=dataset.items)
                negatives.append(Negatives("published", None, items))
            case _:
                assert_never(spec)
    return tuple(negatives)


def draw_negatives(
    window: EvaluationWindow, count: int, *, seed: int, weights: Float64[np.ndarray, "items"] | None = None
) -> Int64[np.ndarray, "pairs _"]:
    """Draws, for every pair of `window.relevant`, `count` distinct items that its user neither saw nor liked.

    Items are drawn without replacement with probability in proportion to `weights`, by default uniformly, as in
    the evaluations of BERT4Rec and nanoRecSys. Of independent times Exp(1) / weight the `count` smallest are such a
    draw (Efraimidis and Spirakis, Information Processing Letters 2006). Needs one random number per pair and item.
    RequestError if a user has too few such items.
    """
    weights = np.ones(window.num_items) if weights is None else weights
    is_never_drawn = weights <= 0
    rate = np.where(is_never_drawn, 1, weights).astype(np.float32)
    owner, drawn = window.relevant.lines, np.empty((len(window.relevant.values), count), np.int64)
    rng = np.random.default_rng(seed)
    for part in chunks(len(owner), max(1, CHUNK_ELEMENTS // window.num_items)):
        users, user = np.unique(owner[part], return_inverse=True)
        left_out = np.repeat(is_never_drawn[None], len(users), axis=0)
        for lists in (window.seen.of(users), window.relevant.of(users)):
            left_out[lists.lines, lists.values] = True
        _check_enough(window, users, left_out, count=count)
        times = rng.standard_exponential((len(user), window.num_items), dtype=np.float32) / rate
        times[left_out[user]] = np.inf
        drawn[part] = np.sort(np.argpartition(times, count - 1, axis=1)[:, :count], axis=1)
    return drawn


def _check_enough(
    window: EvaluationWindow,
    users: Int64[np.ndarray, "users"],
    left_out: Bool[np.ndarray, "users items"],
    *,
    count: int,
) -> None:
    left = window.num_items - left_out.sum(axis=1)
    if (left < count).any():
        user = int(np.argmin(left))
        raise RequestError(
            f"user row {window.user_rows[users[user]]} has {left[user]} items left to draw {count} negatives from: the "
            f"others of {window.num_items} were seen or liked by the user, or liked by no user before. Set a smaller "
            "count in evaluate.sampled, or rely on the catalogue protocol instead."
        )


def published_negatives(
    window: EvaluationWindow, table: pa.Table, *, users: Vocabulary, items: Vocabulary
) -> Int64[np.ndarray, "pairs _"]:
    """Returns the items that `table` (user_id; item_id, a list) has for the user of each pair of `window.relevant`.

    The table may contain further users. DataError if a column is missing, an item is unknown, or the users with a
    relevant item do not have one row and the same number of negatives each.
    """
    names = table.column_names
    if not {"user_id", "item_id"} <= set(names) or not pa.types.is_list(table.schema.field("item_id").type):
        raise DataError(
            "data.published_negatives needs one row per user with the columns user_id and item_id, a list. Its columns "
            f"are {', '.join(names)}. `twofold data ncf` makes such a file."
        )
    with_relevant = np.flatnonzero(window.relevant.sizes)
    user_rows, table_rows = window.user_rows[with_relevant], users.rows_of(table["user_id"])
    order = np.argsort(table_rows, kind="stable")
    at = np.minimum(np.searchsorted(table_rows[order], user_rows), len(order) - 1)
    lists = table["item_id"].take(pa.array(order[at]))
    counts = np.where(table_rows[order[at]] == user_rows, pc.list_value_length(lists), 0)
    if counts.min() == 0 or counts.min() < counts.max():
        fewest, most = (users.ids_of(user_rows[[which(counts)]])[0] for which in (np.argmin, np.argmax))
        raise DataError(
            f"data.published_negatives has {counts.min()} items for user {fewest} and {counts.max()} for user {most}: "
            "all evaluated users need the same number. Does the file belong to another split?"
        )
    ids = pc.list_flatten(lists)
    rows = items.rows_of(ids)
    if (rows < 0).any():
        raise DataError(
            f"item {ids[int(np.argmin(rows))]} of data.published_negatives is in no event and not in the items table, "
            "so no model can score it. Add it to data.items."
        )
    by_user = np.zeros((len(window.user_rows), int(counts[0])), np.int64)
    by_user[with_relevant] = rows.reshape(len(with_relevant), -1)
    return by_user[window.relevant.lines]


def evaluate_sampled(
    window: EvaluationWindow, score_block: ScoreBlock, negatives: Int64[np.ndarray, "pairs _"]
) -> PerUser:
    """Computes hit rate, NDCG and MRR of each positive among its negatives; a user's value is the mean over positives.

    `sampled/mrr` counts every rank, `sampled/mrr@k` the first k. `negatives` are drawn (`draw_negatives`) or published
    with a data set; the positive itself among them does not compete.
    """
    pairs, count = negatives.shape
    relevant = window.relevant
    if pairs != len(relevant.values):
        raise RequestError(
            f"negatives for {pairs} positives, but window {window.name!r} has {len(relevant.values)}: one row for each "
            "is needed, in the order of window.relevant"
        )
    candidates = np.concatenate([relevant.values[:, None], negatives], axis=1)
    lists = Ragged(candidates.reshape(-1), relevant.offsets * (count + 1))
    scores = scores_of_lists(window, score_block, lists).reshape(pairs, count + 1)
    ties = tie_order(window.num_items)[0][candidates]
    above = (scores > scores[:, :1]) | ((scores == scores[:, :1]) & (ties > ties[:, :1]))
    hits = np.zeros((pairs, max(KS)), bool)
    rank = above.sum(axis=1)
    is_hit = np.flatnonzero(rank < max(KS))
    hits[is_hit, rank[is_hit]] = True
    of_pairs = {"mrr": 1 / (rank + 1)} | ranking_metrics(hits, np.ones(pairs, np.int64), ks=KS)
    num_relevant = np.where(relevant.sizes > 0, relevant.sizes, np.nan)
    values = {
        f"sampled/{name}": np.bincount(relevant.lines, value, minlength=len(num_relevant)) / num_relevant
        for name, value in of_pairs.items()
        if name.startswith(("hit_rate", "ndcg", "mrr"))
    }
    evaluated = int((relevant.sizes > 0).sum())
    return PerUser(values, evaluated, {window.why_skipped: len(num_relevant) - evaluated})
