"""Training examples of the ranker: requests of the training window, each with what the retriever found at that time.

Nothing from later windows is read. `ranker_impressions.py` has the examples of the heads.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Int16, Int32, Int64

from twofold.candidate_sources import (
    CandidateSources,
    MergedCandidates,
    SourceQueries,
    merge_sources,
    ranks_in,
    source_lists,
)
from twofold.dataset.dataset import Dataset
from twofold.dataset.histories import search_slices
from twofold.dataset.npy import append_array, map_array
from twofold.errors import DataError
from twofold.local_time import midnights_before
from twofold.model.retriever import Model, additions_of, as_products, item_vectors, user_vectors
from twofold.progress import progress_bar
from twofold.ragged import Ragged, chunks
from twofold.recipe.features import reads_time
from twofold.recipe.ranker import Candidates
from twofold.run_folder import write_json
from twofold.tables import DAY_MS
from twofold.topk import NOT_ALLOWED, Additions, exclude

MINED: Final = "requests"
"""Folder of the mined arrays, beside the checkpoint; deleted when the training ends."""
CHUNK_ELEMENTS: Final = 2**24
"""Scores in memory at a time: 64 MB of float32."""


@dataclass(frozen=True)
class Requests:
    """Positives of the training window on items new to their users that were among the candidates at that time.

    Those that were not found are left out: the ranker never sees such items, and as positives they would teach that
    the retriever's best items are the worst. Item vectors are computed once per day of the requests if the item tower
    reads the time, otherwise once.
    """

    examples: Int64[np.ndarray, "queries"]
    """Indices of the training examples."""
    at: Int64[np.ndarray, "queries"]
    """Request times."""
    best: Int32[np.ndarray, "queries k"]
    """Item rows of the candidates in the order of `MergedCandidates`, without items seen before and the user's other
    positives; -1 where fewer are left.
    """
    ranks: Int16[np.ndarray, "queries k _"]
    """Rank of each candidate in the list of the retriever and of each source, from 0."""
    user_vectors: Float32[np.ndarray, "queries dim"]
    added: Float32[np.ndarray, "queries _"]
    """Additions to the retriever's score of each candidate; no columns if it has none."""
    days: Int32[np.ndarray, "queries"]
    """Index of each request's day in `item_vectors`."""
    item_vectors: Float32[np.ndarray, "_ items dim"]
    new_item_vectors: Float32[np.ndarray, "_ items dim"]
    """Item vectors as if every item were new."""
    liked: Ragged
    """Item rows of each user's positives of the window, by user row."""
    found_share: float
    """Share of the positives on new items that are among the candidates."""

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self.examples)

    @property
    def has_additions(self) -> bool:
        """True if the retriever adds something to the scores of some items."""
        return self.added.shape[1] > 0


SourcesBefore = Callable[[int], CandidateSources]
"""The sources of candidates beside the retriever, which know nothing of what is at or after a time in UTC ms."""


def mine_requests(
    model: Model,
    dataset: Dataset,
    config: Candidates,
    *,
    seed: int,
    out: Path,
    sources_before: SourcesBefore | None = None,
) -> Requests:
    """Finds the candidates at the time of every request, exactly and in chunks, and maps the arrays written to `out`.

    Sources are as of the beginning of the request's day in UTC; `None` means that there is none but the retriever.
    Items outside the training window are never found. Raises DataError if no request is left.
    """
    if not (out / _DONE).exists():
        _mine(Mining(model, dataset, config, sources_before), seed=seed, out=out)
    requests = _load(out, dataset, config)
    if len(requests) == 0:
        raise DataError(
            f"the ranker has nothing to learn from: of the positives of the training window, none on an item that was "
            f"new to its user is among the {config.num_candidates} candidates. Raise "
            f"ranker.candidates.num_candidates, check prepare.positive, or delete ranker."
        )
    return requests


_DONE: Final = "new_positives.json"
"""Number of positives on new items, found or not; written last."""
_DTYPES: Final = {
    "examples": np.int64,
    "at": np.int64,
    "best": np.int32,
    "ranks": np.int16,  # at most 10,000 candidates
    "user_vectors": np.float32,
    "added": np.float32,
    "days": np.int32,
}
_OF_DAYS: Final = ("item_vectors", "new_item_vectors")


@dataclass(frozen=True)
class Mining:
    """Models and data that find the candidates of training requests."""

    model: Model
    dataset: Dataset
    config: Candidates
    sources_before: SourcesBefore | None = None

    def by_day(
        self, at: Int64[np.ndarray, "examples"]
    ) -> Iterator[tuple[int, CandidateSources | None, Int64[np.ndarray, "_"]]]:
        """Yields the day of the item vectors, the sources, and the indices of the requests of one day after another."""
        vector_day = vector_days(self.dataset, at)
        for day in np.unique(vector_day).tolist():
            of_day = np.flatnonzero(vector_day == day)
            if self.sources_before is None:
                yield day, None, of_day
                continue
            source_day = at[of_day] // DAY_MS
            for each in np.unique(source_day).tolist():
                yield day, self.sources_before(each * DAY_MS), of_day[source_day == each]


