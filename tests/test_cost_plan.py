"""The cost of a run before it starts, against the run that it was fitted on and one of three times the size."""

import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests import worlds
from twofold import cost_plan
from twofold.cli.main import app
from twofold.cost_plan import RunCost, Scale, limits, run_cost, stage_costs
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.recipe.schema import Recipe

ROOT = Path(__file__).parents[1]
RUNS: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "scale.json").read_text(encoding="utf-8"))["runs"]
FITTED, LARGEST = (next(run for run in RUNS if run["rows"] == rows * 10**6) for rows in (30, 100))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """A recipe with the features of the benchmark: two histories and ids, 64 wide, one epoch."""
    given = load_recipe(ROOT / "recipes" / "kuairand.yaml").model_dump()
    histories = [{"kind": "history", "events": events, "max_length": 100} for events in ("positives", "negatives")]
    features = {"user": histories, "item": [{"kind": "id"}]}
    return Recipe.model_validate(
        given | {"features": features, "retriever": {"kind": "two_tower"}, "train": {"epochs": 1}, "ranker": None}
    )


def step_seconds(run: dict[str, Any]) -> float:
    """Returns the processor time of all steps of a training and of reading their batches."""
    return float(run["train"]["step_processor_s"] + run["train"]["read_processor_s"])


def step_us(run: dict[str, Any]) -> float:
    return step_seconds(run) / float(run["train"]["trained"]) * 1e6


def test_the_constants_are_those_of_the_run_of_thirty_million_rows() -> None:
    rows, train = FITTED["rows"], FITTED["train"]
    assert pytest.approx(FITTED["prepare"]["processor_s"] / rows * 1e6, rel=0.01) == cost_plan.PREPARE_US
    assert pytest.approx(FITTED["dataset"]["processor_s"] / rows * 1e6, rel=0.01) == cost_plan.DATASET_US
    ten = next(run for run in RUNS if run["rows"] == 10**7)
    for stage, more in (("prepare", cost_plan.PREPARE_US_A_DECADE), ("dataset", cost_plan.DATASET_US_A_DECADE)):
        us = [run[stage]["processor_s"] / run["rows"] * 1e6 for run in (ten, FITTED)]
        assert pytest.approx((us[1] - us[0]) / math.log10(3), rel=0.02) == more
    millions = [run["train"]["parameters"] / 1e6 for run in (ten, FITTED)]
    slope = (step_us(FITTED) - step_us(ten)) / (millions[1] - millions[0])
    assert pytest.approx(slope, rel=0.01) == cost_plan.TRAIN_US_A_MILLION
    assert pytest.approx(step_us(FITTED) - slope * millions[1], rel=0.01) == cost_plan.TRAIN_US
    assert pytest.approx(train["examples"] / rows, rel=0.01) == cost_plan.EXAMPLES_A_ROW
    for stage, bytes_ in (("prepare", cost_plan.PREPARE_BYTES), ("dataset", cost_plan.DATASET_BYTES)):
        assert pytest.approx(FITTED[stage]["disk"] / rows, rel=0.01) == bytes_


def test_the_prediction_for_three_times_the_rows_is_near_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    found = runpy.run_path(str(ROOT / "benchmarks" / "scale.py"))["predictions"](LARGEST)
    assert len(found) == 8
    for name, (predicted, measured) in found.items():
        assert 1 / 1.15 < predicted / measured < 1.15, name


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


def test_a_step_costs_no_more_from_the_size_on_at_which_tables_are_lazy(recipe: Recipe) -> None:
    lazy_from = 10.0 * recipe.train.batch_size * 100  # both histories have 100 places
    hours = [
        stage_costs(recipe, Scale(1e9, 1e6, items))[2].processor_h for items in (lazy_from / 2, lazy_from, 1e7, 1e8)
    ]
    assert hours[0] < hours[1] == hours[2] == hours[3]


def test_a_second_fit_and_further_pairs_of_towers_cost_as_much_again(recipe: Recipe) -> None:
    def hours(**changes: Any) -> list[float]:
        given = Recipe.model_validate(recipe.model_dump() | changes)
        return [cost.processor_h for cost in stage_costs(given, Scale(1e8, 1e6, 1e5))]

    prepare, dataset, train = hours()
    assert hours(train={"epochs": 1, "refit": True}) == pytest.approx([prepare, 2 * dataset, 2 * train])
    assert hours(retriever={"kind": "two_tower", "ensemble": 3}) == pytest.approx([prepare, dataset, 3 * train])


def test_limits_of_ids_are_limits_of_the_tables(recipe: Recipe) -> None:
    def parameters(size: float, **changes: Any) -> float:
        features = recipe.features.model_dump() | changes
        given = Recipe.model_validate(recipe.model_dump() | {"features": features})
        return cost_plan.table_parameters(given, items=size, users=1e5, examples=1e6)

    assert parameters(1e6) == 3 * 1e6 * 64  # of the ids, and of two histories
    few = {"min_count": 10, "shared_rows": 50}
    assert parameters(1e6, item_ids=few) == 3 * 100_050 * 64
    assert parameters(1e4, item_ids=few) == 3 * 1e4 * 64  # no more than there are
    assert parameters(1e6, item=[{"kind": "id", "num_buckets": 500}]) == (2 * 1e6 + 500) * 64
    users = [*recipe.features.model_dump()["user"], {"kind": "id"}]
    assert parameters(1e6, user=users) == (3 * 1e6 + 1e5) * 64
    assert parameters(1e6, user=users, user_ids={"min_count": 100}) == (3 * 1e6 + 1e4) * 64


