"""What heads are taught on: impressions of the training window, and where the retriever has their items.

A request is about what was liked; how likely that is, is told by all that was shown. As in reports, a user asks once a
day (or at every event), and an item that the retriever does not find, or that the user met before, stands at `top`.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Int32, Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.npy import append_array, map_array
from twofold.errors import DataError
from twofold.model.retriever import Model, as_products, user_vectors
from twofold.progress import progress_bar
from twofold.ragged import Ragged, chunks
from twofold.recipe.ranker import Mlp
from twofold.run_folder import write_json
from twofold.topk import NOT_ALLOWED, exclude
from twofold.train.ranker_examples import CELLS, Requests, asked_at, days_of, first_taught

_DONE: Final = "shown.json"
_DTYPES: Final = {"lines": np.int64, "at": np.int64, "moments": np.int32, "places": np.int64, "users": np.float32}


@dataclass(frozen=True)
class Impressions:
    """Impressions of the training window of which some head's outcome is known; all else as in `Requests`."""

    lines: Int64[np.ndarray, "impressions"]
    at: Int64[np.ndarray, "impressions"]
    moments: Int32[np.ndarray, "impressions"]
    places: Int64[np.ndarray, "impressions"]
    """In the retriever's order of what the user had not met, from 0; `top` where it does not find the item."""
    users: Float32[np.ndarray, "impressions dim"]
    items: Float32[np.ndarray, "moments items dim"]
    masked: Float32[np.ndarray, "moments items dim"] | None

    def __len__(self) -> int:
        """Number of impressions."""
        return len(self.lines)


def mine_shown(model: Model, dataset: Dataset, requests: Requests, asked: Mlp, *, out: Path) -> Impressions:
    """Asks the retriever for as many impressions as there may be requests, of the same days; writes to `out`, maps what
    it wrote. DataError where the outcome of a head is known of none.
    """
    if not (out / _DONE).exists():
        _mine(model, dataset, requests, asked, out=out)
    lines, at, moments, places, users = (map_array(out / f"shown.{name}.npy") for name in _DTYPES)
    wide = requests.items.shape[2]
    shown = Impressions(lines, at, moments, places, users.reshape(-1, wide), requests.items, requests.masked)
    for number, known in enumerate((~np.isnan(outcomes_of(dataset, lines, asked))).sum(axis=0)):
        if known == 0:
            raise DataError(
                f"ranker.heads.{number} has nothing to learn from: {asked.heads[number].outcome} is known of none of "
                f"the {len(shown):,} impressions of those days. Raise ranker.candidates.last_days, or delete the head."
            )
    return shown


def outcomes_of(
    dataset: Dataset, lines: Int64[np.ndarray, "impressions"], asked: Mlp
) -> Float32[np.ndarray, "impressions heads"]:
    """What came of these training rows, for every head; NaN where it is not known."""
    outcomes = dataset.examples["train"].outcomes
    return np.stack([outcomes[head.outcome][lines] for head in asked.heads], axis=1)


def _mine(model: Model, dataset: Dataset, requests: Requests, asked: Mlp, *, out: Path) -> None:
    lines = _draw(dataset, asked)
    at = asked_at(dataset, lines, asked.candidates)
    days, first = np.unique(days_of(dataset, requests.at), return_index=True)
    day = days_of(dataset, at)
    with ExitStack() as stack:
        append = {
            name: stack.enter_context(append_array(out / f"shown.{name}.npy", dtype)) for name, dtype in _DTYPES.items()
        }
        advance = stack.enter_context(progress_bar("mine", total=len(lines), unit="impressions"))
        # Of a day without a request the items' vectors are not at hand, and it has next to no impressions.
        for today, moment in zip(days, requests.moments[first], strict=True):
            own = np.flatnonzero(day == today)
            items = requests.items[moment]
            for part in chunks(len(own), max(CELLS // len(items), 1)):
                these = own[part]
                users, places = _ask(
                    model, dataset, lines[these], at[these], items=items, top=asked.candidates.num_candidates
                )
                found = (lines[these], at[these], np.full(len(these), moment), places, users)
                for name, values in zip(_DTYPES, found, strict=True):
                    append[name](values.ravel())
                advance(len(these), "")
    write_json(out / _DONE, len(lines))


def _draw(dataset: Dataset, asked: Mlp) -> Int64[np.ndarray, "impressions"]:
    rows = dataset.examples["train"]
    recent = np.flatnonzero(rows.at > first_taught(dataset, asked.candidates))
    known = recent[~np.isnan(outcomes_of(dataset, recent, asked)).all(axis=1)]
    drawn = np.random.default_rng((asked.seed, 2)).permutation(known)[: asked.candidates.max_requests]
    return np.sort(drawn)


def _ask(
    model: Model,
    dataset: Dataset,
    lines: Int64[np.ndarray, "lines"],
    at: Int64[np.ndarray, "lines"],
    *,
    items: Float32[np.ndarray, "items dim"],
    top: int,
) -> tuple[Float32[np.ndarray, "lines dim"], Int64[np.ndarray, "lines"]]:
    """Each line's user as a vector, and the place of its item; one user's lines of one moment lie together."""
    rows = dataset.examples["train"]
    user_rows, own = rows.user_rows[lines], rows.item_rows[lines]
    is_new = np.append(True, (np.diff(user_rows) != 0) | (np.diff(at) != 0))
    which, who, when = np.cumsum(is_new) - 1, user_rows[is_new], at[is_new]
    vectors = user_vectors(model, dataset, who, when)
    queries, _ = as_products(model, vectors, vectors[:0])
    scores = queries @ items.T
    scores[:, dataset.items.num_known :] = NOT_ALLOWED
    exclude(scores, Ragged(*dataset.events.slices(who, dataset.events.before(who, when))))
    of_own = scores[which, own]
    before = (scores[which] > of_own[:, None]).sum(axis=1)
    return queries[which], np.where(of_own == NOT_ALLOWED, top, np.minimum(before, top))