def _mine(mining: Mining, *, seed: int, out: Path) -> None:
    model, dataset, config = mining.model, mining.dataset, mining.config
    rows = dataset.examples["train"]
    chosen, liked = np.flatnonzero(rows.label & (rows.at > first_request_time(dataset, config))), _liked(dataset)
    chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[: config.max_requests])
    at = request_times(dataset, chosen, config)
    num_new, number, last_day, items = 0, -1, None, np.empty((0, 0), np.float32)
    with ExitStack() as stack:
        append = {
            name: stack.enter_context(append_array(out / f"{name}.npy", dtype))
            for name, dtype in {**_DTYPES, **dict.fromkeys(_OF_DAYS, np.float32)}.items()
        }
        advance = stack.enter_context(progress_bar("mine", total=len(chosen), unit="requests"))
        for day, sources, of_day in mining.by_day(at):
            if day != last_day:
                number, last_day = number + 1, day
                items, new = (item_vectors(model, dataset, day * DAY_MS, as_new=as_new) for as_new in (False, True))
                append["item_vectors"](as_products(model, items[:0], items)[1].ravel())
                append["new_item_vectors"](as_products(model, items[:0], new)[1].ravel())
            for part in chunks(len(of_day), max(CHUNK_ELEMENTS // len(items), 1)):
                examples, times = chosen[of_day[part]], at[of_day[part]]
                found = _retrieve(mining, (examples, times), sources, items=items, liked=liked)
                is_found = found.own_rank < config.num_candidates
                num_new += len(is_found)
                kept = found.which[is_found]
                columns = (
                    *(examples[kept], times[kept], found.best[is_found]),
                    *(found.ranks[is_found], found.user_vectors[is_found], found.added[is_found]),
                )
                for name, values in zip(_DTYPES, (*columns, kept * 0 + number), strict=True):
                    append[name](values.ravel())
                advance(part.stop - part.start, "")
    write_json(out / _DONE, num_new)


def _load(folder: Path, dataset: Dataset, config: Candidates) -> Requests:
    top, num_sources = config.num_candidates, len(config.sources)
    examples, at, best, ranks, users, added, days, items, new_items = (
        map_array(folder / f"{name}.npy") for name in (*_DTYPES, *_OF_DAYS)
    )
    num_items, dim = len(dataset.items), len(users) // max(len(examples), 1) or 1
    return Requests(
        examples,
        at,
        best.reshape(-1, top),
        ranks.reshape(-1, top, 1 + num_sources),
        users.reshape(-1, dim),
        added.reshape(len(examples), len(added) // max(len(examples), 1)),
        days,
        items.reshape(-1, num_items, dim),
        new_items.reshape(-1, num_items, dim),
        _liked(dataset),
        len(examples) / max(json.loads((folder / _DONE).read_text(encoding="utf-8")), 1),
    )


def _liked(dataset: Dataset) -> Ragged:
    rows = dataset.examples["train"]
    positives = np.flatnonzero(rows.label)
    offsets = np.searchsorted(rows.user_rows[positives], np.arange(len(dataset.users) + 1))  # rows are sorted by user
    return Ragged(rows.item_rows[positives], offsets.astype(np.int64))


@dataclass(frozen=True)
class _Retrieved:
    """The candidates of the requests on new items."""

    which: Int64[np.ndarray, "queries"]
    own_rank: Int64[np.ndarray, "queries"]
    """Position of the positive; see `ranks_in`."""
    best: Int32[np.ndarray, "queries k"]
    ranks: Int16[np.ndarray, "queries k _"]
    user_vectors: Float32[np.ndarray, "queries dim"]
    added: Float32[np.ndarray, "queries _"]


def _retrieve(
    mining: Mining,
    requests: tuple[Int64[np.ndarray, "examples"], Int64[np.ndarray, "examples"]],
    sources: CandidateSources | None,
    *,
    items: Float32[np.ndarray, "items dim"],
    liked: Ragged,
) -> _Retrieved:
    """Finds the candidates for these examples at these times, where the example's item is new to its user.

    Of the user's positives of the window only the example's own can be found: the others are no negatives.
    """
    (examples, at), dataset, top = requests, mining.dataset, mining.config.num_candidates
    rows = dataset.examples["train"].take(examples)
    seen = Ragged(*dataset.events.slices(rows.user_rows, dataset.events.before(rows.user_rows, at)))
    is_seen = np.bincount(seen.lines, weights=seen.values == rows.item_rows[seen.lines], minlength=len(examples)) > 0
    new = np.flatnonzero(~is_seen)
    seen, own = seen.of(new), rows.item_rows[new]
    user_rows = np.ascontiguousarray(rows.user_rows[new])
    _, factors = as_products(mining.model, items[:0], items)
    queries, scores, added = score_items(mining, user_rows, at[new], factors=factors)
    own_scores = scores[np.arange(len(new)), own]
    scores[:, dataset.items.num_known :] = NOT_ALLOWED
    exclude(scores, seen)
    exclude(scores, liked.of(user_rows))
    scores[np.arange(len(new)), own] = own_scores
    candidates = candidates_from(dataset, scores, user_rows, at[new], top=top, sources=sources)
    best = np.pad(candidates.item_rows, ((0, 0), (0, top - candidates.item_rows.shape[1])), constant_values=-1)
    own_rank, ranks = ranks_in(best, own[:, None])[:, 0], candidates.ranks(best)
    of_best = np.zeros((len(new), 0 if added is None else top), np.float32)
    if added is not None:
        of_best[:] = added.lists(np.maximum(best, 0), num_items=len(items))
    return _Retrieved(new, own_rank, best.astype(np.int32), ranks.astype(np.int16), queries, of_best)


def score_items(
    mining: Mining,
    user_rows: Int64[np.ndarray, "queries"],
    at: Int64[np.ndarray, "queries"],
    *,
    factors: Float32[np.ndarray, "items _"],
) -> tuple[Float32[np.ndarray, "queries _"], Float32[np.ndarray, "queries items"], Additions | None]:
    """Returns the vectors of users at these times, and the retriever's scores with the additions in them.

    The inner products of the vectors and `factors`, the items at these times, are the scores without additions.
    """
    model, dataset = mining.model, mining.dataset
    if len(user_rows) == 0:
        return factors[:0], np.empty((0, len(factors)), np.float32), None
    vectors = user_vectors(model, dataset, user_rows, at)
    queries, _ = as_products(model, vectors, vectors[:0])
    scores, added = queries @ factors.T, additions_of(model, dataset, user_rows, at)
    if added is not None:
        scores[added.rows.lines, added.rows.values] += added.values
    return queries, scores, added


def candidates_from(
    dataset: Dataset,
    scores: Float32[np.ndarray, "queries items"],
    user_rows: Int64[np.ndarray, "queries"],
    at: Int64[np.ndarray, "queries"],
    *,
    top: int,
    sources: CandidateSources | None,
) -> MergedCandidates:
    """Returns the candidates of users at these times from the retriever's scores, where -inf means not allowed."""

    def best_of(scores: Float32[np.ndarray, "queries items"]) -> Int64[np.ndarray, "queries _"]:
        best = torch.from_numpy(scores).topk(min(top, scores.shape[1]))
        return best.indices.masked_fill(best.values.isneginf(), -1).numpy()

    if sources is None:
        return merge_sources(best_of(scores), (), (), top=top)
    line, item = np.nonzero(scores == NOT_ALLOWED)
    excluded = Ragged(item, np.searchsorted(line, np.arange(len(scores) + 1)))
    length = dataset.features.history_length("positives")
    likes = dataset.positives.last_before(user_rows, at, n=length)
    lists = source_lists(
        sources,
        SourceQueries(likes, excluded),
        lambda condition: best_of(np.where(sources.flags[condition], scores, NOT_ALLOWED)),
    )
    return merge_sources(best_of(scores), lists, sources.quotas, top=top)


def first_request_time(dataset: Dataset, config: Candidates) -> int:
    """Returns the timestamp after which training examples are used."""
    return 0 if config.last_days is None else int(dataset.examples["train"].at.max()) - config.last_days * DAY_MS


def request_times(
    dataset: Dataset, examples: Int64[np.ndarray, "examples"], config: Candidates
) -> Int64[np.ndarray, "examples"]:
    """Returns the request time of each example: its own timestamp, or that of the user's first training event on the
    same day, in the time zone of the recipe.
    """
    rows = dataset.examples["train"]
    if config.request_time == "event":
        return np.ascontiguousarray(rows.at[examples])
    users = rows.user_rows[examples]
    first, end = (np.searchsorted(rows.user_rows, users, side=side) for side in ("left", "right"))
    midnights = midnights_before(rows.at[examples], dataset.features.time_zone)
    return np.ascontiguousarray(rows.at[search_slices(rows.at, first, end, midnights)])


def vector_days(dataset: Dataset, at: Int64[np.ndarray, "examples"]) -> Int64[np.ndarray, "examples"]:
    """Returns the UTC day whose item vectors each request uses: its own, or one for all if no item feature is timed."""
    is_timed = any(map(reads_time, dataset.features.features.item))
    return at // DAY_MS if is_timed else np.full(len(at), int(dataset.examples["train"].at.max()) // DAY_MS)
