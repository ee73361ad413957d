"""Short video: watch times in milliseconds, lengths in the items table, upload times, tags and content vectors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.logs.taste import DAY_S, FIRST_S, moments, tastes


def write_video(folder: Path, *, users: int = 700, items: int = 400, events: int = 40_000, seed: int = 0) -> list[str]:
    """Writes log.parquet and videos.parquet; returns the arguments of `twofold recipe new`."""
    taste = tastes(seed, users=users, items=items)
    draw = taste.draw
    who = draw.integers(users, size=events)
    who, what = np.unique(np.stack([who, taste.meet(who, faithful=0.4)]), axis=1)  # no video is shown twice
    order = draw.permutation(len(who))
    who, what, events = who[order], what[order], len(who)
    seconds = moments(draw, events, days=14, offset_h=5.5)
    length_ms = draw.lognormal(10.3, 0.6, size=items).clip(5_000, 120_000).astype(np.int64)
    liked = taste.is_liked(who, what)
    share = np.where(liked, draw.uniform(0.7, 1.3, events), draw.exponential(0.15, events))
    log = {
        "uid": who,
        "vid": what,
        "play_ts": seconds * 1000,
        "watch_ms": (length_ms[what] * share).astype(np.int64),
        "like": (liked & (draw.random(events) < 0.1)).astype(np.int8),
        "share": (liked & (draw.random(events) < 0.02)).astype(np.int8),
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    centers = draw.normal(size=(8, 16))
    vectors = centers[taste.item_group] + draw.normal(scale=0.5, size=(items, 16))
    videos = {
        "vid": np.arange(items),
        "video_ms": length_ms,
        "upload_ts": (FIRST_S + draw.integers(-20, 10, size=items) * DAY_S) * 1000,
        "tags": [["topic" + str(group), f"tag{item % 30}"] for item, group in enumerate(taste.item_group.tolist())],
        "embedding": pa.array(vectors.astype(np.float32).tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(videos), folder / "videos.parquet")
    return ["--log", str(folder / "log.parquet"), "--items", str(folder / "videos.parquet")]
