"""Plays of a music service: a folder of Parquet files, seconds played, songs heard again and again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.logs.taste import FIRST_S, moments, tastes


def write_music(folder: Path, *, users: int = 600, items: int = 250, events: int = 40_000, seed: int = 0) -> list[str]:
    """Writes plays/, songs.parquet and members.parquet; returns the arguments of `twofold recipe new`."""
    taste = tastes(seed, users=users, items=items)
    draw = taste.draw
    seconds, who = moments(draw, events, days=28, offset_h=-5), draw.integers(users, size=events)
    what = taste.meet(who)
    for user in range(users):  # half of the plays are of songs that the user plays again
        own = np.flatnonzero(who == user)
        again = own[5:][draw.random(max(len(own) - 5, 0)) < 0.5]
        what[again] = draw.choice(what[own[:5]], size=len(again)) if len(again) else what[again]
    length = draw.normal(210, 40, size=items).clip(90, 420).round()
    share = np.where(taste.is_liked(who, what), draw.uniform(0.85, 1, events), draw.uniform(0.1, 0.7, events))
    plays = {
        "msno": [f"m{user:04}" for user in who.tolist()],
        "song_id": what + 1,
        "ts": seconds,
        "seconds_played": (length[what] * share).round().astype(np.int64),
    }
    (folder / "plays").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(events), 3)):
        columns = {name: pa.array(values).take(pa.array(rows)) for name, values in plays.items()}
        pq.write_table(pa.table(columns), folder / "plays" / f"part-{part}.parquet")
    genres = [f"{_GENRES[group]}|{_GENRES[(group + item) % 8]}" for item, group in enumerate(taste.item_group.tolist())]
    songs = {"song_id": np.arange(items) + 1, "length_s": length, "genres": genres, "artist": np.arange(items) % 60}
    pq.write_table(pa.table(songs), folder / "songs.parquet")
    joined = FIRST_S - draw.integers(10**7, size=users)
    members = {
        "msno": [f"m{user:04}" for user in range(users)],
        "city": draw.integers(20, size=users),
        "joined": joined,
    }
    pq.write_table(pa.table(members), folder / "members.parquet")
    tables = {"--log": "plays", "--items": "songs.parquet", "--users": "members.parquet"}
    return [part for option, name in tables.items() for part in (option, str(folder / name))] + ["--user", "msno"]


_GENRES = ("pop", "rock", "jazz", "folk", "soul", "metal", "house", "classic")
