"""Ratings from 1 to 5 stars, most of them high, in bursts: each user rates all in a few days of three years."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from tests.logs.taste import DAY_S, FIRST_S, tastes


def write_ratings(
    folder: Path, *, users: int = 700, items: int = 300, events: int = 35_000, seed: int = 0
) -> list[str]:
    """Writes ratings.csv and movies.csv; returns the arguments of `twofold recipe new`."""
    taste = tastes(seed, users=users, items=items)
    draw = taste.draw
    pairs = np.unique(np.stack([who := draw.integers(users, size=events), taste.meet(who, faithful=0.5)]), axis=1)
    who, what = pairs
    stars = np.where(
        taste.is_liked(who, what), draw.choice([4, 5], len(who), p=[0.3, 0.7]), draw.choice([2, 3, 4], len(who))
    )
    begun = draw.integers(1000, size=users)
    seconds = FIRST_S - 1000 * DAY_S + begun[who] * DAY_S + draw.integers(3 * DAY_S, size=len(who))
    ratings = {"userId": who + 1, "movieId": what + 1, "rating": stars, "timestamp": seconds}
    pa.csv.write_csv(pa.table(ratings), folder / "ratings.csv")
    genres = [f"Genre {group}|Genre {(group + item) % 8}" for item, group in enumerate(taste.item_group.tolist())]
    titles = [f"Film, the {item}th ({1950 + item % 70})" for item in range(items)]
    movies = {"movieId": np.arange(items) + 1, "title": titles, "genres": genres}
    pa.csv.write_csv(pa.table(movies), folder / "movies.csv")
    return ["--log", str(folder / "ratings.csv"), "--items", str(folder / "movies.csv")]
