"""What a ranker is taught on: for requests of the training window, what the retriever found at that moment, and the
user's own impressions; nothing from later windows.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.histories import search_slices
from twofold.dataset.npy import append_array, map_array
from twofold.errors import DataError
from twofold.model.retriever import Model, as_products, item_vectors, masked_item_vectors, user_vectors
from twofold.progress import progress_bar
from twofold.ragged import Ragged, chunks
from twofold.recipe.features import AgeFeature, CounterFeature
from twofold.recipe.ranker import Candidates
from twofold.run_folder import write_json
from twofold.tables import DAY_MS, HOUR_MS
from twofold.topk import NOT_ALLOWED, exclude

MINED: Final = "requests"
"""The folder of what was mined: lies in that of the ranker while it learns, and goes then."""
CELLS: Final = 2**24
"""Scores in memory at a time: 64 MB of float32."""


@dataclass(frozen=True)
class Requests:
    """Positives of the training window that the retriever found at that moment, on items that were new to their users.

    Those it did not find are left out: no ranker is ever asked about them, and set against what was found they would
    teach that the retriever's best are the worst. The items' vectors are of moments: the days of the requests, where
    the item tower reads the time; else one.
    """

    lines: Int64[np.ndarray, "requests"]
    """Of the training rows."""
    at: Int64[np.ndarray, "requests"]
    """The moments asked for."""
    best: Int32[np.ndarray, "requests top"]
    """Item rows by falling score, without what the user met before or likes otherwise; -1 where fewer are left."""
    users: Float32[np.ndarray, "requests dim"]
    moments: Int32[np.ndarray, "requests"]
    items: Float32[np.ndarray, "moments items dim"]
    masked: Float32[np.ndarray, "moments items dim"] | None
    """The same of unknown ids; None where the item tower reads none."""
    liked: Ragged
    """Item rows of each user's positives of the window, by user row."""
    passed: Int64[np.ndarray, "negatives"]
    """The training rows that are not positive."""
    found_share: float
    """Of the positives on new items, those that the retriever found."""

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.lines)


@dataclass(frozen=True)
class CandidateLists:
    """The candidates of some requests, a line each, the positive first."""

    item_rows: Int64[np.ndarray, "requests length"]
    places: Int64[np.ndarray, "requests length"]
    """In the retriever's order, from 0; `top` where it did not find the item."""
    competing: Bool[np.ndarray, "requests length"]
    """False where a draw found nothing, or something that the user likes."""


# --- mined once -------------------------------------------------------------------------------------------------------


def mine_requests(model: Model, dataset: Dataset, asked: Candidates, *, seed: int, out: Path) -> Requests:
    """Asks the retriever at the moment of every request, exactly and in blocks; writes to `out`, maps what it wrote.

    Items outside the training window are found by nobody. DataError if no request is left.
    """
    if not (out / _ASKED).exists():
        _mine(model, dataset, asked, seed=seed, out=out)
    requests = _load(out, dataset, asked.num_candidates)
    if len(requests) == 0:
        raise DataError(
            f"of the positives of the training window, none on an item that was new to its user is among the "
            f"{asked.num_candidates} items that the retriever finds, so there is nothing to teach a ranker. Raise "
            f"ranker.candidates.num_candidates, check prepare.positive, or delete ranker."
        )
    return requests


_ASKED: Final = "asked.json"
"""How many positives on new items the retriever was asked for; written last."""
_DTYPES: Final = {"lines": np.int64, "at": np.int64, "best": np.int32, "users": np.float32, "moments": np.int32}


