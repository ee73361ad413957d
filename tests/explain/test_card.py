"""The card of a run: its content, what it says where something is missing, and that text is escaped."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from tests import worlds
from twofold.cli.main import app
from twofold.explain.card import keep_base, read_card, write_card, write_comment
from twofold.pipeline import run as pipeline
from twofold.recipe.load import dump_recipe, load_base
from twofold.render.html import as_markdown

HOSTILE = "<script>alert(1)</script> | [x](javascript:alert(1)) **bold**"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carded")
    recipe = worlds.checkerboard(folder / "log", num_users=48, num_items=32)
    judge = {"sampled": [{"kind": "drawn", "draw": "uniform", "count": 3}]}
    parts = {
        "about": HOSTILE,
        "evaluate": judge,
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "seed": 0},
    }
    return pipeline.run(worlds.world_recipe(recipe.data.model_dump(), parts), runs=folder / "runs")


def pages(folder):
    return (folder / "card.html").read_text(), (folder / "card.md").read_text()


def test_a_run_leaves_its_card(run):
    page, text = pages(run.folder)
    report = pipeline.report_of(run.folder)
    for words in (page, text):
        for heading in (
            "Changes",
            "Metrics",
            "Data",
            "Model",
            "Training",
            "Gap between batch and catalogue",
            "Probes",
            "Map",
        ):
            assert heading in words
        assert "explain/map.html" in words
        assert "2024-01-01 to 2024-01-05" in words
        assert "chance" in words
    assert page.count("<polyline") >= 2  # loss and validation
    assert page.count("<rect") == len(report.facts.model) + 1  # and the score
    assert "data:image/png;base64," in page
    assert "default-src 'none'" in page
    train = next(window for window in read_card(run.folder).windows if window.name == "train")
    assert f"1 : {(1 - train.positive_share) / train.positive_share:.2f}" in text


def test_sampled_evaluation_has_its_own_section(run):
    (section,) = pipeline.report_of(run.folder).sampled
    for words in pages(run.folder):
        assert "Sampled evaluation" in words
        assert "each positive is ranked among itself and 3 other items" in words
    assert (section.draw, section.count, section.seed) == ("uniform", 3, 0)
    assert section.users_judged == pipeline.report_of(run.folder).catalogue.users_judged


def test_text_is_escaped(run):
    page, text = pages(run.folder)
    assert "<script" not in page
    assert "<script" not in text
    assert as_markdown("a|b_c\n# <c> [d](e) _f_") == r"a\|b_c \# &lt;c&gt; [d\](e) \_f\_"


def test_added_removed_and_changed_fields_are_shown(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    recipe = pipeline.reopen(folder).recipe
    history = {"kind": "history", "events": "positives", "max_length": 100}
    features = {
        "user": [history, {"kind": "history", "events": "negatives", "max_length": 50}],
        "item": [{"kind": "number", "column": "length_s", "scale": "log"}],
    }
    base = worlds.world_recipe(recipe.data.model_dump(), {"name": "older", "features": features})
    keep_base(folder, base)
    page, text = pages(folder)
    kinds = {each.field: each.kind for each in read_card(folder).changes}
    assert kinds["features.item.id"] == "added"
    assert kinds["features.item.length_s"] == kinds["features.user.negatives"] == "removed"
    assert kinds["train.batch_size"] == "changed"
    assert "Compared with the base recipe, older" in page
    assert "| train.batch_size | changed | 128 | 16 |" in text


def test_a_comment_is_stored_in_the_run_and_shown(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    write_comment(folder, f"Too short a history.\n{HOSTILE}\n")
    write_card(folder)
    page, text = pages(folder)
    assert "Too short a history." in page
    assert "&lt;script&gt;alert(1)" in page
    assert "> Too short a history." in text
    write_comment(folder, "  ")
    assert not (folder / "comment.md").exists()


def test_the_command_line_stores_the_base_and_a_comment(run, tmp_path):
    """Every stage is reused: only the base in the recipe's file differs."""
    recipe = pipeline.reopen(run.folder).recipe
    older = recipe.model_copy(update={"about": "the older one", "train": recipe.train.model_copy(update={"epochs": 9})})
    (tmp_path / "older.yaml").write_text(dump_recipe(older))
    newer = f"base: older.yaml\nabout: {json.dumps(HOSTILE)}\ntrain: {{epochs: 2}}\n"
    (tmp_path / "newer.yaml").write_text(newer)
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
    ("missing", "text"),
    [
        ("prepare", "Changes"),
        ("train", "No training log."),
        ("evaluate", "This run has not been evaluated."),
        ("explain", "This run has no map"),
        ("explain/map.png", "This run has no map"),
    ],
)
def test_a_card_names_what_the_run_does_not_have(run, tmp_path, missing, text):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_card(folder)
    for words in pages(folder):
        assert text in words


def test_a_recipe_alone_has_a_card(run, tmp_path):
    shutil.copy(run.folder / "recipe.yaml", tmp_path / "recipe.yaml")
    write_card(tmp_path)
    for words in pages(tmp_path):
        assert "This run has not been evaluated." in words


@pytest.mark.slow  # a whole run
def test_a_run_whose_vectors_are_solved_has_a_card_of_all_its_parts(tmp_path):
    log = worlds.checkerboard(tmp_path / "log", num_users=48, num_items=32).data.model_dump()
    features = {"user": [{"kind": "history", "events": "positives", "max_length": 500}], "item": [{"kind": "id"}]}
    retriever = {"kind": "ials", "dim": 8, "regularization": 10}
    job = pipeline.run(worlds.world_recipe(log, {"features": features, "retriever": retriever}), runs=tmp_path)
    for words in pages(job.folder):
        assert "inner product, ials" in words
        assert "iALS" in words  # the baseline
        assert "explain/map.html" in words


@pytest.mark.slow  # a whole run
def test_two_items_and_one_user_to_judge_make_a_card(tmp_path):
    """One item alone is refused: see tests/prepare/test_duckdb_engine.py."""
    events = [(user, item, day * worlds.DAY_MS + user, True) for user in range(3) for item, day in ((0, 0), (1, 2))]
    events += [(user, 1, day * worlds.DAY_MS, True) for user, day in ((7, worlds.VALIDATION), (9, worlds.TEST))]
    tables = worlds._events(events, np.random.default_rng(0)), worlds._items(2)
    data = worlds.write_world(tmp_path / "log", *tables)
    job = pipeline.run(worlds.world_recipe(data, {"train": {"epochs": 1, "batch_size": 4}}), runs=tmp_path)
    for words in pages(job.folder):
        assert "Only 1 user could be evaluated" in words
        assert "1 user" in words
