"""A world whose titles alone tell a taste: new items are found by their words, and by nothing else."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests import worlds
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import Job, claim_folder, report_of
from twofold.recipe.schema import Recipe
from twofold.tables import DAY_MS

THEMES = ("rain", "snow", "wind", "sun", "fog", "hail")
PER_THEME, NUM_USERS = 5, 60


def titles(folder: Path, item_features: list[dict[str, str]]) -> Recipe:
    """Each user likes all items of one theme on the day they appear; a title holds its theme among words of chance."""
    draw = np.random.default_rng(12)
    per_day = PER_THEME * len(THEMES)
    num_items = (worlds.TEST + 1) * per_day
    lines = [
        (user, item, item // per_day * DAY_MS + int(draw.integers(DAY_MS)), True)
        for user in range(NUM_USERS)
        for item in range(user % len(THEMES), num_items, len(THEMES))
    ]
    fillers = [[f"word{each}" for each in draw.integers(20, size=3)] for _ in range(num_items)]
    words = [" ".join(draw.permutation([*fillers[item], THEMES[item % len(THEMES)]])) for item in range(num_items)]
    items = worlds.items_of(num_items).append_column("title", pa.array(words))
    data = worlds.write_world(folder / "log", worlds.events_of(lines, draw), items)
    features = {"user": [{"kind": "history", "events": "positives", "max_length": 50}], "item": item_features}
    return worlds.world_recipe(data, {"features": features, "evaluate": {"brief": True}})


def recall_of_new_items(recipe: Recipe, folder: Path) -> float | None:
    job = Job(recipe, folder)
    folder.mkdir()
    claim_folder(job, overwrite=False)
    pipeline.evaluate(job, *pipeline.up_to_training(job))
    section = report_of(folder).new_items
    assert (section.k, section.items, section.users_judged) == (10, PER_THEME * len(THEMES), NUM_USERS)
    return section.rows[0].recall.value


@pytest.mark.slow
def test_new_items_are_found_by_the_words_of_their_titles(tmp_path: Path) -> None:
    bag = {"kind": "bag", "column": "title", "sep": " "}
    features = {"ids": [{"kind": "id"}], "words": [bag], "both": [{"kind": "id", "unknown_rate": 0.1}, bag]}
    found = {
        name: recall_of_new_items(titles(tmp_path / name, items), tmp_path / f"run-{name}")
        for name, items in features.items()
    }
    assert found["words"] > 0.95
    assert found["both"] > 0.6
    assert found["ids"] < 0.1
