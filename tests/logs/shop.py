"""A shop's log: CSV with semicolons and decimal commas, offsets in the times, views, carts and transactions."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from tests.logs.taste import moments, tastes


def write_shop(folder: Path, *, users: int = 900, items: int = 300, events: int = 30_000, seed: int = 0) -> list[str]:
    """Writes events.csv and items.csv; returns the arguments of `twofold recipe new`."""
    taste = tastes(seed, users=users, items=items)
    draw = taste.draw
    seconds = moments(draw, events, days=28, offset_h=1)
    who = draw.integers(users, size=events)
    what = taste.meet(who)
    kind = np.where(draw.random(events) < 0.12, "addtocart", "view").astype(object)
    kind[(kind == "addtocart") & (draw.random(events) < 0.5)] = "transaction"
    zone = ZoneInfo("Europe/Berlin")
    lines = [
        f"{datetime.fromtimestamp(at, zone).isoformat()};C{user:05};{_sku(item)};{event}"
        for at, user, item, event in zip(seconds.tolist(), who.tolist(), what.tolist(), kind.tolist(), strict=True)
    ]
    (folder / "events.csv").write_text("\n".join(["time;customer;sku;event", *lines]) + "\n", encoding="utf-8")
    rows = ["sku;price;category;title;added"]
    for item in range(items):
        price = f"{5 + draw.random() * 90:.2f}".replace(".", ",")
        group = taste.item_group[item]
        day = f"2024-0{1 + item % 3}-{1 + item % 28:02}"
        rows.append(f"{_sku(item)};{price};Home > Room {group} > Shelf {item % 3};Article no. {item};{day}")
    (folder / "items.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return ["--log", str(folder / "events.csv"), "--items", str(folder / "items.csv")]


def _sku(item: int) -> str:
    return f"{item * 37 % 100_000:06}"
