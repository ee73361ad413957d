"""Scalars of a recipe are what they look like, and limits hold."""

from pathlib import Path

import pytest

from tests.recipe.drafted import ASKED, changed, refusal, write
from tests.recipe.test_load import recipe_of
from twofold.errors import RecipeError
from twofold.recipe.load import dump_recipe, load_recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=010", r"train\.epochs: is '010' — must be a whole number"),
        ("train.epochs=yes", r"train\.epochs: is 'yes' — must be a whole number"),
        ("train.epochs=true", r"train\.epochs: is True — must be a whole number"),
        ("train.epochs='3'", r"train\.epochs: is '3' — must be a whole number"),
        ("train.epochs=2.0", r"train\.epochs: is 2\.0 — must be a whole number"),
        ("train.epochs=1_000", r"train\.epochs: is '1_000' — must be a whole number"),
        ("train.epochs=1:30", r"train\.epochs: is '1:30' — must be a whole number"),
        ("train.epochs=2024-01-01", r"train\.epochs: is '2024-01-01' — must be a whole number"),
        ("train.learning_rate=0x10", r"train\.learning_rate: is '0x10' — must be a number"),
        ("train.learning_rate=1e999", r"train\.learning_rate: is inf — must be a finite number"),
        ("features.user.0.share_item_embedding=no", r"is 'no' — must be true or false"),
        ("features.user.0.share_item_embedding=1", r"is 1 — must be true or false"),
        ("about=5", r"about: is 5 — must be text; put it in quotation marks"),
        ("prepare.split.test.end=1704585600", r"end: is 1704585600 — must be a day such as 2022-05-08"),
        ("prepare.split.test.end='1704585600'", r"end: is '1704585600' — must be a day such as 2022-05-08"),
        ("prepare.split.test.end=2024-01-01T00:00:00", r"is '2024-01-01T00:00:00' — must be a day such as"),
        ("train.epochs=0x" + "f" * 5000, r"must be a whole number"),
        ("train.epochs=" + ":".join("1" * 3000), r"must be a whole number"),
        (".".join("a" * 5000) + "=1", r"names a field of 5,000 steps; a recipe has at most 64"),
    ],
)
def test_a_scalar_of_another_type_is_refused(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path / "r.yaml", ASKED)
    with pytest.raises(RecipeError, match=message) as refused:
        load_recipe(path, overrides=[override])
    assert len(str(refused.value)) < 400


def test_what_yaml_1_1_would_change_stays_text(tmp_path: Path) -> None:
    for text in ("010", "yes", "off", "12:30", "2024-01-01", "0x1F", "1_000", ".5.5"):
        assert load_recipe(write(tmp_path / "r.yaml", ASKED), overrides=[f"about={text}"]).about == text


@pytest.mark.parametrize(
    "about", ["1e3", "010", "yes", "null", "5", ".5", "true", "<<", "", "~", "2024-01-01", "a: b #"]
)
def test_a_text_that_looks_like_something_else_is_dumped_as_text(tmp_path: Path, about: str) -> None:
    recipe = recipe_of(changed("about", about, changed("data.events", "/data/events.parquet")))
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "dumped.yaml") == recipe


def test_of_many_problems_the_first_are_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("".join(f"k{number}: 1\n" for number in range(1000)), encoding="utf-8")
    told = refusal(tmp_path / "r.yaml").splitlines()
    assert len(told) == 51
    assert told[-1] == "and 956 more"  # six sections are missing, too


def test_a_name_of_vectors_says_what_a_name_is(tmp_path: Path) -> None:
    said = refusal(write(tmp_path / "r.yaml", changed("data.vectors", {"../../victim": "look.npy"})))
    assert "data.vectors.../../victim: '../../victim' is no name — write letters, digits and _; the first is" in said
