"""Checks before training: a stage that comes later and cannot do its work ends the run at once."""

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import worlds
from twofold import errors
from twofold.pipeline.dataset import build_dataset
from twofold.pipeline.early_checks import check_later_stages
from twofold.pipeline.job import Job
from twofold.pipeline.prepare import prepare
from twofold.pipeline.run import run_job
from twofold.pipeline.train import train
from twofold.recipe.schema import Recipe
from twofold.run_folder import Stage

BRIEF = {"epochs": 1, "batch_size": 128}
LATER = worlds.FIRST + timedelta(days=worlds.AFTER)
"""A day of the test window on which nothing happened."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Returns a small checkerboard whose test window has a second day without events."""
    tree = worlds.checkerboard(tmp_path_factory.mktemp("log"), num_users=48, num_items=32).model_dump()
    tree["prepare"]["split"]["test"]["end"] = LATER + timedelta(days=1)
    return Recipe.model_validate(tree | {"train": BRIEF})


@pytest.fixture(scope="module")
def dataset(world: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    job = Job(world, tmp_path_factory.mktemp("run"))
    return build_dataset(job, prepare(job))


def changed(recipe: Recipe, **parts: object) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rerank": {"rules": [{"kind": "pin", "item": 999, "place": 1}]}}, "item 999 is pinned, and none of the 32"),
        ({"rerank": {"rules": [{"kind": "block", "when": "item_id >= 0"}]}}, "is true for none of the 32 items"),
        ({"index": {"where": "item_id < 0"}}, "index.where: item_id < 0 is true for none of the 32 items"),
        ({"evaluate": {"windows": [LATER - timedelta(days=1), LATER]}}, f"window '{LATER}' contains no event"),
        (
            {"evaluate": {"sampled": [{"kind": "drawn", "draw": "uniform", "count": 99}]}},
            "items left to draw 99 negatives from",
        ),
        (
            {"ranker": {"kind": "mlp", "best_epoch_by": "xauc"}},
            "none of the 48 users of the validation window has impressions of different watch times",
        ),
    ],
)
def test_what_ends_a_later_stage_is_said_before_training(
    world: Recipe, dataset: Stage, parts: dict, message: str
) -> None:
    with pytest.raises(errors.TwofoldError, match=message):
        check_later_stages(changed(world, **parts), dataset)


def test_published_negatives_of_another_form_are_found_before_training(
    world: Recipe, dataset: Stage, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"user_id": [1], "item": [2]}), path := tmp_path / "negatives.parquet")
    data = world.data.model_dump() | {"published_negatives": path}
    recipe = changed(world, data=data, evaluate={"sampled": [{"kind": "published"}]})
    with pytest.raises(errors.DataError, match=r"Its columns are user_id, item\."):
        check_later_stages(recipe, dataset)


def test_what_every_stage_can_do_passes(world: Recipe, dataset: Stage) -> None:
    rules = [{"kind": "pin", "item": 3, "place": 1}, {"kind": "block", "items": [5]}]
    check_later_stages(changed(world, rerank={"rules": rules}, index={"where": "item_id > 0"}), dataset)


def test_auc_of_users_who_saw_no_negative_is_refused_before_an_epoch(world: Recipe, tmp_path: Path) -> None:
    tree = world.model_dump() | {"train": BRIEF | {"best_epoch_by": "auc"}}
    tree["prepare"]["where"] = "liked"
    job = Job(Recipe.model_validate(tree), tmp_path)
    arrays = build_dataset(job, prepare(job))
    with pytest.raises(errors.DataError, match="none of the 48 users of the validation window was shown both"):
        train(job, arrays)
    assert not list(tmp_path.glob("train.partial/*.pt"))


@pytest.mark.parametrize("refit", [False, True])
def test_a_run_ends_before_it_trains(world: Recipe, tmp_path: Path, refit: bool) -> None:
    made: list[str] = []
    settings = BRIEF | {"refit": refit}
    recipe = changed(world, train=settings, index={"where": "item_id < 0"})
    with pytest.raises(errors.RecipeError, match="is true for none"):
        run_job(Job(recipe, tmp_path, on_stage_done=lambda stage: made.append(stage.folder.name)))
    assert made == ["prepare", "dataset"]
