"""The table of runs: what each folder says, whatever state it is in."""

import json

import pytest

from twofold.errors import RequestError
from twofold.run_folder import run_stage
from twofold.runs import group_runs, list_runs


def begun(folder, digest="abc"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(f"name: {folder.name}")
    (folder / "run.json").write_text(json.dumps({"recipe_digest": digest}))
    return folder


def judged(folder, *, primary_metric="catalogue/recall@100", dates="2022-05-08", users=300, **metrics):
    """A run with a report; `recall=.5` is its primary metric's value."""
    setup = {"dates": dates, "users": users, "num_items": 60}
    named = {primary_metric if name == "recall" else name: value for name, value in metrics.items()}

    def work(out):
        (out / "report.json").write_text(json.dumps({"primary_metric": primary_metric, "question": setup}))
        return {"metrics": named}

    run_stage(begun(folder), "evaluate", inputs=1, work=work)


def names(group):
    return [run.name for run in group.runs]


def test_no_folder_is_an_empty_table(tmp_path):
    assert list_runs(tmp_path / "nowhere") == []
    assert group_runs([]) == []


def test_a_run_that_has_done_nothing_yet_is_listed(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("name: begun")
    (tmp_path / "begun" / "run.json").write_text("{")
    (line,) = list_runs(tmp_path)
    assert (line.name, line.stage, line.seconds, line.metrics, line.recipe_digest) == ("begun", "–", 0.0, {}, "?")
    assert line.changed_at is None


def test_tables_with_a_recipe_are_no_run(tmp_path):
    (tmp_path / "world" / "events").mkdir(parents=True)
    (tmp_path / "world" / "recipe.yaml").write_text("name: world")
    assert list_runs(tmp_path) == []
    run_stage(tmp_path / "world", "prepare", inputs=1, work=lambda out: {})
    assert [run.name for run in list_runs(tmp_path)] == ["world"]


def test_a_run_shows_its_last_stage_and_its_metrics(tmp_path):
    epochs = [{"validation": 0.25}, {"validation": 0.75}, {"validation": 0.5}]
    run_stage(tmp_path / "run", "train", inputs=1, work=lambda out: {"best_epoch": 1, "epochs": epochs})
    begun(tmp_path / "run")
    (line,) = list_runs(tmp_path)
    assert (line.stage, line.primary_metric, line.metrics) == ("train", "", {"validation": 0.75})
    judged(tmp_path / "run", recall=0.5)
    (line,) = list_runs(tmp_path)
    assert (line.stage, line.recipe_digest, line.primary_metric) == ("evaluate", "abc", "catalogue/recall@100")
    assert line.metrics == {"validation": 0.75, "catalogue/recall@100": 0.5}
    assert line.changed_at is not None
    assert line.base == ""
    (tmp_path / "run" / "base.yaml").write_text("name: parent\n")
    assert list_runs(tmp_path)[0].base == "parent"


def test_of_an_error_the_smallest_is_the_best(tmp_path):
    for name, error in (("worse", 9.0), ("best", 1.0), ("unknown", None)):
        judged(tmp_path / name, recall=0.5, **({} if error is None else {"watch_time/mae": error}))
    (group,) = group_runs(list_runs(tmp_path), metric="watch_time/mae")
    assert names(group) == ["best", "worse", "unknown"]


def test_the_best_run_is_first_and_those_without_the_metric_last(tmp_path):
    for name, value in (("worse", 0.1), ("better", 0.3)):
        judged(tmp_path / name, recall=value, auc=1 - value)
    judged(tmp_path / "small", primary_metric="catalogue/recall@5", recall=0.9)
    begun(tmp_path / "begun")
    lines = list_runs(tmp_path)
    evaluated, others = group_runs(lines)
    assert evaluated.metric == "catalogue/recall@100"
    assert names(evaluated) == ["better", "worse", "small"]
    assert (names(others), others.window, others.metric) == (["begun"], "", "validation")
    assert names(group_runs(lines, metric="auc")[0]) == ["worse", "better", "small"]
    message = r"no run has a metric recall; choose from: catalogue/recall@100, catalogue/recall@5$"
    with pytest.raises(RequestError, match=message):
        group_runs(lines, metric="recall")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "[]"),
        ("run.json", "{"),
        ("base.yaml", "name: ["),
        ("base.yaml", "- 1"),
        ("evaluate/manifest.json", '{"digest": "d", "facts": null, "seconds": "long"}'),
        ("evaluate/manifest.json", '{"digest": "d", "facts": {"metrics": {"a": null, "b": "x"}}, "seconds": 1}'),
        ("evaluate/report.json", "not JSON"),
        ("train/manifest.json", '{"digest": "d", "facts": {"epochs": [], "best_epoch": 3}, "seconds": 1}'),
    ],
)
def test_a_damaged_or_foreign_folder_does_not_hide_the_others(tmp_path, file, text):
    judged(tmp_path / "well", recall=0.5)
    judged(tmp_path / "ill", recall=0.4)
    (tmp_path / "ill" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "ill" / file).write_text(text)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("no run")
    groups = group_runs(list_runs(tmp_path), metric="catalogue/recall@100")
    assert [name for group in groups for name in names(group)][0] == "well"
    assert {line.name for line in list_runs(tmp_path)} == {"well", "ill"}


def test_runs_of_different_windows_are_never_in_one_ranking(tmp_path):
    judged(tmp_path / "second-of-may", dates="2022-05-02", recall=0.428)
    judged(tmp_path / "eighth-of-may", recall=0.399)
    judged(tmp_path / "again", recall=0.41)
    judged(tmp_path / "other-users", recall=0.9, users=1)
    groups = group_runs(list_runs(tmp_path))
    assert [names(group) for group in groups] == [["again", "eighth-of-may"], ["other-users"], ["second-of-may"]]
    assert [group.window for group in groups] == [
        "2022-05-08, 300 users, 60 items",
        "2022-05-08, 1 user, 60 items",
        "2022-05-02, 300 users, 60 items",
    ]
