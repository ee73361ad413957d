"""Prepared tables of a few events, written naively and without the preparation: the contract of the dataset."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twofold.recipe.features import Features
from twofold.tables import DAY_MS, HOUR_MS

WINDOWS = {"train": (0, 10 * DAY_MS), "validation": (10 * DAY_MS, 12 * DAY_MS), "test": (12 * DAY_MS, 14 * DAY_MS)}
LAST_TRAIN_MS = WINDOWS["train"][1]

# Every kind of feature.
FEATURES = Features.model_validate(
    {
        "vectors": {"look": {"pca": 3}, "sound": {}},
        "user": [
            {"kind": "history", "events": "positives", "max_length": 5},
            {"kind": "history", "events": "negatives", "max_length": 12, "pool": "windows"},
            {"kind": "history", "events": "positives", "max_length": 11, "pool": "windows", "vectors": "look"},
            {"kind": "history", "events": "positives", "max_length": 3, "pool": "concat", "vectors": "sound"},
            {"kind": "history", "events": "negatives", "max_length": 4, "vectors": "sound"},
            {
                "kind": "history",
                "events": "positives",
                "max_length": 6,
                "pool": "windows",
                "share_item_embedding": True,
            },
            {"kind": "sequence", "max_length": 7, "time_bias": True},
            {"kind": "id", "unknown_rate": 0.1},
            {"kind": "clusters", "events": "positives", "vectors": "look", "max_length": 8, "num_clusters": 3},
            {"kind": "time", "part": "hour"},
            {"kind": "time", "part": "weekday"},
            {"kind": "category", "column": "language"},
            {"kind": "number", "column": "years", "scale": "standard", "hidden_dim": 4},
            {"kind": "profile", "column": "rhythm", "length": 2},
            {"kind": "counter", "key": "user_id", "statistic": "like", "hours": 24},
            {"kind": "counter", "key": "user_id", "statistic": "watch_s", "hidden_dim": 2},
        ],
        "item": [
            {"kind": "id"},
            {"kind": "category", "column": "language"},
            {"kind": "bag", "column": "tags"},
            {"kind": "number", "column": "length_s", "scale": "log"},
            {"kind": "age", "hidden_dim": 3},
            {"kind": "vector", "vectors": "look"},
            {"kind": "counter", "key": "item_id", "statistic": "like", "hours": 72},
            {"kind": "counter", "key": "creator", "statistic": "watch_s"},
        ],
    }
)


@dataclass(frozen=True)
class Event:
    user: str
    item: int
    at: int
    liked: bool
    watch_s: float


def random_events(seed: int, *, users: int = 12, items: int = 20, events: int = 400) -> list[Event]:
    """Events of 14 days in whole half-hours, so that some share a moment."""
    draw = np.random.default_rng(seed)
    columns = (
        draw.integers(users, size=events),
        draw.integers(items, size=events),
        draw.integers(14 * 48, size=events) * HOUR_MS // 2,
        draw.random(events) < 0.5,
        draw.integers(1, 60, size=events).astype(float),
    )
    lines = zip(*(column.tolist() for column in columns), strict=True)
    return [Event(f"user {user}", item, at, liked, watch_s) for user, item, at, liked, watch_s in lines]


def write_prepared(
    folder: Path, events: list[Event], *, users: int = 14, items: int = 22, shards: int = 3, train_items: int = 17
) -> Path:
    """Users and items may be more than those of the events; items from `train_items` on are left out of training."""
    listed = [f"user {user}" for user in range(users)]
    shard_of = {user: int(user[5:]) * 5 % shards for user in listed}  # by a hash, as it were
    for k in range(shards):
        own = sorted((e for e in events if shard_of[e.user] == k), key=lambda e: (e.user, e.at, e.item))
        _write(folder / "events" / f"shard={k}.parquet", own, _history_columns)
        for split, (first, end) in WINDOWS.items():
            inside = [e for e in own if first <= e.at < end and (split != "train" or e.item < train_items)]
            if inside:
                _write(
                    folder / "rows" / f"split={split}" / f"shard={k}.parquet",
                    inside,
                    lambda part, own=own: _row_columns(part, own),
                )
    pq.write_table(_items(items), folder / "items.parquet")
    pq.write_table(_users(listed), folder / "users.parquet")
    (folder / "vectors").mkdir()
    np.save(folder / "vectors" / "look.npy", _looks(items))
    _write_counters(folder / "counters", events, items)
    return folder


def _write(path: Path, events: list[Event], columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {
        "user_id": pa.array([e.user for e in events], pa.string()),
        "item_id": pa.array([e.item for e in events], pa.int64()),
        "at": pa.array([e.at for e in events], pa.int64()),
    }
    pq.write_table(pa.table(keys | columns(events)), path, row_group_size=7)


def _history_columns(events: list[Event]) -> dict[str, pa.Array]:
    liked = pa.array([e.liked for e in events], pa.bool_())
    return {"is_positive": liked, "is_negative": pa.array([not e.liked for e in events], pa.bool_())}


def _row_columns(events: list[Event], own: list[Event]) -> dict[str, pa.Array]:
    def before(event: Event, liked: bool) -> int:
        return sum(e.user == event.user and e.at < event.at and e.liked == liked for e in own)

    return {
        "label": pa.array([e.liked for e in events]),
        "is_relevant": pa.array([e.liked for e in events]),
        "at_is_estimated": pa.array([False for _ in events]),
        "weight": pa.array([1.0 for _ in events], pa.float32()),
        "target": pa.array([float(e.liked) for e in events], pa.float32()),
        "watch_s": pa.array([e.watch_s for e in events], pa.float32()),
        "length_s": pa.array([None for _ in events], pa.float32()),
        "positives_before": pa.array([before(e, True) for e in events], pa.int32()),
        "negatives_before": pa.array([before(e, False) for e in events], pa.int32()),
    }


def _items(items: int) -> pa.Table:
    """Returns items in no order, so that vectors must be brought into the order of the item rows."""
    ids = np.random.default_rng(1).permutation(items).tolist()
    return pa.table(
        {
            "item_id": ids,
            "language": [None if item % 5 == 0 else f"language {item % 3}" for item in ids],
            "tags": [[f"tag {tag}" for tag in range(item % 4)] for item in ids],
            "length_s": [float(5 + item) for item in ids],
            "uploaded_at": pa.array([None if item % 7 == 0 else -item * DAY_MS for item in ids], pa.int64()),
            "creator": [None if item % 6 == 0 else f"creator {item % 4}" for item in ids],
            "sound": pa.array([None if item % 9 == 0 else [item / 10, 1.0] for item in ids], pa.list_(pa.float32())),
        }
    )


def _users(listed: list[str]) -> pa.Table:
    return pa.table(
        {
            "user_id": listed,
            "language": [f"language {user % 4}" for user in range(len(listed))],
            "years": [None if user % 4 == 0 else 20.0 + user for user in range(len(listed))],
            "rhythm": [None if user % 5 == 0 else [user / 10, 1.0] for user in range(len(listed))],
        }
    )


def _looks(items: int) -> np.ndarray:
    """Returns a vector per item, in the order of the items table; every eighth item has none."""
    looks = np.random.default_rng(2).standard_normal((items, 6)).astype(np.float32)
    looks[::8] = np.nan
    return looks


def _write_counters(folder: Path, events: list[Event], items: int) -> None:
    creators = {line["item_id"]: line["creator"] for line in _items(items).to_pylist()}
    keys = {"user_id": lambda e: e.user, "item_id": lambda e: e.item, "creator": lambda e: creators[e.item]}
    priors = {}
    folder.mkdir()
    for by, key_of in keys.items():
        hours: dict[tuple, list[int]] = {}
        for event in events:
            if (key := key_of(event)) is not None:
                line = hours.setdefault((key, event.at // HOUR_MS), [0, 0, 0])
                hours[key, event.at // HOUR_MS] = [
                    line[0] + 1,
                    line[1] + event.liked,
                    line[2] + round(event.watch_s * 1e3),
                ]
        lines = [(*key, *line) for key, line in sorted(hours.items())]
        names = ["key", "hour", "events", "rate_like", "mean_watch_s"]
        pq.write_table(
            pa.table(dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))), folder / f"by={by}.parquet"
        )
        taught = [e for e in events if e.at < LAST_TRAIN_MS and key_of(e) is not None]
        sums = (len(taught), sum(e.liked for e in taught), round(sum(e.watch_s for e in taught) * 1e3))
        priors[by] = dict(zip(names[2:], sums, strict=True))
    (folder / "priors.json").write_text(json.dumps(priors))
