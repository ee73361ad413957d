"""The benchmark of papers' protocols: a small run, seeds that are replaced one by one, and the tables of the page."""

import json
from pathlib import Path

import pytest

from tests import worlds
from tests.test_quality import loaded
from twofold.recipe.load import dump_recipe

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    """The benchmark with one protocol, whose recipe is a small world; its files are in a temporary folder."""
    folder = tmp_path_factory.mktemp("papers")
    recipe = worlds.checkerboard(folder / "log", num_users=48, num_items=64)
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"brief": True})})
    (folder / "small.yaml").write_text(dump_recipe(recipe).replace("epochs: 10", "epochs: 1"))
    module = loaded(ROOT / "benchmarks" / "papers.py")
    module.RECIPES, module.SAVED = folder, folder / "papers.json"
    columns = (module.Column("recall@20", "catalogue/recall@20"),)
    published = (("Ours, as published", ".500"),)
    module.PROTOCOLS = (module.Protocol("small", "small", "A small world", columns, (0, 2), published),)
    return module


@pytest.fixture(scope="module")
def lines(papers, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        first = papers.judged(papers.PROTOCOLS[0], seed=0)
        again = papers.judged(papers.PROTOCOLS[0], seed=0)
    return first, again


def test_a_run_has_a_line_for_each_row_and_says_how_long_it_took(lines):
    first, again = lines
    rows = [line["row"] for line in first]
    assert rows[0] == "model"
    assert "popularity" in rows
    assert len(set(rows)) == len(rows)
    model, popularity = first[0], first[rows.index("popularity")]
    value, low, high = model["catalogue/recall@20"]
    assert low <= value <= high
    assert model["users"] > 0
    assert model["items"] == 64
    difference = popularity["model - catalogue/recall@20"][0]
    assert difference == pytest.approx(value - popularity["catalogue/recall@20"][0])
    assert "model - catalogue/recall@20" not in model
    assert model["processor_minutes"] >= 0
    assert "processor_minutes" not in again[0], "training was found again, so this process did not measure it"
    assert again[0]["catalogue/recall@20"] == model["catalogue/recall@20"]


def test_a_seed_replaces_its_own_lines_alone(papers, lines):
    first, _ = lines
    other = [line | {"seed": 2, "processor_minutes": 3.0} for line in first]
    papers.save("small", 2, other)
    papers.save("small", 0, [line | {"processor_minutes": 99.0} for line in first])
    papers.save("small", 0, [line | {"processor_minutes": 1.2} for line in first])
    saved = json.loads(papers.SAVED.read_text())["small"]
    assert [line["seed"] for line in saved] == [0] * len(first) + [2] * len(first)
    assert {line["processor_minutes"] for line in saved} == {1.2, 3.0}


def test_the_table_has_every_seed_of_the_model_and_the_baselines_once(papers, lines):
    first, _ = lines
    found = [line | {"seed": seed, "processor_minutes": 1.0 + seed} for seed in (0, 2) for line in first]
    for line in found:
        line["catalogue/recall@20"] = [0.5, 0.4, 0.625]
        if line["row"] != "model":
            line["model - catalogue/recall@20"] = [0.25 - line["seed"] / 8, -0.125, 0.5]
    text = papers.tables({"small": found}).splitlines()
    assert text[0] == "### A small world"
    assert text[2].startswith("`recipes/small.yaml` (recipe `")
    assert text[2].endswith("; 1 to 3 processor minutes a seed.")
    assert text[4:6] == ["| row | recall@20 | model − row, recall@20, least seed |", "|---|---|---|"]
    assert text[6:8] == ["| model, seed 0 | .500 [.400, .625] |  |", "| model, seed 2 | .500 [.400, .625] |  |"]
    assert text[8].endswith(" | .500 [.400, .625] | .000 [-.125, .500] |")
    names = [line.split(" | ")[0].removeprefix("| ") for line in text[8:]]
    assert names == [line["row"] for line in first[1:]] + ["Ours, as published"]
