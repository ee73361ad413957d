"""The tracker page: every run with its changes, ratios, metrics beside chance and base, and text that is escaped."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.conftest import HOSTILE
from twofold.cli.main import app
from twofold.errors import RequestError, RunError
from twofold.evaluate.compare import compare_runs
from twofold.page.run_page import write_comment
from twofold.page.tracker import METRICS, read_tracker
from twofold.page.tracker_page import tracker_page, write_tracker
from twofold.pipeline.job import report_of
from twofold.recipe.load import dump_recipe, load_recipe


def numbered(folder, to, name):
    """Copies a run under another name, whose recipe says that its base is `world`."""
    copy = shutil.copytree(folder, to / name)
    text = (copy / "recipe.yaml").read_text(encoding="utf-8")
    (copy / "base.yaml").write_text(text, encoding="utf-8")
    (copy / "recipe.yaml").write_text(
        text.replace("name: world", f"name: {name}").replace("epochs: 2", "epochs: 3"), encoding="utf-8"
    )
    return copy


@pytest.fixture
def runs(explained, tmp_path):
    """The finished run and a copy of it that is based on it."""
    folder = tmp_path / "runs"
    shutil.copytree(explained.folder, folder / "world")
    write_comment(numbered(explained.folder, folder, "wider"), HOSTILE)
    return folder


def test_a_row_says_what_changed_against_the_base_and_by_how_much(runs):
    tracker = read_tracker([runs])
    (group,) = tracker.groups
    wider, base = group.runs  # by name
    assert (base.name, wider.name, wider.base) == ("world", "wider", "world")
    assert [(each.field, each.old, each.new) for each in wider.changes] == [("train.epochs", "2", "3")]
    assert wider.ratio_asked == "as logged"
    assert {"train", "validation", "test"} <= set(wider.windows)
    report = report_of(runs / "wider")
    lines = compare_runs(runs / "wider" / "evaluate", runs / "world" / "evaluate").metrics
    differences = {line.metric: line.minus for line in lines}
    assert set(wider.metrics) <= set(METRICS)
    auc = wider.metrics["impressions/auc"]
    assert auc.value == report.impressions.rows[0].metrics["impressions/auc"]
    assert auc.chance == 0.5
    assert auc.minus == differences["impressions/auc"]
    recall = wider.metrics["catalogue/recall@10"]
    (random,) = (row for row in report.catalogue.rows if row.name == "random")
    assert recall.chance == random.metrics["catalogue/recall@10"].value
    assert base.metrics["impressions/auc"].minus is None


def test_runs_of_different_questions_are_in_different_tables_and_are_not_compared(runs):
    path = runs / "wider" / "evaluate" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    report["question"]["relevant_digest"] = "another label"
    path.write_text(json.dumps(report), encoding="utf-8")
    tracker = read_tracker([runs])
    assert sorted(run.name for group in tracker.groups for run in group.runs) == ["wider", "world"]
    assert len(tracker.groups) == 2
    assert all(cell.minus is None for run in tracker.runs for cell in run.metrics.values())


def test_runs_that_are_too_old_to_be_compared_are_shown_without_differences(runs):
    for path in runs.glob("*/evaluate/report.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        report["question"].pop("ranked_digest")
        path.write_text(json.dumps(report), encoding="utf-8")
    tracker = read_tracker([runs])
    assert sorted(run.name for run in tracker.runs) == ["wider", "world"]
    assert len(tracker.groups) == 1
    assert all(cell.minus is None for run in tracker.runs for cell in run.metrics.values())


def test_runs_of_equal_names_in_two_folders_are_all_there_each_with_the_base_of_its_folder_and_seed(runs, tmp_path):
    for name in ("world", "wider"):
        copy = shutil.copytree(runs / name, runs / f"{name}-seed1")
        recipe = load_recipe(copy / "recipe.yaml", overrides=["train.seed=1"])
        (copy / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    shutil.copytree(runs, tmp_path / "other")
    tracker = read_tracker([runs, tmp_path / "other"])
    names = ("wider", "wider-seed1", "world", "world-seed1")
    assert sorted(run.name for run in tracker.runs) == [
        f"{each}/{name}" for each in ("other", "runs") for name in names
    ]
    bases = {run.name: run.base for run in tracker.runs if run.base}
    assert bases == {
        f"{each}/wider{seed}": f"{each}/world{seed}" for each in ("other", "runs") for seed in ("", "-seed1")
    }


def test_the_page_is_one_file_without_requests_in_which_text_is_text(runs, tmp_path):
    write_tracker([runs / "world", runs / "wider", runs], tmp_path / "tracker.html", table=tmp_path / "tracker.parquet")
    page = (tmp_path / "tracker.html").read_text(encoding="utf-8")
    assert page.count('<tr class="run"') == 2
    assert "default-src 'none'; script-src 'sha256-" in page
    assert "http" not in page.replace("http-equiv", "")
    assert HOSTILE not in page
    assert page.count("<script") == 1
    assert page.count('<template id="drawing-') == 1  # both runs have one drawing
    for name in ("world", "wider"):
        assert f'<a href="runs/{name}/run.html">{name}</a>' in page
        assert (tmp_path / "runs" / name / "run.html").is_file()
    table = pq.read_table(tmp_path / "tracker.parquet").to_pylist()
    assert [row["run"] for row in table] == ["world", "wider"] or [row["run"] for row in table] == ["wider", "world"]
    row = next(row for row in table if row["run"] == "wider")
    assert row["changed"] == "train.epochs: 2 → 3"
    assert row["impressions/auc chance"] == 0.5
    assert row["impressions/auc minus base"] == 0.0


def test_a_run_that_cannot_be_read_is_left_out_and_named(runs, tmp_path):
    path = runs / "wider" / "evaluate" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    del report["badge"]  # as a report of an older version
    path.write_text(json.dumps(report), encoding="utf-8")
    tracker = read_tracker([runs])
    assert [run.name for run in tracker.runs] == ["world"]
    (reason,) = tracker.unreadable.values()
    assert "is not a report: badge" in reason
    page = tracker_page(tracker)
    assert f"Not read: {runs / 'wider'}" in page
    assert "<a href" not in page


def test_a_run_folder_is_read_without_the_runs_beside_it(runs, monkeypatch):
    monkeypatch.setattr("twofold.page.tracker.list_runs", lambda folder: pytest.fail(f"lists all runs of {folder}"))
    folders = [runs / "world", runs / "wider"]  # of many runs, each would else read all others
    assert sorted(run.name for run in read_tracker(folders).runs) == ["wider", "world"]


@pytest.mark.parametrize("content", [b"cut", None])
def test_a_run_whose_values_of_single_users_are_lost_is_shown_without_differences(runs, content):
    path = runs / "wider" / "evaluate" / "users.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    wider, world = read_tracker([runs]).runs
    assert wider.metrics["impressions/auc"].value == world.metrics["impressions/auc"].value
    assert wider.metrics["impressions/auc"].minus is None
    with pytest.raises(RunError, match=r"values per user.*Delete .*evaluate and run `twofold evaluate`"):
        compare_runs(runs / "wider" / "evaluate", runs / "world" / "evaluate")


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"there is no evaluated run\. Name run folders, or folders that hold some"):
        read_tracker([tmp_path])
    result = CliRunner().invoke(app, ["tracker", str(tmp_path), "--to", str(tmp_path / "page.html")])
    assert isinstance(result.exception, RequestError)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_rows_are_filtered_sorted_and_compared_in_a_browser(runs, tmp_path, browser):
    write_tracker([runs], tmp_path / "tracker.html")
    browser.open((tmp_path / "tracker.html").as_uri())
    shown = "[...document.querySelectorAll('tr.run')].filter(row => !row.hidden).map(row => row.dataset.run).join()"
    typed = (
        "{{ const box = document.getElementById('filter'); box.value = '{}'; box.dispatchEvent(new Event('input')) }}"
    )
    browser.run(typed.format("epochs"))
    assert browser.run(shown) == "wider"
    browser.run(typed.format(""))
    browser.run("document.querySelectorAll('input.choose').forEach(box => box.click())")
    browser.run("document.getElementById('compare').click()")
    assert "train.epochs" in browser.run("document.getElementById('inside').innerText")


def test_a_dumped_recipe_has_the_name_that_the_copies_replace(explained):
    assert "name: world" in dump_recipe(explained.recipe)
