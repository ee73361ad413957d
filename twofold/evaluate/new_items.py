"""Report section on new items: those without any event before the window, ranked in the full catalogue.

Neither the model nor a baseline can have learned from them. A catalogue has few such items, so `prepare.new_items` of a
study recipe makes some: it removes all events of a share of the items from everything before the test window.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from twofold.dataset.dataset import Dataset
from twofold.evaluate.significance import Estimate, estimates_of
from twofold.evaluate.window import EvaluationWindow
from twofold.render.numbers import format_decimal, format_interval, plural


@dataclass(frozen=True)
class NewItemRow:
    """Recall of one model on the users' positives that are new items."""

    name: str
    recall: Estimate


@dataclass(frozen=True)
class NewItemSection:
    """Results on new items. The model's row is first."""

    k: int
    items: int
    """Number of new items of the catalogue."""
    pairs: int
    """Number of pairs of a user and a relevant new item."""
    users_judged: int
    rows: tuple[NewItemRow, ...]
    sentence: str


def find_new_items(dataset: Dataset, window: EvaluationWindow) -> Bool[np.ndarray, "items"]:
    """Returns flags of the items without a training example and without an event that is known in the window.

    Known are events of the window's users before their request, and events of others before the first request.
    """
    is_new, events = window.is_cold.copy(), dataset.events
    until = np.full(len(dataset.users), window.query_at.min())
    until[window.user_rows] = window.query_at  # with `last_n`, after events that others learn from
    known = np.asarray(events.at) < np.repeat(until, np.diff(events.offsets))
    is_new[np.asarray(events.item_rows)[known]] = False
    return is_new


def evaluate_new_items(
    ranks: Mapping[str, Int64[np.ndarray, "pairs"]],
    window: EvaluationWindow,
    is_new: Bool[np.ndarray, "items"],
    *,
    k: int,
) -> NewItemSection | None:
    """Returns the recall of every row on the pairs with a new item; `None` means there is no such pair.

    `ranks` are the catalogue ranks of the relevant pairs by name of the row, 0 for a pair that was not found.
    """
    relevant = window.relevant
    of_new = is_new[relevant.values]
    if not of_new.any():
        return None
    users, number = np.unique(relevant.lines[of_new], return_inverse=True)
    sizes = np.bincount(number)
    recall = {
        name: np.bincount(number, (each[of_new] > 0) & (each[of_new] <= k)) / sizes for name, each in ranks.items()
    }
    rows = tuple(NewItemRow(name, estimate) for name, estimate in estimates_of(recall).items())
    items, pairs = int(is_new.sum()), int(of_new.sum())
    chance = float(np.minimum(1, k / (window.num_items - window.seen.sizes[users])).mean())
    sentence = _sentence(rows, k=k, items=items, pairs=pairs, chance=chance)
    return NewItemSection(k, items, pairs, len(users), rows, sentence)


def _sentence(rows: tuple[NewItemRow, ...], *, k: int, items: int, pairs: int, chance: float) -> str:
    """Compares the model on new items with a random order, and names the best other row if it is better."""
    model, others = rows[0].recall, rows[1:]
    text = (
        f"New items: of {plural(pairs, 'positive')} on the {plural(items, 'item')} without any event before the "
        f"window, the model finds {format_decimal(model.value)} {format_interval(model.low, model.high)} among the "
        f"first {k}; a random order finds {format_decimal(chance)}"
    )
    best = max(others, key=lambda row: row.recall.value or 0, default=None)
    if best is not None and (best.recall.value or 0) > max(model.value or 0, chance):
        text += f", {best.name} {format_decimal(best.recall.value)}"
    return f"{text}."
