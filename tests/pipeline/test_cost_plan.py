"""The cost of a run before it starts, against the run that it was fitted on and one of twice the size."""

import json
from pathlib import Path
from typing import Any

import pytest

from twofold.cli.main import app
from twofold.pipeline import cost_plan
from twofold.pipeline.cost_plan import Scale, limits, stage_costs
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
RUNS: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "scale.json").read_text(encoding="utf-8"))["runs"]
FITTED, LARGEST = next(run for run in RUNS if run["rows"] == 3_000_000), max(RUNS, key=lambda run: run["rows"])


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """A recipe with the features of the benchmark: two histories and ids, 64 wide, one epoch."""
    given = load_recipe(ROOT / "recipes" / "kuairand.yaml").model_dump()
    histories = [{"kind": "history", "events": events, "max_length": 100} for events in ("positives", "negatives")]
    features = {"user": histories, "item": [{"kind": "id"}]}
    return Recipe.model_validate(
        given | {"features": features, "retriever": {"kind": "two_tower"}, "train": {"epochs": 1}, "ranker": None}
    )


def test_the_constants_are_those_of_the_run_of_three_million_rows() -> None:
    rows, train = FITTED["rows"], FITTED["train"]
    assert pytest.approx(FITTED["prepare"]["processor_s"] / rows * 1e6, rel=0.01) == cost_plan.PREPARE_US
    assert pytest.approx(FITTED["dataset"]["processor_s"] / rows * 1e6, rel=0.01) == cost_plan.DATASET_US
    assert pytest.approx(train["processor_s"] / train["examples"] * 1e6, rel=0.01) == cost_plan.TRAIN_US
    assert pytest.approx(train["examples"] / rows, rel=0.01) == cost_plan.EXAMPLES_A_ROW
    for stage, bytes_ in (("prepare", cost_plan.PREPARE_BYTES), ("dataset", cost_plan.DATASET_BYTES)):
        assert pytest.approx(FITTED[stage]["disk"] / rows, rel=0.01) == bytes_


def test_the_prediction_for_a_larger_run_is_within_a_factor_of_one_and_a_half(recipe: Recipe) -> None:
    assert LARGEST["rows"] >= 2 * FITTED["rows"]
    size = LARGEST["rows"], LARGEST["dataset"]["users"], LARGEST["dataset"]["items"]
    predicted = stage_costs(recipe, Scale(*(float(each) for each in size), memory_gb=2.0))
    assert {"prepare", "dataset"} <= LARGEST.keys()
    for cost in (cost for cost in predicted if cost.name in LARGEST):
        measured = LARGEST[cost.name]
        assert 1 / 1.5 < cost.processor_h * 3600 / measured["processor_s"] < 1.5, cost
        assert cost.memory_gb / measured["peak_gb"] < 1.5, cost
        if cost.name != "dataset":  # of whose peak a third is pages of files, which the system can take back
            assert cost.memory_gb / measured["peak_gb"] > 1 / 1.5, cost
    arrays = predicted[1]
    assert 1 / 1.15 < arrays.disk_gb * 1e9 / LARGEST["dataset"]["disk"] < 1.15


def test_what_is_exceeded_most_comes_first(recipe: Recipe) -> None:
    scale = Scale(3e9, 1e8, 1e7, machines=16, memory_gb=32.0)
    found = limits(scale, stage_costs(recipe, scale))
    assert [limit.times for limit in found] == sorted((limit.times for limit in found), reverse=True)
    assert found[0].times > 1
    small = Scale(1e6, 1e4, 1e4)
    assert limits(small, stage_costs(recipe, small))[0].times < 1


def test_costs_grow_with_the_log_and_shrink_with_machines(recipe: Recipe) -> None:
    one, many = (stage_costs(recipe, Scale(3e9, 1e8, 1e7, machines=machines)) for machines in (1, 16))
    assert [cost.processor_h for cost in one] == [cost.processor_h for cost in many]
    assert one[0].disk_gb > 10 * many[0].disk_gb
    assert one[1] == many[1]  # one process writes the arrays, whatever there is


def test_the_command_says_what_breaks_first(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--rows", "3e9", "--users", "1e8", "--items", "1e7", "--machines", "16"]
    app(["plan", str(ROOT / "recipes" / "kuairand.yaml"), *size], standalone_mode=False)
    output = capsys.readouterr().out
    assert output.index("prepare") < output.index("dataset") < output.index("train") < output.index("breaks: ")
    small = ["--rows", "1e6", "--users", "1e4", "--items", "1e4"]
    app(["plan", str(ROOT / "recipes" / "kuairand.yaml"), *small], standalone_mode=False)
    assert "nothing breaks; the tightest is " in capsys.readouterr().out
