"""The papers' protocol: each positive against a hundred sampled items. For comparing with papers, and for nothing else.

It can order two models otherwise than the catalogue does (Krichene and Rendle, KDD 2020), so its names begin with
`sampled/`, and a report keeps it in tables of its own.
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
from twofold.evaluate.baselines import Interactions
from twofold.evaluate.metrics import ranking_metrics
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.window import EvaluationWindow, PerUser, scores_of_lists
from twofold.ragged import Ragged, chunks
from twofold.recipe.evaluate import DrawnNegatives, PublishedNegatives, Sampled
from twofold.topk import tie_order

Draw = Literal["popularity", "uniform", "published"]
KS: Final = (1, 5, 10)
_CELLS: Final = 2**22


@dataclass(frozen=True)
class Negatives:
    """For every pair of `window.relevant`, in its order, the items it is judged against, and where they come from."""

    draw: Draw
    seed: int | None
    """None where they were not drawn by us."""
    items: Int64[np.ndarray, "pairs count"]

    def description(self) -> str:
        """What a positive is judged among."""
        count = self.items.shape[1]
        if self.draw == "published":
            return f"itself and the {count} items published for its user"
        how = "by popularity" if self.draw == "popularity" else "each as likely"
        return f"itself and {count} items its user neither met nor likes, drawn {how}, none twice, seed {self.seed}"


def negatives_of(
    asked: tuple[Sampled, ...],
    window: EvaluationWindow,
    dataset: Dataset,
    *,
    positives: Interactions,
    published: Path | None,
) -> tuple[Negatives, ...]:
    """What a recipe's `evaluate.sampled` asks for. Popularity is the number of `positives`, those before the window."""
    given = []
    for each in asked:
        match each:
            case DrawnNegatives(draw=draw, count=count, seed=seed):
                counts = np.bincount(positives.item_rows, minlength=window.num_items).astype(np.float64)
                weights = counts if draw == "popularity" else None
                given.append(Negatives(draw, seed, draw_negatives(window, count, seed=seed, weights=weights)))
            case PublishedNegatives():
                assert published is not None, "a recipe that asks for published negatives names their file"
                table = pq.read_table(published)
                items = published_negatives(window, table, users=dataset.users, items=dataset.items)
                given.append(Negatives("published", None, items))
            case _:
                assert_never(each)
    return tuple(given)