def _mine(model: Model, dataset: Dataset, asked: Candidates, *, seed: int, out: Path) -> None:
    rows = dataset.examples["train"]
    chosen, liked = np.flatnonzero(rows.label & (rows.at > first_taught(dataset, asked))), _liked(dataset)
    chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[: asked.max_requests])
    at = asked_at(dataset, chosen, asked)
    day, new = days_of(dataset, at), 0
    with ExitStack() as stack:
        append = {
            name: stack.enter_context(append_array(out / f"{name}.npy", dtype))
            for name, dtype in {**_DTYPES, "items": np.float32, "masked": np.float32}.items()
        }
        advance = stack.enter_context(progress_bar("mine", total=len(chosen), unit="requests"))
        for number, today in enumerate(np.unique(day).tolist()):
            own = np.flatnonzero(day == today)
            items, masked = (vectors(model, dataset, today * DAY_MS) for vectors in (item_vectors, masked_item_vectors))
            assert items is not None
            append["items"](as_products(model, items[:0], items)[1].ravel())
            append["masked"]((items[:0] if masked is None else as_products(model, items[:0], masked)[1]).ravel())
            for part in chunks(len(own), max(CELLS // len(items), 1)):
                asking = chosen[own[part]], at[own[part]]
                found = _ask(model, dataset, asking, items=items, liked=liked, top=asked.num_candidates)
                there = found.own < asked.num_candidates
                new += len(there)
                kept = found.which[there]
                parts = (asking[0][kept], asking[1][kept], found.best[there], found.users[there], kept * 0 + number)
                for name, values in zip(_DTYPES, parts, strict=True):
                    append[name](values.ravel())
                advance(part.stop - part.start, "")
    write_json(out / _ASKED, new)


def _load(folder: Path, dataset: Dataset, top: int) -> Requests:
    lines, at, best, users, moments, items, masked = (
        map_array(folder / f"{name}.npy") for name in (*_DTYPES, "items", "masked")
    )
    num_items, dim = len(dataset.items), len(users) // max(len(lines), 1) or 1
    return Requests(
        lines,
        at,
        best.reshape(-1, top),
        users.reshape(-1, dim),
        moments,
        items.reshape(-1, num_items, dim),
        masked.reshape(-1, num_items, dim) if len(masked) else None,
        _liked(dataset),
        np.flatnonzero(~dataset.examples["train"].label),
        len(lines) / max(json.loads((folder / _ASKED).read_text()), 1),
    )


def _liked(dataset: Dataset) -> Ragged:
    rows = dataset.examples["train"]
    lines = np.flatnonzero(rows.label)
    offsets = np.searchsorted(rows.user_rows[lines], np.arange(len(dataset.users) + 1))  # rows are sorted by user
    return Ragged(rows.item_rows[lines], offsets.astype(np.int64))


@dataclass(frozen=True)
class _Found:
    which: Int64[np.ndarray, "new"]
    own: Int64[np.ndarray, "new"]
    """Where the own item stands; see `places_in`."""
    best: Int32[np.ndarray, "new top"]
    users: Float32[np.ndarray, "new wide"]


def _ask(
    model: Model,
    dataset: Dataset,
    asking: tuple[Int64[np.ndarray, "lines"], Int64[np.ndarray, "lines"]],
    *,
    items: Float32[np.ndarray, "items dim"],
    liked: Ragged,
    top: int,
) -> _Found:
    """What the retriever finds for those of these rows, asked at these moments, that are on items new to their users.

    Of what the user likes in the window the own positive alone may be found: the others are no negatives.
    """
    lines, at = asking
    asked = dataset.examples["train"].take(lines)
    met = Ragged(*dataset.events.slices(asked.user_rows, dataset.events.before(asked.user_rows, at)))
    known = np.bincount(met.lines, weights=met.values == asked.item_rows[met.lines], minlength=len(lines)) > 0
    new = np.flatnonzero(~known)
    met, own = met.of(new), asked.item_rows[new]
    user_rows = np.ascontiguousarray(asked.user_rows[new])
    vectors = user_vectors(model, dataset, user_rows, at[new]) if len(new) else items[:0]
    queries, factors = as_products(model, vectors, items)
    scores = queries @ factors.T
    of_own = scores[np.arange(len(new)), own]
    scores[:, dataset.items.num_known :] = NOT_ALLOWED
    exclude(scores, met)
    exclude(scores, liked.of(user_rows))
    scores[np.arange(len(new)), own] = of_own
    best = torch.from_numpy(scores).topk(min(top, scores.shape[1]))
    found = best.indices.masked_fill(best.values.isneginf(), -1).numpy().astype(np.int32)
    best_rows = np.pad(found, ((0, 0), (0, top - found.shape[1])), constant_values=-1)
    return _Found(new, places_in(best_rows, own[:, None].astype(np.int64))[:, 0], best_rows, queries)


def first_taught(dataset: Dataset, asked: Candidates) -> int:
    """The moment that what is taught is after."""
    return 0 if asked.last_days is None else int(dataset.examples["train"].at.max()) - asked.last_days * DAY_MS


def asked_at(dataset: Dataset, lines: Int64[np.ndarray, "lines"], asked: Candidates) -> Int64[np.ndarray, "lines"]:
    """The moments that training rows ask at: their own; or the first training event of each row's user on the row's
    day, in the time zone of the recipe.
    """
    rows, shift = dataset.examples["train"], dataset.features.utc_offset_h * HOUR_MS
    if asked.request_time == "event":
        return np.ascontiguousarray(rows.at[lines])
    users = rows.user_rows[lines]
    first, end = (np.searchsorted(rows.user_rows, users, side=side) for side in ("left", "right"))
    midnight = (rows.at[lines] + shift) // DAY_MS * DAY_MS - shift
    return np.ascontiguousarray(rows.at[search_slices(rows.at, first, end, midnight)])


def days_of(dataset: Dataset, at: Int64[np.ndarray, "lines"]) -> Int64[np.ndarray, "lines"]:
    """The days that items' vectors are made for: those of the moments; one, where the item tower reads no time."""
    reads_time = any(isinstance(each, AgeFeature | CounterFeature) for each in dataset.features.features.item)
    return at // DAY_MS if reads_time else np.full(len(at), int(dataset.examples["train"].at.max()) // DAY_MS)


# --- drawn for every step ---------------------------------------------------------------------------------------------


def draw_lists(
    requests: Requests,
    dataset: Dataset,
    which: Int64[np.ndarray, "requests"],
    asked: Candidates,
    *,
    rng: np.random.Generator,
) -> CandidateLists:
    """The candidates of these requests: the positive, then retrieved, random and skipped ones, as many as are asked
    for.

    Each of a kind is as likely, with replacement; the skipped ones are the next. What the user likes in the window is
    drawn and does not compete.
    """
    rows = dataset.examples["train"]
    lines = requests.lines[which]
    own, users, best = rows.item_rows[lines], rows.user_rows[lines], requests.best[which]
    place = (
        rng.integers(asked.skip_top, asked.num_candidates, (len(which), asked.num_retrieved))
        if asked.num_retrieved
        else None
    )
    retrieved = best[:, :0] if place is None else np.take_along_axis(best, place, axis=1)
    random = rng.integers(0, dataset.items.num_known, (len(which), asked.random))
    next_ = np.searchsorted(requests.passed, lines)[:, None] + np.arange(asked.skipped)
    is_there = next_ < len(requests.passed)
    passed = requests.passed[np.minimum(next_, len(requests.passed) - 1)] if len(requests.passed) else next_
    is_own = is_there & (rows.user_rows[passed] == users[:, None])
    drawn = np.hstack([own[:, None], retrieved, random, np.where(is_own, rows.item_rows[passed], -1)]).astype(np.int64)
    liked, num_items = requests.liked.of(users), len(dataset.items)
    keys = np.arange(len(which))[:, None] * num_items + drawn
    competing = (drawn >= 0) & ~np.isin(keys, liked.lines * num_items + liked.values)
    competing[:, 0] = True
    item_rows = np.maximum(drawn, 0)
    return CandidateLists(item_rows, places_in(best, item_rows), competing)


def places_in(
    best: Int32[np.ndarray, "lines top"], item_rows: Int64[np.ndarray, "lines length"]
) -> Int64[np.ndarray, "lines length"]:
    """Where each item stands in its line of `best`, from 0; `top` where it does not.

    >>> places_in(np.array([[7, 8, -1]], np.int32), np.array([[8, 3]])).tolist()
    [[1, 3]]
    """
    found = item_rows[:, :, None] == best[:, None, :]  # (lines, length, top)
    places: np.ndarray = np.where(found.any(axis=2), found.argmax(axis=2), best.shape[1])
    return places
