"""A bundle in service, with its popularity counts and live items; tried with one request when it is opened."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, Integer

from twofold.dataset.vocabulary import UNKNOWN
from twofold.digest import digest_of
from twofold.errors import RequestError, RunError
from twofold.index.item_mask import ItemMask
from twofold.index.live import LiveIndex, Snapshot
from twofold.index.qdrant_search import QdrantError, QdrantIndex, collection_name, connect
from twofold.index.rule_columns import rule_columns
from twofold.ragged import Ragged
from twofold.reranking import RuleItems
from twofold.run_folder import open_stage
from twofold.serve.bundle import Bundle, BundleRules, content_digest, file_facts, open_bundle
from twofold.serve.item_attributes import EncodedAttributes
from twofold.serve.item_updates import LiveItems
from twofold.serve.schemas import StoredEvent
from twofold.serve.shared_state import SharedFolder
from twofold.serve.tracing import trace_headers
from twofold.serve.two_stage import RankedItems, encode_users, retrieve_and_rank
from twofold.serve.user_state import UserState, meetings_of, queries_of, user_state_of
from twofold.tables import DAY_MS

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

RECENT_MS: Final = 2 * DAY_MS  # popularity of two days beats that of all days by .04 of recall@100 (README, Results)


class LiveRules:
    """The rules of a bundle with the items as they are now; safe to share between threads."""

    def __init__(self, rules: BundleRules | None) -> None:
        """Starts with the items of the bundle."""
        self._rules = rules
        self._last: tuple[pa.Table | None, BundleRules | None] = (None, rules)

    def of(self, items: Snapshot) -> BundleRules | None:
        """Returns the rules for a state of the items; their columns are read again when items were upserted."""
        if self._rules is None or len(items.changed_rows) == 0:
            return self._rules
        changed, rules = self._last
        if changed is not items.changed.attributes:
            config = self._rules.config
            rules = BundleRules(config, RuleItems(rule_columns(config.rules, items.attributes), items.vectors_of))
            self._last = (items.changed.attributes, rules)
        return rules


@dataclass(frozen=True)
class LiveBundle:
    """A bundle with everything that is computed from it once, when it is opened."""

    bundle: Bundle
    folder: Path
    """The run folder; a link has been followed."""
    digest: str
    """Digest of the content of the bundle's files."""
    file_facts: Mapping[str, tuple[int, int, int]]
    num_events: Int64[np.ndarray, "items"]
    """Events of each item in the log; `num_positives` are the positives among them."""
    num_positives: Int64[np.ndarray, "items"]
    popularity: Float32[np.ndarray, "items"]
    items: LiveItems
    """The bundle's items with the updates since it was opened. An item row stays with its item forever."""
    rules: LiveRules
    qdrant: str | None = None
    """Address of the Qdrant that searches in place of the bundle's index; `None` means that there is none."""
    attributes: EncodedAttributes = field(default_factory=EncodedAttributes)

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.name

    @cached_property
    def integer_ids(self) -> Int64[np.ndarray, "items"] | None:
        """Ids of the bundle's items where they are integers; `None` means that they are texts."""
        ids = self.bundle.items.ids
        return np.asarray(ids.to_numpy()) if pa.types.is_int64(ids.type) else None

    def is_overwritten(self) -> bool:
        """Returns whether a file was written to in place: it is mapped into memory, so that requests read the new
        content, or end the process if the file is shorter now. A file that was replaced is another file.
        """
        try:
            now = file_facts(self.folder)
        except FileNotFoundError:  # moved or deleted just now, so that nobody writes into it
            return False
        before = self.file_facts
        return any(name in now and now[name][0] == facts[0] and now[name] != facts for name, facts in before.items())

    def rule(self, where: str | None) -> str | None:
        """Returns the SQL condition for every recommended item: the bundle's own and the request's filter joined.

        RequestError if the filter is not a condition of its own: `TRUE) OR (TRUE` would undo the bundle's condition.
        """
        if self.bundle.where is None or where is None:
            return where if self.bundle.where is None else self.bundle.where
        both = f"({self.bundle.where}) AND ({where})"
        if both not in self.bundle.filters:
            self.bundle.filters.eligible(where)
        return both


def open_live_bundle(run: Path, qdrant: str | None = None, shared: SharedFolder | None = None) -> LiveBundle:
    """Opens the bundle of a run folder and makes a trial request; RunError if it is damaged or does not work, or if it
    is moved or deleted meanwhile.

    Of the workers that share a folder, one compares the checksums of the files.

    A link is followed once, so that all files are of one run even if it is changed meanwhile. `qdrant` is the address
    of a Qdrant that has a copy of the items and searches in place of the bundle's index.
    """
    try:
        return _open_live_bundle(run, qdrant, shared)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:  # a full disk is not of the bundle
        raise RunError(
            f"the bundle of {run} cannot be read: {error.strerror} ({Path(error.filename or run).name}). If it was "
            f"moved or deleted meanwhile, put it back and open it again."
        ) from error


