"""Rules that read a column as what it is not are refused before any row is prepared, with what to write instead."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.prepare.tables import TRAIN, log_of
from tests.worlds import world_recipe, write_world
from twofold.errors import DataError, RecipeError
from twofold.prepare.check import check_recipe
from twofold.prepare.run_plan import prepare
from twofold.recipe.schema import Recipe


def recipe_of(folder: Path, rules: dict[str, str], texts: list[str]) -> Recipe:
    """A recipe with these rules, over a log with the texts in a column `kind`, a price and a flag."""
    rows = [(1, 0, TRAIN + number, True) for number in range(len(texts))]
    log = log_of(rows, kind=texts, price=[13.5] * len(rows), shop_no=[12] * len(rows), is_paid=[True] * len(rows))
    recipe = world_recipe(write_world(folder, log, pa.table({"item_id": [0, 100], "title": ["A", "it's"]})))
    return world_recipe(recipe.data.model_dump(), {"prepare": recipe.prepare.model_dump() | rules})


@pytest.mark.parametrize(
    ("rules", "texts", "message"),
    [
        (
            {"positive": "kind"},
            ["view", "cart"],
            r"^prepare\.positive reads kind as true or false, and its values are text, such as cart, view\. "
            r"Compare it: kind = 'cart'\. Rule: kind$",
        ),
        ({"relevant": "liked OR kind"}, ["it's"], r"prepare\.relevant reads kind .* Compare it: kind = 'it''s'\."),
        (
            {"weight": "kind"},
            ["1", "many"],
            r"prepare\.weight reads kind as a number, .* such as many\. Compare it, kind = 'many', or give texts "
            r"numbers: CASE WHEN kind = 'many' THEN 2 ELSE 1 END\.",
        ),
        ({"positive": "kind > 3"}, ["1", "x"], r"prepare\.positive reads kind as a number, .* such as x\."),
        ({"positive": "kind"}, ["\x1b[2J" + "x" * 99], r"such as ·\[2Jx{36}\. Compare it"),
        ({"positive": "title"}, ["x"], r"prepare\.positive reads title as true or false, .* such as A, it's\."),
        (
            {"positive": "price = '13.50'"},
            ["x"],
            r"compares price, a number, with the text '13\.50'\. Write the ",
        ),
        ({"positive": "price IN ('13.5', '2')"}, ["x"], r"compares price, a number, with the text '13\.5'"),
        ({"where": "shop_no = 'twelve'"}, ["x"], r"compares shop_no, a number, with the text 'twelve'"),
        (
            {"where": "at < '2024-03-01T12:00:00'"},
            ["x"],
            r"at is a time in UTC milliseconds: 2024-03-01T12:00:00 is 1709294400000\. Rule: at <",
        ),
        ({"where": "at > 'yesterday'"}, ["x"], r"at is a time in UTC milliseconds\. Rule: at >"),
    ],
)
def test_a_rule_that_reads_a_column_as_what_it_is_not_is_refused(
    tmp_path: Path, rules: dict[str, str], texts: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe_of(tmp_path, rules, texts))


@pytest.mark.parametrize(
    ("rules", "texts"),
    [
        ({"positive": "kind"}, ["true", "false"]),  # what every engine reads as a condition
        ({"positive": "kind > 3"}, ["1", "4.5"]),
        ({"positive": "kind = 'view'"}, ["view"]),
        ({"where": "shop_no IN ('12', '13')"}, ["x"]),  # so are ids above 2^53 written
        ({"positive": "price > 3 AND kind IS NOT NULL"}, ["x"]),
    ],
)
def test_texts_of_numbers_and_numbers_as_digits_may_be_read(
    tmp_path: Path, rules: dict[str, str], texts: list[str]
) -> None:
    check_recipe(recipe_of(tmp_path, rules, texts))


def test_decimal_commas_are_named_with_their_table(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {}, ["x"])
    (tmp_path / "items.csv").write_text('item_id;cost\n0;"13,27"\n100;"2,50"\n', encoding="utf-8")
    data = recipe.data.model_copy(update={"items": tmp_path / "items.csv"})
    prepare = recipe.prepare.model_copy(update={"where": "cost > 3"})
    with pytest.raises(RecipeError, match=r"such as 13,27, 2,50\. Numbers with .*decimal_comma: \[items\]"):
        check_recipe(recipe.model_copy(update={"data": data, "prepare": prepare}))


@pytest.mark.parametrize(
    ("rules", "texts", "message"),
    [
        (
            {"positive": "is_paid = 'True'"},
            ["x"],
            r"compares is_paid, which is true or false .* with the text 'True'\. ",
        ),
        (
            {"weight": "CASE WHEN is_paid IN ('true', '1') THEN 2 END"},
            ["x"],
            r"text '1'\. Write is_paid or NOT is_paid",
        ),
        ({"where": "shop_no = '012'"}, ["x"], r"compares shop_no, a number, with the text '012'\. Write the number"),
        ({"positive": "kind >= 4"}, ["nan", "3"], r"reads kind as a number, and some of its texts are 'nan', which "),
        ({"weight": "kind"}, ["-Infinity", "3"], r"texts are '-Infinity', .* Leave unknown values empty \(NULL\)\. "),
    ],
)
def test_a_text_that_no_value_equals_or_that_is_above_every_number_is_refused(
    tmp_path: Path, rules: dict[str, str], texts: list[str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe_of(tmp_path, rules, texts))


def test_texts_that_flags_and_whole_numbers_have_are_compared(tmp_path: Path) -> None:
    check_recipe(recipe_of(tmp_path, {"positive": "is_paid = 'true' OR shop_no IN ('0', '-12')"}, ["x"]))


def test_a_late_text_that_is_above_every_number_stops_the_preparation(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"positive": "kind > 3"}, ["1", "5", *["2"] * 10_000, "NaN"])
    with pytest.raises(DataError, match=r"^prepare\.positive reads kind as a number, and some of its texts are 'NaN'"):
        prepare(recipe, tmp_path)
