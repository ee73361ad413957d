"""Columns of any name are read, and none of their names becomes a path."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import twofold
from tests.worlds import DAY_MS, FIRST_MS, SPLIT, world_recipe, write_world
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.prepare.run_plan import prepare
from twofold.recipe.schema import Recipe

NAMES = ("genre/sub", "../../up", "..", "a.b", "type", "name with space", "ключ", "new\nline", "quote'\"", "x" * 300)
ITEMS, USERS = 80, 12


def recipe_of(folder: Path) -> Recipe:
    """A recipe that reads a column of every odd name as a category of both towers and as a counter."""
    draw = np.random.default_rng(0)
    users, items = draw.integers(0, USERS, 600), draw.integers(0, ITEMS, 600)
    at, liked = FIRST_MS + np.sort(draw.integers(0, 6 * DAY_MS, 600)), draw.random(600) < 0.7
    log = pa.table({"user_id": users, "item_id": items, "at": at, "liked": liked})
    values = {name: [f"{name} {row % 3}" for row in range(ITEMS)] for name in NAMES}
    data = write_world(folder / "log", log, pa.table({"item_id": range(ITEMS), **values}))
    data["users"] = folder / "log" / "users.parquet"
    own = {name: listed[:USERS] for name, listed in values.items()}
    pq.write_table(pa.table({"user_id": range(USERS), **own}), data["users"])
    categories = [{"kind": "category", "column": name} for name in NAMES]
    counters = [{"kind": "counter", "key": name, "statistic": "like"} for name in NAMES]
    counted = {name: {"rates": {"like": "liked"}} for name in NAMES}
    parts = {
        "prepare": {"positive": "liked", "split": SPLIT, "counters": counted},
        "features": {
            "user": [{"kind": "history", "events": "positives"}, *categories],
            "item": [*categories, *counters],
        },
        "train": {"epochs": 1, "batch_size": 64, "learning_rate": 0.01, "seed": 0},
    }
    return world_recipe(data, parts)


def test_every_file_stays_in_its_folder_and_every_value_is_found(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "deep" / "down")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    out = tmp_path / "deep" / "down" / "run"
    (out / "prepare").mkdir(parents=True)
    prepare(recipe, out / "prepare")
    build_dataset(out / "prepare", recipe.features, out / "dataset", time_zone=recipe.prepare.time_zone)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written
    assert all(path.is_relative_to(out / "prepare") or path.is_relative_to(out / "dataset") for path in written)
    dataset = load_dataset(out / "dataset")
    for name in NAMES:
        assert set(dataset.item_arrays.inputs[name].tolist()) == {1, 2, 3}
        assert set(dataset.user_arrays.attributes[name].tolist()) == {0, 1, 2, 3}
        assert dataset.examples["train"].counter_values[f"{name}_like_life"].std() > 0


@pytest.mark.slow
def test_a_whole_run_reads_them(tmp_path: Path) -> None:
    job = twofold.run(recipe_of(tmp_path), runs=tmp_path / "runs")
    assert len(twofold.load(job.folder).recommend([3], k=5)) == 5
