"""Expected lists of the service in `faults.py`, computed in double precision from the files of a bundle."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serve_bundle import AS_OF, HISTORY

from twofold.dataset.histories import Histories, load_histories
from twofold.run_folder import open_stage
from twofold.serve.bundle import content_digest
from twofold.serve.event_store import LiveEvent

ITEMS, USERS, UNKNOWN_USERS, K = 2_000, 80, 40, 20
TWO_DAYS_MS = 2 * 24 * 3_600_000
NEAR = 1e-4  # float32 against float64


@dataclass
class Live:
    """A user of the log, or an unknown one, with the events that were posted and acknowledged, oldest first.

    `unsure` are the events of the last post until it is acknowledged: they may have been stored.
    """

    user_id: int
    acknowledged: list[LiveEvent] = field(default_factory=list)
    unsure: list[LiveEvent] = field(default_factory=list)


@dataclass(frozen=True)
class Truth:
    """A bundle: unit vectors of items, seen items and positives of the users, and popularity."""

    name: str
    digest: str
    vectors: np.ndarray
    seen: Histories
    positives: Histories
    popularity: np.ndarray

    def is_right(self, user_id: int, live: list[LiveEvent], reply: dict[str, Any]) -> bool:
        """Returns whether a list has the best K unseen items: by the mean of the positives, or by popularity."""
        seen = [*self._log(self.seen, user_id), *(int(event.item_id) - 1 for event in live)]
        live_positives = [event for event in live if event.kind == "positive"]
        rows = [*self._log(self.positives, user_id), *(int(event.item_id) - 1 for event in live_positives)]
        query = self.vectors[rows[-HISTORY:]].sum(axis=0)
        scores = self.vectors @ (query / np.linalg.norm(query)) if seen else self.popularity
        return reply["source"] == ("model" if seen else "popularity") and are_best(reply["items"], scores, seen)

    def is_similar(self, item_id: int, items: list[dict[str, Any]]) -> bool:
        """Returns whether a list has the K items most similar to one."""
        return are_best(items, self.vectors @ self.vectors[item_id - 1], [item_id - 1])

    @staticmethod
    def _log(histories: Histories, user_id: int) -> list[int]:
        first, end = histories.offsets[user_id - 1 : user_id + 1].tolist() if user_id <= USERS else (0, 0)
        return histories.item_rows[first:end].tolist()


def are_best(items: list[dict[str, Any]], scores: np.ndarray, excluded: list[int]) -> bool:
    """Returns whether a list has the K best different items, without `excluded`, in order and with correct scores."""
    expected = scores.copy()
    expected[excluded] = -np.inf
    rows = np.array([item["item_id"] for item in items], np.int64) - 1
    scores_in_reply = np.array([item["score"] for item in items])
    return bool(
        len(set(rows.tolist())) == K
        and [item["rank"] for item in items] == list(range(1, K + 1))
        and np.allclose(expected[rows], scores_in_reply, rtol=NEAR, atol=NEAR)
        and (np.diff(scores_in_reply) <= 0).all()
        and expected[rows].min() >= np.partition(expected, -K)[-K] - NEAR
    )


def read_truth(run: Path) -> Truth:
    """Reads a run that `serve_bundle.write_run` wrote."""
    stage = open_stage(run, "index")
    vectors = np.load(stage.folder / "item_vectors.npy").astype(np.float64)
    seen, positives = (load_histories(stage.folder, name) for name in ("events", "positives"))
    overall = np.bincount(positives.item_rows, minlength=ITEMS)
    recent = np.bincount(positives.item_rows[positives.at >= AS_OF - TWO_DAYS_MS], minlength=ITEMS)
    return Truth(run.name, content_digest(run)[:12], vectors, seen, positives, recent + overall / (1.0 + overall.max()))
