from twofold.bundle import run_stage
from twofold.runs import list_runs


def test_no_folder_is_an_empty_table(tmp_path):
    assert list_runs(tmp_path / "nowhere") == []


def test_a_run_that_has_done_nothing_yet_is_listed(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("name: begun")
    (line,) = list_runs(tmp_path)
    assert (line.name, line.stage, line.seconds, line.metrics, line.recipe_digest) == ("begun", "—", 0.0, {}, "?")


def test_a_run_shows_its_last_stage_and_its_metrics(tmp_path):
    run = tmp_path / "judged"
    run_stage(run, "train", inputs=1, work=lambda out: {})
    run_stage(run, "evaluate", inputs=1, work=lambda out: {"metrics": {"catalogue/recall@100": 0.5}})
    (run / "recipe.yaml").write_text("name: judged")
    (run / "run.json").write_text('{"recipe_digest": "abc"}')
    (line,) = list_runs(tmp_path)
    assert (line.stage, line.recipe_digest, line.metrics) == ("evaluate", "abc", {"catalogue/recall@100": 0.5})
