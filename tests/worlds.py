"""Tiny worlds whose right answer is known, written as Parquet logs that the `table` source reads.

Every world has its days in UTC: four of training, one of validation, one of test, and what comes `AFTER`.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twofold.recipe.schema import Recipe
from twofold.tables import DAY_MS, HOUR_MS

FIRST = date(2024, 1, 1)
FIRST_MS = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1000
TRAIN_DAYS, VALIDATION, TEST, AFTER = range(4), 4, 5, 6
SPLIT = {
    "kind": "temporal",
    "train": {"first": FIRST, "end": FIRST + timedelta(days=VALIDATION)},
    "validation": {"first": FIRST + timedelta(days=VALIDATION), "end": FIRST + timedelta(days=TEST)},
    "test": {"first": FIRST + timedelta(days=TEST), "end": FIRST + timedelta(days=AFTER)},
}


def write_world(folder: Path, events: pa.Table, items: pa.Table | None = None) -> dict[str, Any]:
    """Writes the tables into a folder; returns the recipe's `data` part, which reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"kind": "table", "events": folder / "events.parquet"}
    pq.write_table(events, folder / "events.parquet")
    if items is not None:
        pq.write_table(items, folder / "items.parquet")
        data["items"] = folder / "items.parquet"
    return data


def world_recipe(data: dict[str, Any], parts: dict[str, Any] | None = None) -> Recipe:
    """A small recipe over a world; `parts` replace parts of it: world_recipe(data, {"train": {"epochs": 1}})."""
    recipe: dict[str, Any] = {
        "name": "world",
        "data": data,
        "prepare": {"positive": "liked", "split": SPLIT},
        "features": {
            "user": [{"kind": "history", "events": "positives", "max_length": 100}],
            "item": [{"kind": "id"}],
        },
        "retriever": {"kind": "two_tower", "dim": 16, "score": {"kind": "cosine", "temperature": 0.1}},
        "train": {"epochs": 10, "batch_size": 128, "learning_rate": 0.01, "seed": 0},
        "recommend_k": 10,
    }
    return Recipe.model_validate(recipe | (parts or {}))


# --- checkerboard: even users like even items -------------------------------------------------------------------------


