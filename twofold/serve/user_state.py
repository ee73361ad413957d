"""One who asks, now → answers: the log's history and the live one as one, popularity where nothing is known, reasons.

What `recommender.py` does for tables, this does for a service: everything that an answer needs more than once is
computed when the bundle is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64, Integer

from twofold.dataset.features import Queries
from twofold.dataset.histories import Histories
from twofold.dataset.vocabulary import UNKNOWN, Ids
from twofold.errors import RunError
from twofold.index.item_mask import ItemMask
from twofold.index.live import LiveIndex, Snapshot
from twofold.ragged import Ragged
from twofold.run_folder import open_stage
from twofold.serve.bundle import Bundle, open_bundle
from twofold.serve.event_store import LiveEvent
from twofold.serve.item_updates import LiveItems
from twofold.serve.two_stage import RankedItems, answer, encode_users
from twofold.tables import DAY_MS
from twofold.topk import top_k

RECENT_MS: Final = 2 * DAY_MS  # popularity of two days beats that of all days by .04 of recall@100 (README, Results)
REASONS: Final = 3  # items of the history named for an answer
READ_FOR_REASONS: Final = 100  # of the newest positives


@dataclass(frozen=True)
class LiveBundle:
    """A bundle that answers, and what is computed of it once."""

    bundle: Bundle
    name: str
    digest: str
    popularity: Float32[np.ndarray, "items"]
    items: LiveItems
    """The bundle's items and what has become of them since. A row that it gives means the same item for good."""

    def rule(self, where: str | None) -> str | None:
        """What must hold of every answer: the bundle's own condition and a request's filter.

        RequestError for a filter that is none by itself: TRUE) OR (TRUE would undo the condition it is put beside.
        """
        if self.bundle.where is None or where is None:
            return where if self.bundle.where is None else self.bundle.where
        both = f"({self.bundle.where}) AND ({where})"
        if both not in self.bundle.filters:
            self.bundle.filters.eligible(where)
        return both


@dataclass(frozen=True)
class UserState:
    """Someone at a moment, knowing what they met before it: item rows, oldest first. User row -1 is nobody of the log.

    `met` holds everything, the positives and negatives among it. A posted history, whose moments nobody knows, counts
    as met at the moment itself.
    """

    user_row: int
    at: int
    positives: Integer[np.ndarray, "positives"]
    negatives: Integer[np.ndarray, "negatives"]
    met: Integer[np.ndarray, "met"]
    positives_at: Int64[np.ndarray, "positives"]
    negatives_at: Int64[np.ndarray, "negatives"]

    @property
    def is_blank(self) -> bool:
        """Whether nothing at all is known: not in the log, and nothing met."""
        return self.user_row == UNKNOWN and len(self.met) == 0


def open_live_bundle(run: Path) -> LiveBundle:
    """Opens the bundle of a run folder and asks it once; RunError if it is damaged or answers nonsense."""
    bundle, digest = open_bundle(run), open_stage(run, "index").digest
    live = LiveIndex(bundle.index, bundle.items, bundle.attributes, filters=bundle.filters)
    opened = LiveBundle(
        bundle=bundle,
        name=run.resolve().name,
        digest=digest,
        popularity=_popularity(bundle),
        items=LiveItems(live, bundle=digest, has_ranker=bundle.ranker is not None),
    )
    _ask_once(opened, run)
    return opened


def _ask_once(opened: LiveBundle, run: Path) -> None:
    """The canary: the first user and nobody, each asked for five items. Loading alone does not run the graph."""
    bundle = opened.bundle
    askers = [user_state_of(bundle, user_row, ()) for user_row in ([0, UNKNOWN] if len(bundle.users) else [UNKNOWN])]
    try:
        found = nearest(opened, askers, min(5, max(len(bundle.items), 1)))
    except Exception as error:  # onnxruntime raises classes of its own, which share no other ancestor
        raise RunError(f"the bundle of {run} opens, but does not answer: {error}") from error
    if len(bundle.items) and not (found.counts[-1] > 0 and np.isfinite(found.scores[-1][: found.counts[-1]]).all()):
        raise RunError(f"the bundle of {run} opens, but answers {found.scores[-1].tolist()} to a first question")


