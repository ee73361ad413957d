"""The page of a run: its content, what is absent where a stage is missing, and that text is escaped."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from tests import worlds
from tests.conftest import HOSTILE
from twofold.cli.main import app
from twofold.page.run_page import keep_base, read_run_page, write_comment, write_run_page
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import reopen, report_of
from twofold.recipe.load import dump_recipe, load_base
from twofold.render.html import as_markdown


@pytest.fixture
def run(explained):
    return explained


def pages(folder):
    return (folder / "run.html").read_text(encoding="utf-8"), (folder / "run.md").read_text(encoding="utf-8")


def test_a_run_leaves_its_page(run):
    page, text = pages(run.folder)
    report = report_of(run.folder)
    sections = ("catalogue", "impressions", "in-batch", "gap", "sampled", "probes", "map", "data", "model", "training")
    for section in sections:
        assert f'id="{section}"' in page
        assert f'href="#{section}"' in page
    for words in (page, text):
        assert "2024-01-01 to 2024-01-04" in words
        assert "Recall@" in words
    assert 'href="explain/map.html"' in page
    assert page.count("<polyline") >= 2  # loss and validation
    assert page.count('<div class="part ') == len(report.facts.model) + 1  # and the score
    assert "data:image/png;base64," in page
    assert "default-src 'none'" in page
    train = next(window for window in read_run_page(run.folder).windows if window.name == "train")
    for words in (page, text):
        assert f"1 : {(1 - train.positive_share) / train.positive_share:.2f}" in words
    assert len(text.splitlines()) < 50


def test_sampled_ranking_has_its_own_section(run):
    (section,) = report_of(run.folder).sampled
    assert "Each positive is ranked among itself and 3 other items" in pages(run.folder)[0]
    assert (section.draw, section.count, section.seed) == ("uniform", 3, 0)
    assert section.users_judged == report_of(run.folder).catalogue.users_judged


def test_the_page_of_an_evaluation_has_no_explanation_of_another_model(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    page = write_run_page(folder, is_explained=False).read_text(encoding="utf-8")
    assert "Not measured yet: run twofold explain." in page
    for section in ("gap", "probes", "map"):
        assert f'id="{section}"' not in page


def test_evaluate_writes_the_page_and_leaves_that_of_an_unchanged_report(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    assert CliRunner().invoke(app, ["evaluate", str(folder)]).exit_code == 0
    assert (folder / "run.html").read_text(encoding="utf-8") == pages(run.folder)[0]
    shutil.rmtree(folder / "evaluate")
    result = CliRunner().invoke(app, ["evaluate", str(folder)])
    assert result.exit_code == 0, result.output
    assert f"page  {folder}/run.html" in result.output
    page, _ = pages(folder)
    assert 'id="catalogue"' in page
    assert 'id="probes"' not in page


def test_text_is_escaped(run):
    page, text = pages(run.folder)
    assert "<script" not in page
    assert "<script" not in text
    assert as_markdown("a|b_c\n# <c> [d](e) _f_") == r"a\|b_c \# &lt;c&gt; [d\](e) \_f\_"


def test_added_removed_and_changed_fields_are_shown(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    recipe = reopen(folder).recipe
    history = {"kind": "history", "events": "positives", "max_length": 100}
    features = {
        "user": [history, {"kind": "history", "events": "negatives", "max_length": 50}],
        "item": [{"kind": "number", "column": "length_s", "scale": "log"}],
    }
    base = worlds.world_recipe(recipe.data.model_dump(), {"name": "older", "features": features})
    keep_base(folder, base)
    page, text = pages(folder)
    kinds = {each.field: each.kind for each in read_run_page(folder).changes}
    assert kinds["features.item.id"] == "added"
    assert kinds["features.item.length_s"] == kinds["features.user.negatives"] == "removed"
    assert kinds["train.batch_size"] == "changed"
    assert "Compared with older." in page
    assert "| train.batch_size | changed | 128 | 16 |" in text


def test_a_comment_is_stored_in_the_run_and_shown(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    write_comment(folder, f"Too short a history.\n{HOSTILE}\n")
    write_run_page(folder)
    page, text = pages(folder)
    assert "Too short a history." in page
    assert "&lt;script&gt;alert(1)" in page
    assert "> Too short a history." in text
    write_comment(folder, "  ")
    assert not (folder / "comment.md").exists()


def test_the_command_line_stores_the_base_and_a_comment(run, tmp_path):
    """Every stage is reused: only the base in the recipe's file differs."""
    recipe = reopen(run.folder).recipe
    older = recipe.model_copy(update={"about": "the older one", "train": recipe.train.model_copy(update={"epochs": 9})})
    (tmp_path / "older.yaml").write_text(dump_recipe(older), encoding="utf-8")
    newer = f"base: older.yaml\nabout: {json.dumps(HOSTILE)}\ntrain: {{epochs: 2}}\n"
    (tmp_path / "newer.yaml").write_text(newer, encoding="utf-8")
    folder = shutil.copytree(run.folder, tmp_path / "runs" / "world")
    commands = [
        ["run", str(tmp_path / "newer.yaml"), "--runs", str(tmp_path / "runs")],
        ["explain", str(folder), "--comment", "Two epochs do."],
    ]
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    page, text = pages(folder)
    assert "| train.epochs | changed | 9 | 2 |" in text
    assert "Two epochs do." in page
    assert load_base(tmp_path / "older.yaml") is None
    assert load_base(tmp_path / "older.yaml", overrides=["train.epochs=1"]) == older