def checkerboard(folder: Path, *, num_users: int = 128, num_items: int = 64) -> Recipe:
    """Even users like even items, odd users odd ones; two items of the user's own kind are withheld from training.

    One of them (`withheld_item(…, "validation")`) is liked on the day of validation, the other on the day of test; a
    quarter of the other kind's items is met in training and not liked. On the day of test the only unseen item of its
    own kind must therefore be a user's first recommendation. Nothing but the user's positives tells the kinds apart.
    """
    draw = np.random.default_rng(0)
    lines = []
    for user in range(num_users):
        own = np.arange(user % 2, num_items, 2)
        others = draw.permutation(np.arange((user + 1) % 2, num_items, 2))
        withheld = [withheld_item(user, num_items, window) for window in ("validation", "test")]
        liked = np.setdiff1d(own, withheld)
        met = others[: num_items // 8]
        moments = draw.choice(len(TRAIN_DAYS) * DAY_MS, size=len(liked) + len(met), replace=False)
        items = np.concatenate([liked, met])
        lines += [(user, item, moment, item % 2 == user % 2) for item, moment in zip(items, moments, strict=True)]
        for day, item, unliked in zip((VALIDATION, TEST), withheld, others[-2:], strict=True):
            morning = day * DAY_MS + int(draw.integers(DAY_MS // 2))
            lines += [(user, item, morning, True), (user, unliked, morning + DAY_MS // 4, False)]
    return world_recipe(write_world(folder, events_of(lines, draw), items_of(num_items)))


def withheld_item(user: int, num_items: int, window: str = "test") -> int:
    """The item of its own kind that a user of the checkerboard first meets in a window: the diagonal, or beside it."""
    place = user // 2 + (1 if window == "validation" else 0)
    return user % 2 + 2 * (place % (num_items // 2))


# --- leak: the future determines the label ----------------------------------------------------------------------------


def leak(folder: Path, *, num_users: int = 120, num_items: int = 300) -> Recipe:
    """Each item is liked or not from the day of test on, by a random draw; before that day, likes are noise.

    From the day of test on, everybody likes the items of `lucky_items` and no others, all met at one moment of the day.
    A model that sees the future (popularity or vectors of the whole log, histories with later events or those of the
    same moment) ranks the day of test perfectly; any other stays at chance: AUC 0.5.
    """
    draw = np.random.default_rng(1)
    lucky = lucky_items(num_items)
    lines = []
    for user in range(num_users):
        for day in (*TRAIN_DAYS, VALIDATION):
            items = draw.choice(num_items, size=10, replace=False)
            moments = day * DAY_MS + draw.choice(DAY_MS, size=10, replace=False)
            likes = draw.random(10) < 0.5
            lines += list(zip([user] * 10, items, moments, likes, strict=True))
        for day in (TEST, AFTER, AFTER + 1):
            items = draw.choice(num_items, size=30, replace=False)
            lines += [(user, item, day * DAY_MS + DAY_MS // 2, item in lucky) for item in items]
    return world_recipe(write_world(folder, events_of(lines, draw), items_of(num_items)), {"train": {"epochs": 3}})


def lucky_items(num_items: int) -> frozenset[int]:
    """The half of the items of `leak` that are liked from the day of test on."""
    return frozenset(np.random.default_rng(2).permutation(num_items)[: num_items // 2].tolist())


# --- popularity only --------------------------------------------------------------------------------------------------


def popularity_only(folder: Path, *, num_users: int = 200, num_items: int = 60) -> Recipe:
    """Everybody has one taste: an item is liked with its probability, `liking`, by whoever meets it.

    Nothing beats popularity.
    """
    draw = np.random.default_rng(3)
    lines = []
    for user in range(num_users):
        for day in (*TRAIN_DAYS, VALIDATION, TEST):
            items = draw.choice(num_items, size=8, replace=False)
            moments = day * DAY_MS + draw.choice(DAY_MS, size=8, replace=False)
            likes = draw.random(8) < liking(items, num_items)
            lines += list(zip([user] * 8, items, moments, likes, strict=True))
    return world_recipe(write_world(folder, events_of(lines, draw), items_of(num_items)))


def liking(items: np.ndarray, num_items: int) -> np.ndarray:
    """Returns the probability that an item of `popularity_only` is liked: highest for item 0, lowest for the last."""
    return 0.9 * (1 - items / num_items) ** 2 + 0.02


# --- walks: order alone tells what comes next -------------------------------------------------------------------------


def walks(folder: Path, *, num_users: int = 240, num_items: int = 60) -> Recipe:
    """Users like the items of a circle one after another, half of them in one direction and half in the other.

    Twelve likes in training, one on the day of validation, one on that of test: the item next to the last one. Those
    who know which items were liked, but not in which order, choose between the two ends.
    """
    draw = np.random.default_rng(5)
    lines = []
    for user in range(num_users):
        items = (draw.integers(num_items) + np.arange(14) * draw.choice([-1, 1])) % num_items
        moments = [day * DAY_MS + third * DAY_MS // 3 for day in TRAIN_DAYS for third in range(3)]
        moments += [VALIDATION * DAY_MS, TEST * DAY_MS]
        lines += list(zip([user] * 14, items, moments, [True] * 14, strict=True))
    return world_recipe(write_world(folder, events_of(lines, draw), items_of(num_items)))


# --- pauses: elapsed time alone tells what comes next -----------------------------------------------------------------


def pauses(folder: Path, *, num_users: int = 600, num_items: int = 60) -> Recipe:
    """Users walk round a circle of places, each with two items: one for who comes within the hour, one for who comes
    after about a day. A user's first like of the day of test falls into its first half hour.

    Those who know the order know the place, and choose between its two items.
    """
    draw = np.random.default_rng(7)
    places = num_items // 2
    lines = []
    for user in range(num_users):
        is_long = draw.random(14) < 0.5
        pause = np.where(
            is_long, draw.integers(20 * HOUR_MS, 23 * HOUR_MS, 14), draw.integers(HOUR_MS // 2, HOUR_MS, 14)
        )
        moments = TEST * DAY_MS + draw.integers(HOUR_MS // 2) - np.append(np.cumsum(pause[:0:-1])[::-1], 0)
        items = (draw.integers(places) + np.arange(14)) % places + places * is_long
        lines += [(user, item, at, True) for item, at in zip(items, moments, strict=True) if at >= 0]
    return world_recipe(write_world(folder, events_of(lines, draw), items_of(num_items)))


# --- fresh: age alone tells what is liked -----------------------------------------------------------------------------


def fresh(folder: Path, *, num_users: int = 100, per_day: int = 20) -> Recipe:
    """Everybody likes items of the day on which they were uploaded, whatever they are, and no others.

    Every item is liked at the same age, so that age tells nothing if items are compared as of the moments of their own
    likes. On the day of test nobody has met the items that are liked.
    """
    draw = np.random.default_rng(8)
    lines = []
    for user in range(num_users):
        for day in (*TRAIN_DAYS, VALIDATION, TEST):
            items = day * per_day + draw.choice(per_day, size=6, replace=False)
            moments = day * DAY_MS + HOUR_MS + draw.choice(DAY_MS - HOUR_MS, size=6, replace=False)
            lines += [(user, item, moment, True) for item, moment in zip(items, moments, strict=True)]
    num_items = (TEST + 1) * per_day
    uploaded = pa.array([FIRST_MS + row // per_day * DAY_MS for row in range(num_items)], pa.int64())
    items = items_of(num_items).drop(["uploaded_at"]).append_column("uploaded_at", uploaded)
    features = {
        "user": [{"kind": "history", "events": "negatives", "max_length": 5}],  # there are none: all users are equal
        "item": [{"kind": "age", "hidden_dim": 8}],
    }
    return world_recipe(write_world(folder, events_of(lines, draw), items), {"features": features})


# --- planted length bias ----------------------------------------------------------------------------------------------


def length_bias(folder: Path, *, num_users: int = 150, num_items: int = 160) -> Recipe:
    """Users like their own kind, as on the checkerboard, and whatever is short: a like says as much of the length.

    The chance of a like: .95 for a short item of the own kind, .5 for a long one or a short one of the other, .05 for
    the rest. A model of likes knows the length of every item; one that must not tell it can still know the kind.
    """
    draw = np.random.default_rng(4)
    is_short = np.array(items_of(num_items)["length_s"]) < 35
    lines = []
    for user in range(num_users):
        for day in (*TRAIN_DAYS, VALIDATION, TEST):
            items = draw.choice(num_items, size=20, replace=False)
            moments = day * DAY_MS + draw.choice(DAY_MS, size=20, replace=False)
            chance = 0.05 + 0.45 * (items % 2 == user % 2) + 0.45 * is_short[items]
            lines += list(zip([user] * 20, items, moments, draw.random(20) < chance, strict=True))
    features = {
        "user": [{"kind": "history", "events": of, "max_length": 50} for of in ("positives", "negatives")],
        "item": [{"kind": "id"}, {"kind": "number", "column": "length_s", "scale": "log"}],
    }
    parts = {
        "features": features,
        "retriever": {"kind": "two_tower", "dim": 8, "score": {"kind": "dot"}},
        "train": {"loss": {"kind": "bce"}, "epochs": 15, "batch_size": 256, "learning_rate": 0.01, "seed": 0},
    }
    return world_recipe(write_world(folder, events_of(lines, draw), items_of(num_items)), parts)


# --- planted folding: languages that never meet -----------------------------------------------------------------------


def languages(folder: Path, *, num_users: int = 128, num_items: int = 128, num_languages: int = 2) -> Recipe:
    """Nobody ever meets an item of another language; within its own, a user likes its own kind, as on the checkerboard.

    A user meets a dozen of its kind's items in training, one more on either day that is judged, and some of the other
    kind, which it does not like. What is never compared may come to lie in one place: it folds.
    """
    draw = np.random.default_rng(5)
    lines = []
    for user in range(num_users):
        own = draw.permutation(
            np.flatnonzero(spoken(np.arange(num_items), num_languages) == spoken(user, num_languages))
        )
        liked, others = (own[own % 2 == kind] for kind in (user % 2, 1 - user % 2))
        met = np.concatenate([liked[:12], others[:4]])
        moments = draw.choice(len(TRAIN_DAYS) * DAY_MS, size=len(met), replace=False)
        lines += [(user, item, moment, item % 2 == user % 2) for item, moment in zip(met, moments, strict=True)]
        for day, item, unliked in zip((VALIDATION, TEST), liked[12:], others[4:], strict=False):
            morning = day * DAY_MS + int(draw.integers(DAY_MS // 2))
            lines += [(user, item, morning, True), (user, unliked, morning + DAY_MS // 4, False)]
    named = [f"language {language}" for language in spoken(np.arange(num_items), num_languages)]
    items = items_of(num_items).append_column("language", [named])
    return world_recipe(write_world(folder, events_of(lines, draw), items))


def spoken(rows: Any, num_languages: int = 2) -> Any:
    """Returns the language of a user or item of `languages`, which is independent of its kind."""
    return rows // 2 % num_languages


# --- only the ranker sees what decides --------------------------------------------------------------------------------


def polished(folder: Path, *, num_users: int = 120, num_items: int = 160) -> Recipe:
    """A user likes the items of its own group that shine, one in four; the retriever is told the group alone.

    There are four groups. Whoever sees no more than the group finds the right forty items in no order; who sees the
    shine too knows which ten of them come first. Two of those ten are withheld for either day that is judged.
    """
    draw = np.random.default_rng(6)
    rows = np.arange(num_items)
    group, shine = rows % 4, np.where(rows // 4 % 4 == 0, 1.0, 0.0) + draw.normal(0, 0.1, num_items)
    lines = []
    for user in range(num_users):
        own = draw.permutation(rows[group == user % 4])
        bright, dull = own[shine[own] > 0.5], own[shine[own] < 0.5]
        others = draw.permutation(rows[group != user % 4])[:6]
        met = np.concatenate([bright[4:], dull[:10], others])
        moments = draw.choice(len(TRAIN_DAYS) * DAY_MS, size=len(met), replace=False)
        lines += [(user, item, moment, item in bright) for item, moment in zip(met, moments, strict=True)]
        for day, wanted, unwanted in ((VALIDATION, bright[:2], dull[10:12]), (TEST, bright[2:4], dull[12:14])):
            lines += [(user, item, day * DAY_MS + DAY_MS // 2, item in wanted) for item in (*wanted, *unwanted)]
    items = items_of(num_items).append_column("team", [[f"team {number}" for number in group]])
    items = items.append_column("shine", [shine])
    parts = {
        "features": {
            "user": [{"kind": "history", "events": "positives", "max_length": 50}],
            "item": [{"kind": "category", "column": "team"}],
        },
        "ranker": {
            "kind": "mlp",
            "features": {
                "user": [{"kind": "history", "events": "positives", "max_length": 50}],
                "item": [{"kind": "number", "column": "shine", "scale": "standard"}],
            },
            "dim": 8,
            "hidden": [16],
            "candidates": {"num_candidates": 40, "num_retrieved": 15},
            "epochs": 8,
            "batch_size": 64,
            "learning_rate": 0.01,
        },
        "evaluate": {"brief": True},
    }
    return world_recipe(write_world(folder, events_of(lines, draw), items), parts)


# --- tables -----------------------------------------------------------------------------------------------------------


def events_of(lines: list[tuple[Any, ...]], draw: np.random.Generator) -> pa.Table:
    """Events in no order at all: a correct reader sorts them."""
    users, items, moments, likes = (np.array(column) for column in zip(*lines, strict=True))
    table = pa.table(
        {
            "user_id": users.astype(np.int64),
            "item_id": items.astype(np.int64),
            "at": moments.astype(np.int64) + FIRST_MS,
            "liked": likes.astype(bool),
        }
    )
    return table.take(pa.array(draw.permutation(len(lines))))


def items_of(num_items: int) -> pa.Table:
    """Attributes that say nothing of who likes what, so that features of every kind can be tried."""
    rows = range(num_items)
    return pa.table(
        {
            "item_id": pa.array(rows, pa.int64()),
            "creator": [f"creator {row * 7 % 5}" for row in rows],
            "tags": [[f"tag {row * 5 % 3}", f"tag {row % 11}"][: row % 3] for row in rows],
            "length_s": [5.0 + row * 13 % 60 for row in rows],
            "uploaded_at": pa.array([FIRST_MS - (row * 3 % 8) * DAY_MS for row in rows], pa.int64()),
        }
    )
