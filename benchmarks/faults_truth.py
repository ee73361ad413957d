"""What the service of `faults.py` must answer, worked out anew in double precision from the files of a bundle."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serve_bundle import AS_OF, HISTORY

from twofold.dataset.histories import Histories, load_histories
from twofold.run_folder import open_stage
from twofold.serve.event_store import LiveEvent

ITEMS, USERS, STRANGERS, K = 2_000, 80, 40, 20
TWO_DAYS_MS = 2 * 24 * 3_600_000
NEAR = 1e-4  # float32 against float64


@dataclass
class Live:
    """A user of the log, or a stranger beyond it: what was posted of them and acknowledged, oldest first.

    `unsure`: the last post, as long as nobody said that it was kept. It may have been.
    """

    user_id: int
    kept: list[LiveEvent] = field(default_factory=list)
    unsure: list[LiveEvent] = field(default_factory=list)


@dataclass(frozen=True)
class Truth:
    """A bundle: unit vectors of items, what users of the log met, what they liked of it, and what is popular."""

    name: str
    digest: str
    vectors: np.ndarray
    met: Histories
    liked: Histories
    popularity: np.ndarray

    def is_right(self, user_id: int, live: list[LiveEvent], answer: dict[str, Any]) -> bool:
        """Whether a list is the best K of what the user has not met: by the mean of their likes, or by popularity."""
        met = [*self._log(self.met, user_id), *(int(event.item_id) - 1 for event in live)]
        likes = [event for event in live if event.kind == "positive"]
        liked = [*self._log(self.liked, user_id), *(int(event.item_id) - 1 for event in likes)]
        query = self.vectors[liked[-HISTORY:]].sum(axis=0)
        scores = self.vectors @ (query / np.linalg.norm(query)) if met else self.popularity
        return answer["source"] == ("model" if met else "popularity") and are_best(answer["items"], scores, met)

    def is_similar(self, item_id: int, items: list[dict[str, Any]]) -> bool:
        """Whether these are the K items most like one."""
        return are_best(items, self.vectors @ self.vectors[item_id - 1], [item_id - 1])

    @staticmethod
    def _log(of: Histories, user_id: int) -> list[int]:
        first, end = of.offsets[user_id - 1 : user_id + 1].tolist() if user_id <= USERS else (0, 0)
        return of.item_rows[first:end].tolist()


def are_best(items: list[dict[str, Any]], scores: np.ndarray, without: list[int]) -> bool:
    """K different items, none of `without`, in order, with the scores they have, and none better left out."""
    expected = scores.copy()
    expected[without] = -np.inf
    rows = np.array([item["item_id"] for item in items], np.int64) - 1
    given = np.array([item["score"] for item in items])
    return bool(
        len(set(rows.tolist())) == K
        and [item["rank"] for item in items] == list(range(1, K + 1))
        and np.allclose(expected[rows], given, rtol=NEAR, atol=NEAR)
        and (np.diff(given) <= 0).all()
        and expected[rows].min() >= np.partition(expected, -K)[-K] - NEAR
    )


def read_truth(run: Path) -> Truth:
    """Of a run that `serve_bundle.write_run` wrote."""
    stage = open_stage(run, "index")
    vectors = np.load(stage.folder / "item_vectors.npy").astype(np.float64)
    met, liked = (load_histories(stage.folder, name) for name in ("events", "positives"))
    always = np.bincount(liked.item_rows, minlength=ITEMS)
    lately = np.bincount(liked.item_rows[liked.at >= AS_OF - TWO_DAYS_MS], minlength=ITEMS)
    return Truth(run.name, stage.digest[:12], vectors, met, liked, lately + always / (1.0 + always.max()))
