"""A search over a recipe: what is tried, what is refused, what goes on after a kill, and that nobody looks ahead."""

import os
from pathlib import Path

import pytest
import yaml

from tests import worlds
from twofold.errors import RecipeError, RunError
from twofold.pipeline import adapters
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.run_folder import Stage
from twofold.runs import VALIDATION, list_runs

pytest.importorskip("optuna")

from twofold import tune as tune_module  # noqa: E402
from twofold.tune import Search, command_of, tune  # noqa: E402

RANGES = {
    "train.learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
    "retriever.dim": {"low": 2, "high": 8},
    "features.user.0.max_length": {"choices": [5, 50]},
}
TRAIN = {"epochs": 1, "batch_size": 128, "learning_rate": 0.01, "seed": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return worlds.checkerboard(tmp_path_factory.mktemp("log"), num_users=48, num_items=32)


@pytest.fixture
def search_of(world, tmp_path):
    """Writes a recipe with a part `tune` → the search over it."""

    def write(ranges=RANGES, *, trials=3, name="found", settings=(), **parts):
        tree = (
            yaml.safe_load(dump_recipe(world)) | {"train": TRAIN, "tune": {"ranges": ranges, "trials": trials}} | parts
        )
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return Search(path, tuple(settings), tmp_path / "runs" / f"{name}.tune")

    return write


def test_each_trial_is_a_run_and_the_best_is_first(search_of):
    search, heard = search_of(trials=4), []
    trials = tune(search, on_trial_done=heard.append)
    assert [trial.number for trial in heard] == [0, 1, 2, 3]
    files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert not [name for name in files if name.startswith(str(search.folder))]
    values = [trial.value for trial in trials]
    assert values == sorted(values, reverse=True)
    listed = {line.name: line for line in list_runs(search.folder)}
    for trial in trials:
        recipe = load_recipe(trial.folder / "recipe.yaml")
        values = {field: float(value) for field, _, value in (change.partition("=") for change in trial.changes)}
        assert recipe.train.learning_rate == values["train.learning_rate"]
        assert 1e-4 <= recipe.train.learning_rate <= 3e-2
        assert recipe.retriever.dim == values["retriever.dim"]
        assert recipe.features.user[0].max_length in (5, 50)
        assert listed[trial.folder.name].stage == "train"
        assert listed[trial.folder.name].metrics == {VALIDATION: trial.value}


def test_the_test_window_is_not_looked_at(search_of, monkeypatch):
    looked, evaluation_window = [], adapters.evaluation_window
    monkeypatch.setattr(
        adapters,
        "evaluation_window",
        lambda arrays, name, *day, **how: looked.append(name) or evaluation_window(arrays, name, *day, **how),
    )
    search = search_of({"retriever.dim": {"choices": [2, 4]}}, trials=2)
    tune(search)
    assert looked == ["validation"] * 2
    assert not list(search.folder.rglob("evaluate"))


def test_the_log_is_prepared_once_and_arrays_once_for_each_set_of_features(search_of):
    search = search_of(trials=4)
    tune(search)
    prepared = {path.stat().st_ino for path in search.folder.rglob("prepare/manifest.json")}
    assert len(prepared) == 1
    lasts = {load_recipe(path).features.user[0].max_length for path in search.folder.glob("trial-*/recipe.yaml")}
    assert len({path.stat().st_ino for path in search.folder.rglob("dataset/manifest.json")}) == len(lasts)


def test_a_trial_below_the_median_is_pruned_and_its_number_counts_for_nothing(search_of, monkeypatch):
    epochs = [[0.5, 0.5, 0.5], [0.6, 0.6, 0.6], [0.9, 0.1, 0.2], [0.1, 0.2, 0.7], [0.6, 0.7, 0.8]]

    def train(job, dataset):
        heard = epochs[int(job.folder.name.removeprefix("trial-"))]
        for value in heard:
            job.on_validation(value)
        facts = {"epochs": [{"validation": value} for value in heard], "best_epoch": 2}
        return Stage(job.folder / "train", "", facts, 0.0, was_reused=False)

    monkeypatch.setattr(tune_module, "train", train)
    monkeypatch.setattr(tune_module, "_TO_COMPARE", 2)
    trials = {
        trial.number: trial for trial in tune(search_of({"train.learning_rate": {"low": 0.01, "high": 0.02}}, trials=5))
    }
    assert list(trials)[:3] == [4, 1, 0]  # the best first
    # The median after the first two is .55: trial 2 was above it once, and trial 3 not by its second epoch.
    assert {number: trial.value for number, trial in trials.items()} == {0: 0.5, 1: 0.6, 2: 0.2, 3: None, 4: 0.8}
    assert trials[3].reason == "pruned after epoch 2, at 0.2000"


@pytest.mark.parametrize(("values", "found"), [({"choices": [2, 4]}, 2), ({"low": 2, "high": 9}, 4)])
def test_no_values_are_trained_with_twice(search_of, monkeypatch, values, found):
    trained, heard = [], []

    def train(job, dataset):
        trained.append(job.recipe.retriever.dim)
        facts = {"epochs": [{"validation": job.recipe.retriever.dim / 10}], "best_epoch": 0}
        return Stage(job.folder / "train", "", facts, 0.0, was_reused=False)

    monkeypatch.setattr(tune_module, "train", train)
    trials = tune(search_of({"retriever.dim": values}, trials=7), on_trial_done=heard.append)
    assert len(trained) == len(set(trained)) == len(trials) == len(heard) == found
    assert [trial.value for trial in trials] == [dim / 10 for dim in sorted(trained, reverse=True)]
    assert [trial.folder.exists() for trial in trials] == [True] * found


def test_a_trial_trains_one_pair_of_towers_and_no_peers(search_of, monkeypatch):
    trained = []

    def train(job, dataset):
        trained.append(job.recipe.retriever)
        facts = {"epochs": [{"validation": 0.5}], "best_epoch": 0}
        return Stage(job.folder / "train", "", facts, 0.0, was_reused=False)

    monkeypatch.setattr(tune_module, "train", train)
    best = {"kind": "best", "dim": 8, "ensemble": 3}
    search = search_of(trials=1, retriever=best)
    (trial,) = tune(search)
    tune(search_of(trials=1, retriever=best | {"start_from": "ials"}, name="started"))
    assert [(each.kind, each.ensemble) for each in trained] == [("two_tower", 1), ("best", 1)]
    assert search.recipe(trial.changes).retriever.ensemble == 3  # in the run of the best trial


@pytest.mark.slow
def test_a_search_that_was_killed_ends_as_one_that_was_not(search_of, monkeypatch):
    whole = [trial.changes for trial in tune(search_of(name="whole"))]
    cut, train, calls = search_of(name="cut"), tune_module.train, []

    def killed(job, dataset, **others):
        calls.append(job.folder.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(job, dataset, **others)

    monkeypatch.setattr(tune_module, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(cut)
    assert [trial.changes for trial in tune(cut)] == whole
    assert calls == ["trial-000", "trial-001", "trial-001", "trial-002"]
    tune(search_of(name="cut", trials=4))
    assert calls[4:] == ["trial-003"]


@pytest.mark.parametrize(("retriever", "again"), [({"kind": "ials", "dim": 4}, 0), ({"kind": "two_tower"}, 2)])
def test_a_killed_trial_reports_each_epoch_once(search_of, monkeypatch, retriever, again):
    values, calls = [0.1, 0.2, 0.3, 0.4], []

    def train(job, dataset):
        """Trains towers on from the checkpoint of two epochs, and iALS, which has none, from its beginning."""
        calls.append(job.folder.name)
        for value in values[:2] if len(calls) == 1 else values[again:]:
            job.on_validation(value)
        if len(calls) == 1:
            raise KeyboardInterrupt
        facts = {"epochs": [{"validation": value} for value in values], "best_epoch": 3}
        return Stage(job.folder / "train", "", facts, 0.0, was_reused=False)

    monkeypatch.setattr(tune_module, "train", train)
    search = search_of({"retriever.dim": {"low": 2, "high": 8}}, trials=1, retriever=retriever)
    with pytest.raises(KeyboardInterrupt):
        tune(search)
    tune(search)
    with tune_module._storage(search.folder) as storage:
        (trial,) = tune_module.optuna.load_study(study_name="tune", storage=storage).trials
        assert trial.intermediate_values == dict(enumerate(values))


def test_the_best_trial_is_run_in_full_by_the_command(search_of):
    search = search_of({"retriever.dim": {"choices": [2, 4]}}, trials=1, settings=("train.seed=1",))
    (trial,) = tune(search)
    (change,) = trial.changes
    command = command_of(search, trial)
    assert command.startswith(f"twofold run {search.path} --set train.seed=1 --set {change} --runs ")
    assert command.endswith("--run found.best")
    assert load_recipe(trial.folder / "recipe.yaml").train.seed == 1


@pytest.mark.slow
def test_a_choice_may_be_a_mapping_and_one_that_does_not_fit_the_others_ends_its_trial_alone(search_of):
    losses = [{"kind": "bpr", "negatives": 8}, {"kind": "in_batch_softmax"}]
    search = search_of({"train.loss": {"choices": losses}}, trials=2)
    assert all(trial.value is not None for trial in tune(search))
    hard = {"choices": [None, {"skip": 0, "top": 5}]}
    ranges = {"train.loss": {"choices": [{"kind": "full_softmax"}, {"kind": "bpr"}]}, "train.hard_negatives": hard}
    search = search_of(ranges, trials=8, name="unfit")
    failed = [trial for trial in tune(search) if trial.value is None]
    assert failed
    assert all("hard_negatives are added to drawn negatives" in trial.reason for trial in failed)


@pytest.mark.parametrize(
    ("ranges", "says"),
    [
        (
            {"train.learning_rat": {"low": 1, "high": 2}},
            r"tune\.ranges: --set train\.learning_rat=1: .*nearest: learning_rate",
        ),
        ({"retriever.dim": {"low": 16, "high": 9999}}, r"retriever\.dim=9999: .*must be at most 4096"),
        ({"retriever.dim": {"low": 16.0, "high": 32.0}}, r"retriever\.dim: is 16\.0 — must be a whole number"),
        ({"features.user.3.max_length": {"choices": [1, 2]}}, r"features\.user has no element 3"),
        ({"retriever.dim": {"low": 32, "high": 16}}, r"low is 32 and high is 16: low must be below high"),
        ({"train.learning_rate": {"low": 0, "high": 1, "log": True}}, r"low is 0, which has no logarithm"),
        ({"retriever.dim": {"low": 1}}, r"write low and high, or choices"),
        ({"retriever.dim": {"choices": [1]}}, r"one choice leaves nothing to search"),
        ({"retriever.dim": {"choices": [1, 2], "low": 1}}, r"choices cannot be combined"),
        (
            {"prepare.positive": {"choices": ["liked", "TRUE"]}},
            r"prepare\.positive cannot be searched over.*features, retriever, train",
        ),
        (
            {"train.best_epoch_by": {"choices": ["recall", "auc"]}},
            r"train\.best_epoch_by cannot be searched over: its values are different metrics\. Write one of them",
        ),
        (
            {"retriever.ensemble": {"choices": [1, 2]}},
            r"retriever\.ensemble cannot be searched over: trials are compared by one pair of towers, not by what is",
        ),
        (
            {"retriever": {"choices": [1, 2]}, "retriever.dim": {"low": 1, "high": 2}},
            r"retriever\.dim is a part of retriever",
        ),
        (
            {"train": {"choices": [{"best_epoch_by": "auc"}, {"best_epoch_by": "recall"}]}},
            r"the choices of train differ in best_epoch_by, so their trials do not compare\. Write the same",
        ),
        (
            {"retriever": {"choices": [{"kind": "best"}, {"kind": "two_tower"}]}},
            r"the choices of retriever differ in kind, so their trials do not compare",
        ),
        ({}, r"tune\.ranges: is \{\} — must hold at least 1"),
    ],
)
def test_a_range_that_cannot_be_is_refused_before_anything_is_made(search_of, ranges, says):
    search = search_of(ranges)
    with pytest.raises(RecipeError, match=says):
        tune(search)
    assert not search.folder.exists()


def test_a_recipe_without_ranges_and_a_folder_of_another_search_are_refused(search_of, world):
    search = search_of(tune=None)
    with pytest.raises(RecipeError, match=r"has no section tune, so nothing can be searched"):
        tune(search)
    tune(search_of({"retriever.dim": {"choices": [2, 4]}}, trials=1))
    with pytest.raises(RunError, match=r"found\.tune holds a search over other ranges: .*--run NAME, or delete it"):
        tune(search_of({"retriever.dim": {"choices": [2, 8]}}, trials=1))
    with pytest.raises(
        RunError, match=r"holds a run of another recipe. It differs in train\.seed: 0 → 7.*, or delete it\."
    ):
        tune(search_of({"retriever.dim": {"choices": [2, 4]}}, trials=1, settings=("train.seed=7",)))


def test_a_search_in_which_nothing_succeeds_says_why(search_of):
    search = search_of({"train.seed": {"low": 0, "high": 9}}, trials=2, train=TRAIN | {"learning_rate": 1e30})
    with pytest.raises(RunError, match=r"none of 2 trials in .* succeeded; the last failed: training diverged"):
        tune(search)
