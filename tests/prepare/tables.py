"""Logs of a dozen rows, prepared: what the tests of this folder share."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.worlds import DAY_MS, FIRST_MS, world_recipe, write_world
from twofold.prepare.funnel import FunnelLine, funnel_lines
from twofold.prepare.run_plan import prepare

TRAIN, VALIDATION, TEST = (FIRST_MS + day * DAY_MS for day in (0, 4, 5))
# What every table below needs and no expected value speaks of: something to judge, by users 8 and 9.
JUDGED = [(user, 100, at, True) for user in (8, 9) for at in (VALIDATION, TEST)]


# user 1 meets items 0, 1, 2; user 2 items 0, 1; user 3 item 0, which it does not like
THREE_USERS = [
    (1, 0, TRAIN, True),
    (1, 1, TRAIN + 1, True),
    (1, 2, TRAIN + 2, False),
    (2, 0, TRAIN, True),
    (2, 1, TRAIN + 1, False),
    (3, 0, TRAIN, False),
]


def prepared(folder: Path, events: pa.Table, items: pa.Table | None = None, **parts: Any) -> Path:
    """The folder of prepared tables; `parts` go to the recipe's `prepare`."""
    recipe = world_recipe(write_world(folder / "log", events, items))
    recipe = world_recipe(recipe.data.model_dump(), {"prepare": recipe.prepare.model_dump() | parts})
    out = folder / "prepare"
    out.mkdir()
    prepare(recipe, out)
    return out


def log_of(rows: list[tuple[Any, ...]], **columns: list[Any]) -> pa.Table:
    """A log of (user, item, at, liked) rows, each with the further columns; JUDGED follows, with NULL in those."""
    user, item, at, liked = ([row[place] for row in rows + JUDGED] for place in range(4))
    further = {name: values + [None] * len(JUDGED) for name, values in columns.items()}
    return pa.table({"user_id": user, "item_id": item, "at": pa.array(at, pa.int64()), "liked": liked} | further)


def rows_of(out: Path, split: str = "train") -> list[dict[str, Any]]:
    return pq.read_table(out / "rows" / f"split={split}" / "shard=0.parquet", partitioning=None).to_pylist()


def events_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "events" / "shard=0.parquet").to_pylist()


def funnel_of(out: Path) -> list[FunnelLine]:
    return funnel_lines(json.loads((out / "funnel.json").read_text()))


def column(rows: list[dict[str, Any]], *names: str) -> list[Any]:
    return [row[names[0]] if len(names) == 1 else tuple(row[name] for name in names) for row in rows]