@pytest.mark.parametrize(
    ("missing", "sections"),
    [
        ("prepare", ["data"]),
        ("train", ["training"]),
        ("evaluate", ["catalogue", "impressions", "in-batch", "sampled", "model"]),
        ("explain", ["gap", "probes", "map"]),
    ],
)
def test_what_a_run_does_not_have_is_absent_from_its_page(run, tmp_path, missing, sections):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(folder / missing)
    page = write_run_page(folder).read_text(encoding="utf-8")
    for section in sections:
        assert f'id="{section}"' in pages(run.folder)[0]
        assert f'id="{section}"' not in page
        assert f'href="#{section}"' not in page


def test_a_map_without_its_picture_says_so(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    (folder / "explain" / "map.png").unlink()
    assert "The picture explain/map.png is missing." in write_run_page(folder).read_text(encoding="utf-8")


def test_a_recipe_alone_has_a_page(run, tmp_path):
    shutil.copy(run.folder / "recipe.yaml", tmp_path / "recipe.yaml")
    write_run_page(tmp_path)
    for words in pages(tmp_path):
        assert "This run has not been evaluated." in words


@pytest.mark.slow  # a whole run
def test_a_run_whose_vectors_are_solved_has_a_page_of_all_its_parts(tmp_path):
    log = worlds.checkerboard(tmp_path / "log", num_users=48, num_items=32).data.model_dump()
    features = {"user": [{"kind": "history", "events": "positives", "max_length": 500}], "item": [{"kind": "id"}]}
    retriever = {"kind": "ials", "dim": 8, "regularization": 10}
    job = pipeline.run(worlds.world_recipe(log, {"features": features, "retriever": retriever}), runs=tmp_path)
    page, _ = pages(job.folder)
    assert "inner product, ials" in page
    assert "iALS" in page  # the baseline
    assert "explain/map.html" in page


@pytest.mark.slow  # a whole run
def test_two_items_and_one_user_to_judge_make_a_page(tmp_path):
    """One item alone is refused: see tests/prepare/test_duckdb_engine.py."""
    events = [(user, item, day * worlds.DAY_MS + user, True) for user in range(3) for item, day in ((0, 0), (1, 2))]
    events += [(user, 1, day * worlds.DAY_MS, True) for user, day in ((7, worlds.VALIDATION), (9, worlds.TEST))]
    tables = worlds.events_of(events, np.random.default_rng(0)), worlds.items_of(2)
    data = worlds.write_world(tmp_path / "log", *tables)
    job = pipeline.run(worlds.world_recipe(data, {"train": {"epochs": 1, "batch_size": 4}}), runs=tmp_path)
    page, _ = pages(job.folder)
    assert "Only 1 user could be evaluated" in page
