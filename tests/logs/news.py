"""News: impressions with clicks, articles that are new every day, JSON lines, texts as times."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tests.logs.taste import DAY_S, FIRST_S, moments, tastes


def write_news(folder: Path, *, users: int = 800, items: int = 420, events: int = 40_000, seed: int = 0) -> list[str]:
    """Writes impressions.jsonl and articles.csv; returns the arguments of `twofold recipe new`."""
    days = 14
    per_day = items // days
    taste = tastes(seed, users=users, items=items)
    draw = taste.draw
    seconds, who = moments(draw, events, days=days), draw.integers(users, size=events)
    # So many articles are new every day; each is shown on its day and the next.
    age = draw.integers(2, size=events)
    day = (seconds - FIRST_S) // DAY_S
    what = np.clip(day - age, 0, days - 1) * per_day + draw.integers(per_day, size=events)
    clicked = taste.is_liked(who, what, noise=0.05) & (draw.random(events) < 0.8)
    rows = zip(who.tolist(), what.tolist(), seconds.tolist(), clicked.tolist(), strict=True)
    lines = [
        json.dumps({"user_id": f"U{user}", "news_id": f"N{item}", "time": _text(at), "clicked": int(click)})
        for user, item, at, click in rows
    ]
    (folder / "impressions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    articles = [
        f"N{item},section {group},Headline {item},{_text(FIRST_S + item // per_day * DAY_S)}"
        for item, group in enumerate(taste.item_group.tolist())
    ]
    text = "\n".join(["news_id,category,title,published", *articles]) + "\n"
    (folder / "articles.csv").write_text(text, encoding="utf-8")
    return ["--log", str(folder / "impressions.jsonl"), "--items", str(folder / "articles.csv")]


def _text(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