def draw_negatives(
    window: EvaluationWindow, count: int, *, seed: int, weights: Float64[np.ndarray, "items"] | None = None
) -> Int64[np.ndarray, "pairs count"]:
    """For every pair of `window.relevant`, `count` items that its user neither saw nor liked, none twice.

    They are drawn one after the other with a chance in proportion to `weights`, by default each as likely: what is
    drawn is not put back, as in BERT4Rec's and nanoRecSys' evaluation. Of independent times Exp(1) / weight the
    `count` smallest are such a draw (Efraimidis and Spirakis, Information Processing Letters 2006). Costs a random
    number for every pair and item. RequestError where a user has too few such items.
    """
    weights = np.ones(window.num_items) if weights is None else weights
    never = weights <= 0
    rate = np.where(never, 1, weights).astype(np.float32)
    owner, drawn = window.relevant.lines, np.empty((len(window.relevant.values), count), np.int64)
    rng = np.random.default_rng(seed)
    for part in chunks(len(owner), max(1, _CELLS // window.num_items)):
        users, line = np.unique(owner[part], return_inverse=True)
        left_out = np.repeat(never[None], len(users), axis=0)
        for lists in (window.seen.of(users), window.relevant.of(users)):
            left_out[lists.lines, lists.values] = True
        _check_enough(window, users, left_out, count=count)
        times = rng.standard_exponential((len(line), window.num_items), dtype=np.float32) / rate
        times[left_out[line]] = np.inf
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
        line = int(np.argmin(left))
        raise RequestError(
            f"user row {window.user_rows[users[line]]} has {left[line]} items left to draw {count} negatives from: the "
            f"others of {window.num_items} were seen or are liked, or nobody liked them before. Ask for fewer in "
            "evaluate.sampled, or judge by the catalogue instead."
        )


def published_negatives(
    window: EvaluationWindow, table: pa.Table, *, users: Vocabulary, items: Vocabulary
) -> Int64[np.ndarray, "pairs count"]:
    """The items that `table` (user_id; item_id, a list) gives the user of each pair of `window.relevant`.

    Users that are not judged may be there. DataError if a column is missing, an item is unknown, or the users that
    are judged have not one line and as many negatives each.
    """
    names = table.column_names
    if not {"user_id", "item_id"} <= set(names) or not pa.types.is_list(table.schema.field("item_id").type):
        raise DataError(
            "data.published_negatives needs a line for each user: user_id, and item_id, a list. It has "
            f"{', '.join(names)}. `twofold data ncf` makes such a file."
        )
    judged = np.flatnonzero(window.relevant.sizes)
    of_user = users.rows_of(table["user_id"])
    order = np.argsort(of_user, kind="stable")
    at = np.minimum(np.searchsorted(of_user[order], window.user_rows[judged]), len(order) - 1)
    lines = table.take(pa.array(order[at]))
    counts = np.where(of_user[order[at]] == window.user_rows[judged], pc.list_value_length(lines["item_id"]), 0)
    if counts.min() == 0 or counts.min() < counts.max():
        fewest, most = (users.ids_of(window.user_rows[judged[[place(counts)]]])[0] for place in (np.argmin, np.argmax))
        raise DataError(
            f"data.published_negatives gives user {fewest} {counts.min()} items and user {most} {counts.max()}: every "
            "judged user needs as many as the others. Are they of another split?"
        )
    ids = pc.list_flatten(lines["item_id"])
    rows = items.rows_of(ids)
    if (rows < 0).any():
        raise DataError(
            f"item {ids[int(np.argmin(rows))]} of data.published_negatives is in no event and not in the items table, "
            f"so "
            "nothing can score it. Add it to data.items."
        )
    by_line = np.zeros((len(window.user_rows), int(counts[0])), np.int64)
    by_line[judged] = rows.reshape(len(judged), -1)
    given: Int64[np.ndarray, "pairs count"] = by_line[window.relevant.lines]
    return given


def evaluate_sampled(
    window: EvaluationWindow, score_block: ScoreBlock, negatives: Int64[np.ndarray, "pairs count"]
) -> PerUser:
    """Hit rate, NDCG and MRR of each positive among itself and its line of negatives; a user's value is the mean.

    `sampled/mrr` counts every rank, `sampled/mrr@k` the first k. `negatives` are drawn (`draw_negatives`) or published
    with a data set; the positive itself among them does not compete.
    """
    pairs, count = negatives.shape
    relevant = window.relevant
    if pairs != len(relevant.values):
        raise RequestError(
            f"negatives of {pairs} positives were given, but window {window.name!r} has {len(relevant.values)}: one "
            "line for each, in the order of window.relevant"
        )
    candidates = np.concatenate([relevant.values[:, None], negatives], axis=1)
    lists = Ragged(candidates.reshape(-1), relevant.offsets * (count + 1))
    scores = scores_of_lists(window, score_block, lists).reshape(pairs, count + 1)
    ties = tie_order(window.num_items)[0][candidates]
    above = (scores > scores[:, :1]) | ((scores == scores[:, :1]) & (ties > ties[:, :1]))
    hits = np.zeros((pairs, max(KS)), bool)
    rank = above.sum(axis=1)
    found = np.flatnonzero(rank < max(KS))
    hits[found, rank[found]] = True
    of_pairs = {"mrr": 1 / (rank + 1)} | ranking_metrics(hits, np.ones(pairs, np.int64), ks=KS)
    wanted = np.where(relevant.sizes > 0, relevant.sizes, np.nan)
    values = {
        f"sampled/{name}": np.bincount(relevant.lines, value, minlength=len(wanted)) / wanted
        for name, value in of_pairs.items()
        if name.startswith(("hit_rate", "ndcg", "mrr"))
    }
    judged = int((relevant.sizes > 0).sum())
    return PerUser(values, judged, {"no positive on an item not seen before": len(wanted) - judged})