def _popularity(bundle: Bundle) -> Float32[np.ndarray, "items"]:
    """Positives of the last two days; among equals, those of all days."""
    rows, items = bundle.positives.item_rows, len(bundle.items)
    always: np.ndarray = np.bincount(rows, minlength=items)
    lately: np.ndarray = np.bincount(rows[bundle.positives.at >= bundle.as_of - RECENT_MS], minlength=items)
    return np.asarray(lately + always / (1.0 + always.max(initial=0)), np.float32)


# --- who asks ---------------------------------------------------------------------------------------------------------


def user_state_of(
    bundle: Bundle,
    user_row: int,
    live: Sequence[LiveEvent],
    *,
    at: int | None = None,
    now: int = 0,
    items: Snapshot | None = None,
) -> UserState:
    """A user by their events strictly before `at`, of the log and of the live history; an event in both counts once.

    Without `at` all of them count, and the moment is `now`, or just after the last event if that is later. `items` are
    the bundle's as they are now: the tower reads nothing of those that are new, but they have been met.
    """
    if at is None:
        newest = live[-1].at + 1 if live else 0
        at = max(now, newest, bundle.as_of)
    rows = (items or bundle.items).rows_of([met.item_id for met in live]) if live else np.empty(0, np.int64)
    known = [(row, met) for row, met in zip(rows.tolist(), live, strict=True) if row != UNKNOWN and met.at < at]
    read = [(row, met) for row, met in known if row < len(bundle.items)]
    (positives, positives_at), (negatives, negatives_at) = (
        _joined(history, user_row, at, [(row, met.at) for row, met in read if met.kind == kind])
        for history, kind in ((bundle.positives, "positive"), (bundle.negatives, "negative"))
    )
    met, _ = _joined(bundle.events, user_row, at, [(row, met.at) for row, met in known])
    return UserState(user_row, at, positives, negatives, met, positives_at, negatives_at)


def user_state_with(
    bundle: Bundle, positives: Ids, negatives: Ids, *, at: int, items: Snapshot | None = None
) -> tuple[UserState, int]:
    """Nobody of the log, with a history of their own (oldest first); and how many of its ids no item has."""
    liked, disliked = ((items or bundle.items).rows_of(ids) for ids in (positives, negatives))
    known, unliked = liked[liked != UNKNOWN], disliked[disliked != UNKNOWN]
    met, held = np.concatenate([known, unliked]), len(bundle.items)
    positives, negatives = known[known < held], unliked[unliked < held]
    positives_at, negatives_at = np.full(len(positives), at), np.full(len(negatives), at)
    asker = UserState(UNKNOWN, at, positives, negatives, met, positives_at, negatives_at)
    return asker, len(liked) + len(disliked) - len(met)


def _joined(
    history: Histories, user_row: int, at: int, live: list[tuple[int, int]]
) -> tuple[Integer[np.ndarray, "history"], Int64[np.ndarray, "history"]]:
    """Item rows of a user's log and of live (item row, moment) pairs, by moment, and the moments; in the log, ties are
    by item row.
    """
    first, end = (0, 0) if user_row == UNKNOWN else history.offsets[user_row : user_row + 2].tolist()
    end = first + int(np.searchsorted(history.at[first:end], at))
    if not live:
        return history.item_rows[first:end], history.at[first:end]
    overlap = first + int(np.searchsorted(history.at[first:end], min(moment for _, moment in live)))
    late = zip(history.item_rows[overlap:end].tolist(), history.at[overlap:end].tolist(), strict=True)
    tail = np.array(sorted({*late, *live}, key=_by_moment), np.int64)
    return (
        np.concatenate([history.item_rows[first:overlap], tail[:, 0].astype(np.int32)]),
        np.concatenate([history.at[first:overlap], tail[:, 1]]),
    )


def _by_moment(pair: tuple[int, int]) -> tuple[int, int]:
    row, moment = pair
    return moment, row


