"""Parts that all pages share: settings appear as in the recipe's file, and text is never markup."""

import pytest

from tests.worlds import world_recipe
from twofold.recipe.diff import recipe_differences
from twofold.render.html import as_markdown, fill_page, setting

DATA = {"kind": "table", "events": "/events.parquet"}
FEATURES = {
    "user": [{"kind": "history", "events": "positives", "max_length": 50}],
    "item": [{"kind": "id"}, {"kind": "category", "column": "creator"}],
}


def test_of_a_part_what_is_as_by_default_is_left_out():
    before = world_recipe(DATA)
    after = world_recipe(DATA, {"features": FEATURES, "train": {"epochs": 3, "loss": {"kind": "bpr", "negatives": 7}}})
    found = {each.field: setting(after, each.field, each.new) for each in recipe_differences(before, after)}
    assert found["train.loss"] == "{kind: bpr, negatives: 7}"
    assert found["features.item.creator"] == "{kind: category, column: creator}"
    assert found["train.epochs"] == "3"
    assert found["features.user.positives.max_length"] == "50"


@pytest.mark.parametrize(
    ("value", "said"), [("dot", "dot"), (None, "null"), (True, "true"), ([1, 2], "[1, 2]"), ({"a": "ü"}, "{a: ü}")]
)
def test_what_is_no_part_is_said_in_full(value, said):
    assert setting(world_recipe(DATA), "not.there", value) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[x](javascript:alert(1))", r"[x\](javascript:alert(1))"),
        ("![x][y] and [y]: z", r"![x\][y] and [y\]: z"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("a|b `c` *d* ~e~ \\", r"a\|b \`c\` \*d\* \~e\~ " + "\\\\"),
        ("length_s _x_", r"length_s \_x\_"),
        ("one\n# two", r"one \# two"),
        ("0.386 [0.370, 0.401].", "0.386 [0.370, 0.401]."),
    ],
)
def test_in_markdown_untrusted_text_means_nothing(text, shown):
    assert as_markdown(text) == shown


def test_a_page_misses_no_value_and_the_style_asks_nobody():
    with pytest.raises(Exception, match="'found' is undefined"):
        fill_page(("twofold.evaluate",), "compare_page.html.j2", {})
    style = fill_page((), "style.css", {})
    assert "url(" not in style
    assert "@import" not in style
