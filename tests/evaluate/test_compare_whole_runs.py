"""Whole runs of one log: which of them are compared, and what differs in those that are refused."""

import json
import re

import pytest

from tests import worlds
from twofold.errors import RequestError
from twofold.evaluate.compare import compare_runs
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.run_folder import locked

TRAIN = {"train": {"epochs": 1, "batch_size": 32, "learning_rate": 0.02, "seed": 0}, "evaluate": {"brief": True}}

SHORT_HISTORY_AND_HOUR = [
    {"kind": "history", "events": "positives", "max_length": 3},
    {"kind": "time", "part": "hour"},
]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Runs and evaluates the recipe of one log with these overrides → the evaluate/ folder."""
    folder = tmp_path_factory.mktemp("runs")
    data = worlds.checkerboard(folder / "log", num_users=48, num_items=32).data.model_dump()
    (folder / "recipe.yaml").write_text(dump_recipe(worlds.world_recipe(data, TRAIN)), encoding="utf-8")

    def run(name, *overrides):
        job = pipeline.Job(load_recipe(folder / "recipe.yaml", overrides=list(overrides)), folder / name)
        with locked(job.folder):
            claim_folder(job, overwrite=False)
            pipeline.evaluate(job, *pipeline.up_to_training(job))
        return job.folder / "evaluate"

    return run


@pytest.fixture(scope="module")
def base(evaluated):
    return evaluated("base")


@pytest.mark.parametrize(
    ("override", "differing", "cure"),
    [
        (
            "index.include_seen=true",
            "whether seen items are ranked (True here, False in the base run)",
            "index.include_seen (true here, false in the base run)",
        ),
        (
            "prepare.where=liked",
            "the users or the items that are ranked for each of them, the users' own impressions or their labels",
            'prepare.where ("liked" here, null in the base run)',
        ),
        (
            "prepare.where=liked OR item_id < 8",
            "the users or the items that are ranked for each of them, the users' own impressions or their labels",
            'prepare.where ("liked OR item_id < 8" here, null in the base run)',
        ),
    ],
)
def test_runs_with_the_same_items_to_find_among_others_are_refused(evaluated, base, override, differing, cure):
    run = evaluated(re.sub(r"\W+", "-", override), override)
    message = f"cannot be compared, because their evaluations differ in {differing}. Give both the same {cure}."
    with pytest.raises(RequestError, match=re.escape(message)):
        compare_runs(run, base)


def test_runs_that_differ_in_the_model_and_its_training_are_compared(evaluated, base):
    run = evaluated(
        "other",
        f"features.user={json.dumps(SHORT_HISTORY_AND_HOUR)}",
        "prepare.negative=NOT liked",
        'prepare.filters=[{"kind": "items", "min_events": 4}]',
        "retriever.ensemble=2",
    )
    assert {line.metric for line in compare_runs(run, base).metrics} >= {"catalogue/recall@10", "impressions/auc"}