# --- answers ----------------------------------------------------------------------------------------------------------


def nearest(
    opened: LiveBundle,
    askers: Sequence[UserState],
    k: int,
    *,
    allowed: ItemMask | None = None,
    excluded: Ragged | None = None,
) -> RankedItems:
    """The k best items of each asker by the model."""
    bundle = opened.bundle
    return answer(bundle, encode_users(bundle, queries_of(bundle, askers)), k, allowed=allowed, excluded=excluded)


def queries_of(bundle: Bundle, askers: Sequence[UserState]) -> Queries:
    """What they ask with."""
    state = bundle.features
    n, m = state.history_length("positives"), state.history_length("negatives")
    liked_at = [asker.positives_at for asker in askers] if state.reads_times("positives") else None
    disliked_at = [asker.negatives_at for asker in askers] if state.reads_times("negatives") else None
    return Queries(
        user_rows=np.array([asker.user_row for asker in askers]),
        at=np.array([asker.at for asker in askers]),
        positives=_newest([asker.positives + 1 for asker in askers], n, np.int32),
        negatives=_newest([asker.negatives + 1 for asker in askers], m, np.int32),
        positives_at=None if liked_at is None else _newest(liked_at, n, np.int64),
        negatives_at=None if disliked_at is None else _newest(disliked_at, m, np.int64),
    )


def _newest(
    histories: list[Integer[np.ndarray, "_"]], n: int, dtype: type[np.integer]
) -> Integer[np.ndarray, "batch n"]:
    """The newest n of each, padded on the left with 0."""
    lines = np.zeros((len(histories), n), dtype)
    for line, history in zip(lines, histories, strict=True):
        newest = history[max(len(history) - n, 0) :]
        line[n - len(newest) :] = newest
    return lines


def popular(
    opened: LiveBundle,
    k: int,
    *,
    allowed: ItemMask | None = None,
    excluded: Integer[np.ndarray, "excluded"],
) -> RankedItems:
    """The k items liked most in the log's last two days, for someone of whom nothing is known; the score is a count.

    Items that are new are not among them.
    """
    mask = np.ones((1, len(opened.popularity)), bool) if allowed is None else allowed.mask[None].copy()
    mask[0, excluded[excluded < len(opened.popularity)]] = False
    best = top_k(opened.popularity[None], k, allowed=mask)
    return RankedItems(best.item_rows, best.scores, best.counts)


def similar(opened: LiveBundle, item_row: int, k: int, *, where: str | None = None) -> RankedItems:
    """The k items whose vectors score best with an item's own, in the index's score, that item left out."""
    now = opened.items.now
    itself = Ragged(np.array([item_row]), np.array([0, 1]))
    found = now.search(now.vectors_of(np.array([item_row])), k, where=where, excluded=itself)
    return RankedItems(found.item_rows, found.scores, found.counts)


def reasons(opened: LiveBundle, asker: UserState, item_rows: Int64[np.ndarray, "k"]) -> list[list[tuple[int, float]]]:
    """For each item, the liked items most like it: (item row, cosine of the vectors), the most alike first.

    A likeness of vectors and no cause: what the tower made of the history is one vector.
    """
    liked = np.unique(asker.positives[-READ_FOR_REASONS:])
    if len(liked) == 0:
        return [[] for _ in item_rows]
    vectors_of = opened.items.now.vectors_of
    alike = _unit(vectors_of(item_rows)) @ _unit(vectors_of(liked)).T  # (k, liked)
    order = np.argsort(-alike, axis=1, kind="stable")[:, :REASONS]
    return [
        [(int(liked[place]), float(cosines[place])) for place in places]
        for cosines, places in zip(alike, order, strict=True)
    ]


def _unit(vectors: Float32[np.ndarray, "lines dim"]) -> Float32[np.ndarray, "lines dim"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))


def attributes_of(opened: LiveBundle, item_row: int) -> dict[str, Any]:
    """What the items table says of an item."""
    line = opened.items.now.attributes_of(item_row)
    return {name: value for name, value in line.items() if name != "item_id"}
