"""Training examples of the ranker's heads: impressions of the training window with the retriever's rank of their items.

Requests say what was liked; only all impressions say how likely an outcome is. As in reports, a user makes one request
a day (or one per event), and an item that is not found, or was seen before the request, has rank `top`.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Int32, Int64

from twofold.candidate_sources import CandidateSources
from twofold.dataset.dataset import Dataset
from twofold.dataset.npy import append_array, map_array
from twofold.errors import DataError
from twofold.progress import progress_bar
from twofold.ragged import Ragged, chunks
from twofold.recipe.ranker import Mlp
from twofold.run_folder import write_json
from twofold.topk import NOT_ALLOWED, exclude
from twofold.train.ranker_examples import (
    CHUNK_ELEMENTS,
    Mining,
    Requests,
    candidates_from,
    first_request_time,
    request_times,
    score_items,
    vector_days,
)

_DONE: Final = "impressions.json"
_DTYPES: Final = {
    **{"examples": np.int64, "at": np.int64, "days": np.int32},
    **{"ranks": np.int64, "user_vectors": np.float32, "added": np.float32},
}


@dataclass(frozen=True)
class Impressions:
    """Impressions of the training window for which the outcome of some head is known; other fields as in `Requests`."""

    examples: Int64[np.ndarray, "examples"]
    at: Int64[np.ndarray, "examples"]
    days: Int32[np.ndarray, "examples"]
    ranks: Int64[np.ndarray, "examples _"]
    """Rank in the list of the retriever and of each source, of unseen items, from 0; `top` for one that is not there.
    """
    user_vectors: Float32[np.ndarray, "examples dim"]
    added: Float32[np.ndarray, "examples"] | None
    """Addition to the retriever's score of the item; `None` means that it has none."""
    item_vectors: Float32[np.ndarray, "_ items dim"]
    new_item_vectors: Float32[np.ndarray, "_ items dim"]

    def __len__(self) -> int:
        """Returns the number of impressions."""
        return len(self.examples)


def mine_impressions(mining: Mining, requests: Requests, config: Mlp, *, out: Path) -> Impressions:
    """Queries the retriever for impressions of the days of the requests and maps the arrays written to `out`. There are
    at most as many as there may be requests. Raises DataError if no outcome of a head is known.
    """
    if not (out / _DONE).exists():
        _mine(mining, requests, config, out=out)
    dataset = mining.dataset
    examples, at, days, ranks, users, added = (map_array(out / f"impressions.{name}.npy") for name in _DTYPES)
    users = users.reshape(-1, requests.item_vectors.shape[2])
    ranks = ranks.reshape(-1, 1 + len(config.candidates.sources))
    items = requests.item_vectors, requests.new_item_vectors
    impressions = Impressions(examples, at, days, ranks, users, added if len(added) else None, *items)
    for number, num_known in enumerate((~np.isnan(outcomes_of(dataset, examples, config))).sum(axis=0)):
        if num_known == 0:
            raise DataError(
                f"ranker.heads.{number} has nothing to learn from: {config.heads[number].outcome} is unknown for all "
                f"{len(impressions):,} impressions of those days. Raise ranker.candidates.last_days, or delete "
                f"the head."
            )
    return impressions


def outcomes_of(
    dataset: Dataset, examples: Int64[np.ndarray, "examples"], config: Mlp
) -> Float32[np.ndarray, "examples _"]:
    """Returns the outcome of these training examples for every head; NaN where it is unknown."""
    outcomes = dataset.examples["train"].outcomes
    return np.stack([outcomes[head.outcome][examples] for head in config.heads], axis=1)


def _mine(mining: Mining, requests: Requests, config: Mlp, *, out: Path) -> None:
    dataset = mining.dataset
    examples = _draw(dataset, config)
    at = request_times(dataset, examples, config.candidates)
    days, first = np.unique(vector_days(dataset, requests.at), return_index=True)
    number_of_day = dict(zip(days.tolist(), requests.days[first].tolist(), strict=True))
    with ExitStack() as stack:
        append = {
            name: stack.enter_context(append_array(out / f"impressions.{name}.npy", dtype))
            for name, dtype in _DTYPES.items()
        }
        advance = stack.enter_context(progress_bar("mine", total=len(examples), unit="impressions"))
        for day, sources, of_day in mining.by_day(at):
            if day not in number_of_day:  # without requests it has no item vectors, and next to no impressions
                continue
            number = number_of_day[day]
            items = requests.item_vectors[number]
            for part in chunks(len(of_day), max(CHUNK_ELEMENTS // len(items), 1)):
                which = of_day[part]
                own = examples[which], at[which]
                users, added, ranks = _retrieve(mining, *own, items=items, sources=sources)
                columns = *own, np.full(len(which), number), ranks, users, added
                for name, values in zip(_DTYPES, columns, strict=True):
                    append[name](values.ravel())
                advance(len(which), "")
    write_json(out / _DONE, len(examples))


def _draw(dataset: Dataset, config: Mlp) -> Int64[np.ndarray, "examples"]:
    recent = np.flatnonzero(dataset.examples["train"].at > first_request_time(dataset, config.candidates))
    known = recent[~np.isnan(outcomes_of(dataset, recent, config)).all(axis=1)]
    drawn = np.random.default_rng((config.seed, 2)).permutation(known)[: config.candidates.max_requests]
    return np.sort(drawn)


def _retrieve(
    mining: Mining,
    examples: Int64[np.ndarray, "examples"],
    at: Int64[np.ndarray, "examples"],
    *,
    items: Float32[np.ndarray, "items dim"],
    sources: CandidateSources | None,
) -> tuple[Float32[np.ndarray, "examples dim"], Float32[np.ndarray, "examples _"], Int64[np.ndarray, "examples _"]]:
    """Returns the user vector of each example, the addition to the item's score, and its ranks; examples of one request
    must be adjacent.
    """
    dataset, top = mining.dataset, mining.config.num_candidates
    rows = dataset.examples["train"]
    user_rows, item_rows = rows.user_rows[examples], rows.item_rows[examples]
    is_new = np.append(True, (np.diff(user_rows) != 0) | (np.diff(at) != 0))
    request, request_users, times = np.cumsum(is_new) - 1, user_rows[is_new], at[is_new]
    queries, scores, added = score_items(mining, request_users, times, factors=items)
    scores[:, dataset.items.num_known :] = NOT_ALLOWED
    exclude(scores, Ragged(*dataset.events.slices(request_users, dataset.events.before(request_users, times))))
    own_scores = scores[request, item_rows]
    num_above = (scores[request] > own_scores[:, None]).sum(axis=1)
    ranks = np.where(own_scores == NOT_ALLOWED, top, np.minimum(num_above, top))[:, None]
    if sources is not None:
        found = candidates_from(dataset, scores, request_users, times, top=top, sources=sources)
        ranks = np.hstack([ranks, found.of(request).ranks(item_rows[:, None])[:, 0, 1:]])
    own = np.zeros((len(examples), 0), np.float32)
    if added is not None:
        own = added.pairs(request, item_rows, num_items=len(items))[:, None]
    return queries[request], own, ranks