def test_the_command_says_what_breaks_first(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--rows", "3e9", "--users", "1e8", "--items", "1e7", "--machines", "16"]
    app(["plan", str(ROOT / "recipes" / "kuairand.yaml"), *size], standalone_mode=False)
    output = capsys.readouterr().out
    assert output.index("prepare") < output.index("dataset") < output.index("train") < output.index("breaks: ")
    small = ["--rows", "1e6", "--users", "1e4", "--items", "1e4"]
    app(["plan", str(ROOT / "recipes" / "kuairand.yaml"), *small], standalone_mode=False)
    output = capsys.readouterr().out
    assert "train is that of the towers: item-kNN, EASE and iALS of kind best come on top" in output
    assert "nothing breaks; the tightest is " in output
    assert "have rows in tables of ids" not in output
    app(["plan", str(ROOT / "recipes" / "kuairand-ials.yaml"), *small], standalone_mode=False)
    assert "a retriever of kind ials was not measured" in capsys.readouterr().out
    limited = ["--set", "features.item_ids.min_count=100"]
    app(["plan", str(ROOT / "recipes" / "kuairand.yaml"), *small, *limited], standalone_mode=False)
    assert "items: at most 2,511 of 10,000 have rows in tables of ids (251,100 examples, at" in capsys.readouterr().out


# --- whole runs -------------------------------------------------------------------------------------------------------

WHOLE_RUNS: dict[str, dict[str, Any]] = json.loads((ROOT / "benchmarks" / "run_cost.json").read_text(encoding="utf-8"))[
    "runs"
]


def predicted(run: dict[str, Any]) -> RunCost:
    given = load_recipe(ROOT / "recipes" / "kuairand.yaml")
    train = {name: run[name] for name in ("epochs", "patience", "refit", "batch_size")}
    given = given.model_copy(update={"train": given.train.model_copy(update=train)})
    cost = run_cost(given, **{name: run[name] for name in ("rows", "examples", "users", "items")})
    assert cost is not None
    return cost


@pytest.mark.parametrize("name", WHOLE_RUNS)
def test_a_whole_run_takes_what_it_says_within_a_factor_of_two(name: str) -> None:
    run = WHOLE_RUNS[name]
    cost, measured = predicted(run), sum(stage["processor_s"] for stage in run["stages"].values())
    assert 1 / 2 < cost.seconds / measured < 2, (cost, measured)
    assert cost.seconds <= cost.most_s > measured / 2
    assert 1 / 2 < cost.memory_gb / run["peak_gb"] < 2, (cost, run["peak_gb"])


def test_the_usual_epochs_are_those_of_the_runs_with_patience() -> None:
    trained = [run["trained_epochs"] for run in WHOLE_RUNS.values() if run["patience"] is not None]
    assert len(trained) >= 5
    assert tuple(sorted(each)[len(each) // 2] for each in zip(*trained, strict=True)) == cost_plan.USUAL_EPOCHS


@pytest.mark.parametrize("recipe", ["kuairand-ials", "kuairand-ranked", "movielens/ml-1m-sequence"])
def test_a_run_unlike_the_measured_ones_has_no_prediction(recipe: str) -> None:
    given = load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    assert run_cost(given, rows=10**6, examples=10**5, users=10**4, items=10**4) is None


def test_a_brief_report_has_no_prediction_since_most_of_the_rest_is_left_out() -> None:
    counts = {"rows": 10**6, "examples": 10**5, "users": 10**4, "items": 10**4}
    whole, brief = (
        load_recipe(ROOT / "recipes" / "kuairand.yaml", overrides=[f"evaluate.brief={value}"])
        for value in ("false", "true")
    )
    assert run_cost(whole, **counts) is not None
    assert run_cost(brief, **counts) is None


@pytest.mark.slow
@pytest.mark.usefixtures("small_ials")
def test_a_run_says_what_it_takes_before_it_trains_and_not_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(worlds.checkerboard(tmp_path / "log", num_users=48, num_items=32)), encoding="utf-8")
    command = ["run", str(path), "--runs", str(tmp_path / "runs"), "--set", "train.epochs=1"]
    app(command, standalone_mode=False)
    said = capsys.readouterr().err
    assert said.index("roughly") < said.index("✓ prepare") < said.index("this run") < said.index("✓ dataset")
    assert re.search(r"roughly +about \d+ s on one .* GB of memory; estimated from 1,056 events of the whole log", said)
    assert re.search(r"this run +about \d+ s on one idle core.* GB of memory; estimated from [\d,]+ examples", said)
    app(command, standalone_mode=False)
    said = capsys.readouterr().err
    assert "this run" not in said
    assert "roughly" not in said
