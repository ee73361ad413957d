"""Runs against the first of them: what the tables and the page say, and what is refused."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.evaluate.test_compare import judged_run
from tests.worlds import SPLIT, world_recipe
from twofold.errors import RequestError, RunError
from twofold.evaluate.compare_page import (
    churn,
    compare_run_folders,
    comparison_tables,
    direction,
    write_comparison_page,
)
from twofold.evaluate.comparison_plots import group_plots
from twofold.evaluate.summary_text import format_difference
from twofold.recipe.load import dump_recipe
from twofold.render.numbers import in_full
from twofold.run_folder import run_stage

DATA = {"kind": "table", "events": "/events.parquet"}


def a_run(folder, *, noise=0.0, name="test", **parts):
    """A judged run folder whose recipe has `parts` of its own."""
    made, *_ = judged_run(folder / "made", noise=noise, name=name)
    run_stage(folder, "evaluate", inputs=1, work=lambda out: shutil.copytree(made, out, dirs_exist_ok=True) and {})
    (folder / "recipe.yaml").write_text(dump_recipe(world_recipe(DATA, parts)), encoding="utf-8")
    return folder


def in_words(found):
    console = Console(width=160, record=True, file=StringIO())
    for part in comparison_tables(found):
        console.print(part)
    return console.export_text()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    features = {"user": [{"kind": "history", "events": "positives", "max_length": 100}], "item": [{"kind": "id"}]}
    more = features | {"item": [{"kind": "id"}, {"kind": "category", "column": "creator"}]}
    return [
        a_run(folder / "old", noise=3.0, train={"epochs": 1}, features=more),
        a_run(folder / "new", train={"epochs": 2}, features=more),
        a_run(
            folder / "same",
            noise=3.0,
            train={"epochs": 1},
            features=features,
            retriever={"kind": "two_tower", "dim": 8},
        ),
    ]


def test_the_first_run_is_the_one_that_all_are_compared_with(three):
    found = compare_run_folders(three)
    assert found.names == ("old", "new", "same")
    assert [(other.run, other.base) for other in found.others] == [("new", "old"), ("same", "old")]
    first, *_ = found.metrics
    assert first == found.primary_metric == "catalogue/recall@5"
    better, level = found.metrics[first]
    assert (direction(better), direction(level)) == ("better", "")
    assert (level.minus.value, level.p_value) == (0.0, 1.0)
    (worse,) = compare_run_folders([three[1], three[0]]).metrics[first]
    assert direction(worse) == "worse"
    assert worse.minus.value == pytest.approx(-better.minus.value)


def test_fields_that_differ_stand_side_by_side(three):
    fields = {line.field: line.cells for line in compare_run_folders(three).fields}
    assert fields["train.epochs"] == ("1", "2", "")
    assert fields["retriever.dim"] == ("16", "", "8")
    assert fields["features.item.creator"][2] == "not set"
    turned = {line.field: line.cells for line in compare_run_folders([three[2], three[0]]).fields}
    assert turned["features.item.creator"][0] == "not set"


def test_a_part_of_a_recipe_is_shown_as_its_file_has_it(three, tmp_path):
    loss = {"kind": "bpr", "negatives": 5}
    other = a_run(tmp_path / "other", train={"epochs": 1, "loss": loss})
    fields = {line.field: line.cells for line in compare_run_folders([three[0], other]).fields}
    shown = "\n".join(cell for cells in fields.values() for cell in cells)
    assert "kind: bpr" in shown
    assert "{" not in shown.replace("{kind", "")
    assert not {"name", "about"} & set(fields)


def test_the_terminal_says_it_in_two_tables(three):
    text = in_words(compare_run_folders(three))
    assert re.search(
        r"catalogue recall@5 +0\.\d{3} +\+0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] \* +0\.000 \[0\.000, 0\.000\]", text
    )
    assert re.search(r"train\.epochs +1 +2", text)
    assert "150 users, 60 items" in text
    narrow = Console(width=50, file=StringIO())
    for part in comparison_tables(compare_run_folders(three)):
        narrow.print(part)
    assert "…" not in narrow.file.getvalue()
    assert "The recipes are equal." in in_words(compare_run_folders([three[0], three[0]]))


def recommending(folder, lists, *, kind=None):
    """A run folder that recommends so: user → item ids."""
    pairs = [(user, item) for user, items in lists.items() for item in items]
    table = pa.table({"user_id": pa.array([user for user, _ in pairs], kind), "item_id": [item for _, item in pairs]})
    name = "recommendations.parquet"
    run_stage(folder, "recommend", inputs=1, work=lambda out: pq.write_table(table, out / name) or {})
    return folder


def test_churn_is_what_another_run_no_longer_recommends(tmp_path):
    before = recommending(tmp_path / "before", {10: [1, 2], 20: [3, 4], 30: [5], 40: []})
    after = recommending(tmp_path / "after", {20: [3, 9, 8], 10: [2, 1], 50: [5]})
    assert churn(before, after) == pytest.approx((0 + 1 / 2) / 2)
    assert churn(after, before) == pytest.approx((0 + 2 / 3) / 2)
    assert churn(before, recommending(tmp_path / "none", {50: [1]})) is None
    assert churn(before, recommending(tmp_path / "text", {"10": [1]}, kind=pa.string())) is None
    assert churn(before, tmp_path / "nowhere") is None


def test_what_is_recommended_no_more_is_said_beside_the_groups(three, tmp_path):
    found = replace(compare_run_folders(three), churns=(0.25, None))
    text = in_words(found)
    assert "25 % of the recommendations of old to a user are no longer" in text
    assert "new:\n  not tested: 2 groups of fewer than 100 users\n  25 % of the recommendations" in text
    lines = tuple(
        replace(line, is_small=False, p_value=p)
        for line, p in zip(found.others[0].slices.lines, (0.01, 0.2), strict=True)
    )
    other = replace(found.others[0], slices=replace(found.others[0].slices, lines=lines))
    text = in_words(replace(found, others=(other, found.others[1])))
    assert "new: recall@5 differs significantly in 1 of 2 groups (p < 0.05 after Holm)\n  half: even: +" in text
    write_comparison_page(found, tmp_path / "page.html")
    assert re.search(
        r"mean over the users of both:\s+new 25\xa0%, same –\.", (tmp_path / "page.html").read_text(encoding="utf-8")
    )


def test_what_the_recipes_ask_for_stands_before_what_came_of_it(three, tmp_path):
    found = compare_run_folders(three)
    write_comparison_page(found, tmp_path / "page.html")
    page, text = (tmp_path / "page.html").read_text(encoding="utf-8"), in_words(found)
    assert page.index("<h2>Recipes</h2>") < page.index("<h2>Metrics</h2>") < page.index("<h2>Groups</h2>")
    assert "Recommendations</h2>" not in page
    assert text.index("train.epochs") < text.index("catalogue recall@5")


def test_the_page_asks_the_network_for_nothing_and_says_all_metrics(three, tmp_path):
    found = compare_run_folders(three)
    write_comparison_page(found, tmp_path / "pages" / "compared.html")
    page = (tmp_path / "pages" / "compared.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|<script|<link|@import", page)
    for metric in found.metrics:
        assert in_full(metric) in page
    for other in ("new", "same"):
        assert f"<b>{other} − old</b>" in page
        assert f"<b>recall@5: {other} − old</b>" in page
    groups = page[page.index("<h2>Groups</h2>") :]
    assert "No group has 100 users." in groups
    assert "All 2 groups with values" in groups
    assert "features.item.creator" in page
    assert 'class="better"' in page
    evil = replace(found, names=("<b>old</b>", "new", "same"))
    write_comparison_page(evil, tmp_path / "evil.html")
    assert "<b>old" not in (tmp_path / "evil.html").read_text(encoding="utf-8")


def test_what_cannot_be_compared_is_refused(three, tmp_path):
    with pytest.raises(RequestError, match=r"1 run cannot be compared: name two or more, the base run first"):
        compare_run_folders(three[:1])
    with pytest.raises(RunError, match="there is no run folder"):
        compare_run_folders([three[0], tmp_path / "nowhere"])
    other = a_run(tmp_path / "other", name="validation")
    with pytest.raises(RequestError, match=r"cannot be compared, .*window \(validation here, test in the base run\)"):
        compare_run_folders([*three, other])


def test_two_runs_of_one_name_are_told_apart_by_their_folders(three, tmp_path):
    again = a_run(tmp_path / "elsewhere" / "old", prepare={"positive": "liked", "split": SPLIT})
    assert compare_run_folders([three[0], again]).names == (str(three[0]), str(again))


def test_the_page_says_which_run_is_better_and_plots_the_differences(three, tmp_path):
    found = compare_run_folders(three)
    write_comparison_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    better, same = (line.minus for line in found.metrics["catalogue/recall@5"])
    assert re.search(rf"<b>new</b>: Recall@5 .* better \({re.escape(format_difference(better))}\)\.", page)
    assert f"no significant difference ({format_difference(same)})." in page
    first, second = page.split("<figure")[1:3]
    assert '<div class="difference better"><span class="name">Recall@5' in first
    assert 'class="difference better"' not in second
    assert found.others[0].question.dates in page


def test_groups_are_plotted_where_they_have_100_users(tmp_path):
    sizes = replace(compare_run_folders([a_run(tmp_path / "old", noise=3.0), a_run(tmp_path / "new")]).others[0])
    lines = [replace(line, is_small=False, users=150) for line in sizes.slices.lines]
    ((by, plot),) = group_plots([replace(lines[0], p_value=0.01), replace(lines[1], p_value=0.2)])
    assert by == "half"
    assert [row.difference.outcome for row in plot.rows] == ["better", ""]  # not significant after Holm
    assert [row.difference.note for row in plot.rows] == ["150 users"] * 2


def test_seeds_of_one_recipe_are_named_as_such(three, tmp_path):
    def said(train):
        found = compare_run_folders([a_run(tmp_path / f"{train}", train=train), three[2]])
        write_comparison_page(found, tmp_path / "page.html")
        return "these are seeds of one recipe" in (tmp_path / "page.html").read_text(encoding="utf-8")

    one = a_run(tmp_path / "one", train={"epochs": 1, "seed": 1})
    two = a_run(tmp_path / "two", train={"epochs": 1, "seed": 2})
    write_comparison_page(compare_run_folders([one, two]), tmp_path / "page.html")
    assert "these are seeds of one recipe, whose differences are chance" in (tmp_path / "page.html").read_text(
        encoding="utf-8"
    )
    assert not said({"epochs": 1})
