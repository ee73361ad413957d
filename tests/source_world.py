"""A tiny world of three kinds of users, for each of which another source of candidates is the right one."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.worlds import FIRST_MS, TEST, TRAIN_DAYS, VALIDATION, events_of, items_of, world_recipe, write_world
from twofold.recipe.schema import Recipe
from twofold.tables import DAY_MS, HOUR_MS

SOURCES = [
    {"kind": "item_knn", "quota": 4, "last_likes": 2},
    {"kind": "popularity", "quota": 12, "days": 1},
    {"kind": "condition", "quota": 6, "when": "age_days < 1"},
]
"""The sources of `three_kinds`, in the order of the kinds of users."""


def three_kinds(folder: Path, *, num_users: int = 180) -> Recipe:
    """A third of the users each like the partner of the item that they liked last, what others liked yesterday, and
    what is uploaded this day. The retriever is told nothing that tells items apart.

    Items 0 to 119 are pairs: who likes one likes the other on the next day. Of items 120 to 179, six begin to be liked
    every day, by one half of their users on that day, but for the day of test, and by the other half on the next. Then
    come six new items a day, of which a user likes two.
    """
    draw, days = np.random.default_rng(11), (*TRAIN_DAYS, VALIDATION, TEST)
    lines = []
    for user in range(num_users):
        for day in days:
            match user % 3:
                case 0:
                    pair = (user // 3 * 7 + day // 2 * 13) % 60
                    liked = [2 * pair + day % 2]
                case 1:
                    first = day - user // 3 % 2
                    liked = [120 + 6 * first + each for each in range(6)] if 0 <= first < TEST else []
                case _:
                    liked = [180 + 6 * day + each for each in draw.permutation(6)[:2]]
            moments = day * DAY_MS + HOUR_MS + draw.choice(DAY_MS - HOUR_MS, size=len(liked), replace=False)
            lines += [(user, item, moment, True) for item, moment in zip(liked, moments, strict=True)]
    num_items = 180 + 6 * len(days)
    uploaded = [FIRST_MS + ((row - 180) // 6 if row >= 180 else -9) * DAY_MS for row in range(num_items)]
    items = items_of(num_items).drop(["uploaded_at"]).append_column("uploaded_at", pa.array(uploaded, pa.int64()))
    items = items.append_column("team", [["all"] * num_items])
    likes = {"kind": "history", "events": "positives", "max_length": 10}
    candidates = {"num_candidates": 30, "num_retrieved": 15, "sources": SOURCES}
    parts = {
        "features": {"user": [likes], "item": [{"kind": "category", "column": "team"}]},
        "train": {"epochs": 1, "batch_size": 128, "seed": 0},
        "ranker": {
            "kind": "mlp",
            "features": {"user": [likes], "item": [{"kind": "number", "column": "length_s", "scale": "standard"}]},
            "dim": 8,
            "hidden": [32],
            "candidates": candidates,
            "epochs": 10,
            "batch_size": 64,
            "learning_rate": 0.01,
        },
        "evaluate": {"brief": True},  # no peer is tuned: the sources are compared with the retriever
    }
    return world_recipe(write_world(folder, events_of(lines, draw), items), parts)
