"""Items whose popularity changes by the hour: what counters of the last hour and the hour of a request tell."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.train.test_batch_groups import last_epoch
from tests.worlds import FIRST_MS, SPLIT, TEST, TRAIN_DAYS, VALIDATION, events_of, items_of, world_recipe, write_world
from twofold.dataset.dataset import load_dataset
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.window import DayBounds, evaluation_window
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import catalogue_scores
from twofold.recipe.train import InBatchSoftmax
from twofold.tables import DAY_MS, HOUR_MS

pytestmark = pytest.mark.slow

USERS, ITEMS, HOURS = 96, 120, 24
NOBODY = {"kind": "history", "events": "negatives", "max_length": 5}  # of users who like all: all users are equal


def write_hours(folder: Path, features, *, same_every_day):
    """Returns a recipe over a log in which five items are liked in each hour, and an item in one hour of each day.

    Others view the five in the hour before. A user likes four of them, in one hour of each day. The five of each hour
    are drawn once for all days, or again for each day.
    """
    draw = np.random.default_rng(5)
    plan = draw.permutation(ITEMS).reshape(HOURS, -1)
    lines = []
    for day in (*TRAIN_DAYS, VALIDATION, TEST):
        plan = plan if same_every_day else draw.permutation(ITEMS).reshape(HOURS, -1)
        for hour, items in enumerate(plan):
            begins = day * DAY_MS + hour * HOUR_MS
            lines += [(USERS + view, item, begins - HOUR_MS + 1, False) for item in items for view in range(12)]
        for user, hour in enumerate(draw.permutation(USERS) % HOURS):
            at = day * DAY_MS + hour * HOUR_MS + draw.choice(HOUR_MS, size=4, replace=False)
            liked = draw.choice(plan[hour], size=4, replace=False)
            lines += [(user, item, moment, True) for item, moment in zip(liked, at, strict=True)]
    prepare = {"positive": "liked", "split": SPLIT, "counters": {"item_id": {"rates": {"like": "liked"}}}}
    parts = {"prepare": prepare, "features": features}
    return world_recipe(write_world(folder, events_of(lines, draw), items_of(ITEMS)), parts)


def recall_after_training(recipe, folder, **changes):
    """Returns recall@10 on the day of test, with items as of the first request of each hour: an index an hour."""
    job = pipeline.Job(recipe, folder / "run")
    dataset = load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)
    model = last_epoch(recipe, dataset, folder, **({"batch_size": 16, "epochs": 4} | changes))
    begins = FIRST_MS + TEST * DAY_MS + HOUR_MS * np.arange(HOURS + 1)
    hours = [DayBounds("an hour", int(at), int(end)) for at, end in pairwise(begins)]
    windows = [evaluation_window(dataset, "test", hour) for hour in hours]
    found = [evaluate_catalogue(window, catalogue_scores(model, dataset, window), ks=(10,)) for window in windows]
    return np.mean([values.mean("catalogue/recall@10") for values in found])


@pytest.mark.parametrize(("hours", "learns"), [(1, True), (24, False)])
def test_a_counter_of_the_last_hour_finds_what_is_liked_in_this_one(hours, learns, tmp_path):
    # In mixed batches each item has the counts of the hour in which it is liked, so that all look equally popular and
    # the sign of the counter's weight is left to chance.
    counter = {"kind": "counter", "key": "item_id", "statistic": "events", "hours": hours, "hidden_dim": 8}
    recipe = write_hours(tmp_path / "log", {"user": [NOBODY], "item": [counter]}, same_every_day=False)
    loss = InBatchSoftmax(kind="in_batch_softmax", uniform_negatives=64)
    found = recall_after_training(recipe, tmp_path, group_by_time="hour", loss=loss)
    assert found > 0.9 if learns else found < 0.7, found


@pytest.mark.parametrize("part", ["hour", "weekday"])
def test_the_hour_of_a_request_finds_what_is_liked_in_it_every_day(part, tmp_path):
    features = {"user": [NOBODY, {"kind": "time", "part": part}], "item": [{"kind": "id"}]}
    recipe = write_hours(tmp_path / "log", features, same_every_day=True)
    found = recall_after_training(recipe, tmp_path, epochs=6)
    assert found > 0.9 if part == "hour" else found < 0.2, found