def _open_live_bundle(run: Path, qdrant: str | None, shared: SharedFolder | None) -> LiveBundle:
    folder = run.resolve()
    facts, digest = file_facts(folder), content_digest(folder)
    with nullcontext(True) if shared is None else shared.verifying(digest_of(facts)) as is_needed:
        if is_needed:
            open_stage(folder, "index", verify=True)
    bundle = open_bundle(folder, verify=False)
    if content_digest(folder) != digest:
        raise RunError(f"the bundle of {run} was replaced while it was opened. Open it again.")
    positives = _counts(bundle.positives.item_rows, len(bundle.items))
    remote = None if qdrant is None else _open_remote(qdrant, bundle, digest)
    live_index = LiveIndex(bundle.index, bundle.items, bundle.attributes, filters=bundle.filters, remote=remote)
    live_bundle = LiveBundle(
        bundle=bundle,
        folder=folder,
        digest=digest,
        file_facts=facts,
        num_events=_counts(bundle.events.item_rows, len(bundle.items)),
        num_positives=positives,
        popularity=_popularity(bundle, positives),
        items=LiveItems(live_index, bundle=digest, as_of=bundle.as_of, has_ranker=bundle.ranker is not None),
        rules=LiveRules(bundle.rules),
        qdrant=qdrant,
    )
    _make_trial_request(live_bundle, run)
    return live_bundle


@lru_cache(8)
def open_client(url: str) -> "QdrantClient":
    """Opens Qdrant once for all bundles of this process."""
    return connect(url, headers=trace_headers)


def _open_remote(url: str, bundle: Bundle, digest: str) -> QdrantIndex:
    """Opens the copy of a bundle's items; RunError if Qdrant has none or cannot evaluate a condition of the bundle."""
    remote = QdrantIndex(open_client(url), collection_name(digest), bundle.index, bundle.attributes.schema)
    try:
        remote.check()
        for condition in bundle.conditions:
            remote.check_condition(condition)
    except QdrantError as error:
        raise RunError(f"{error}. It should be at {url}: start it there, or serve without --qdrant.") from error
    except RequestError as error:
        raise RunError(f"This bundle cannot be served from Qdrant. {error}") from error
    return remote


def _make_trial_request(live_bundle: LiveBundle, run: Path) -> None:
    """Requests five items for the first user and for an unknown one: loading an ONNX graph does not run it."""
    bundle = live_bundle.bundle
    states = [user_state_of(bundle, user_row, ()) for user_row in ([0, UNKNOWN] if len(bundle.users) else [UNKNOWN])]
    try:
        ranked = nearest(live_bundle, states, min(5, max(len(bundle.items), 1)))
    except Exception as error:  # onnxruntime raises classes of its own, which share no other ancestor
        raise RunError(f"the bundle of {run} can be opened, but a trial request fails: {error}") from error
    if len(bundle.items) and not (ranked.counts[-1] > 0 and np.isfinite(ranked.scores[-1][: ranked.counts[-1]]).all()):
        scores = ranked.scores[-1].tolist()
        raise RunError(f"the bundle of {run} can be opened, but a trial request returns the scores {scores}")


def _counts(item_rows: Integer[np.ndarray, "events"], items: int) -> Int64[np.ndarray, "items"]:
    return np.bincount(item_rows, minlength=items)


def _popularity(bundle: Bundle, overall: Int64[np.ndarray, "items"]) -> Float32[np.ndarray, "items"]:
    """Counts each item's positives of the last two days; ties are broken by the positives of all days."""
    rows = bundle.positives.item_rows[bundle.positives.at >= bundle.as_of - RECENT_MS]
    recent = _counts(rows, len(bundle.items))
    return np.asarray(recent + overall / (1.0 + overall.max(initial=0)), np.float32)


def nearest(
    live_bundle: LiveBundle,
    states: Sequence[UserState],
    k: int,
    *,
    allowed: ItemMask | None = None,
    excluded: Ragged | None = None,
) -> RankedItems:
    """Returns the k best items of each user by the model."""
    bundle = live_bundle.bundle
    users = replace(encode_users(bundle, queries_of(bundle, states)), met=meetings_of(bundle, states))
    return retrieve_and_rank(bundle, users, k, allowed=allowed, excluded=excluded)


def logged_events(live_bundle: LiveBundle, user_id: str) -> list[StoredEvent]:
    """Returns the events of a user in the log of the bundle, oldest first."""
    bundle = live_bundle.bundle
    user_row = bundle.users.row_of(user_id)
    if user_row == UNKNOWN:
        return []

    def events(name: str) -> list[tuple[int, int]]:
        history = getattr(bundle, name)
        first, end = history.offsets[user_row : user_row + 2].tolist()
        return [*zip(history.item_rows[first:end].tolist(), history.at[first:end].tolist(), strict=True)]

    kinds = dict.fromkeys(events("negatives"), "negative") | dict.fromkeys(events("positives"), "positive")
    seen = events("events")
    ids = bundle.items.ids_of(np.array([row for row, _ in seen], np.int64)).to_pylist()
    return [
        StoredEvent(item_id, event[1], kinds.get(event, "met"))  # type: ignore[arg-type]
        for item_id, event in zip(ids, seen, strict=True)
    ]
