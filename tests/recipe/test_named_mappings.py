"""Mappings of a recipe whose keys are names: in which order they stand, and what a name may be."""

from pathlib import Path

from tests.recipe.drafted import changed, write
from twofold.recipe import load
from twofold.recipe.diff import recipe_differences, recipe_digest
from twofold.recipe.load import load_recipe, recipe_schema
from twofold.recipe.schema import Recipe


def test_a_column_called_kind_is_a_name_as_any_other(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", changed("data.columns", {"user_id": "uid", "kind": "type"}))
    child = {"base": "base.yaml", "data": {"columns": {"kind": "what"}}}
    assert load_recipe(write(tmp_path / "child.yaml", child)).data.columns == {"user_id": "uid", "kind": "what"}


def test_the_mappings_with_names_as_keys_are_those_of_the_schema() -> None:
    fields = [field for part in recipe_schema()["$defs"].values() for field in part.get("properties", {}).items()]
    named = {name for name, field in fields if field.get("type") == "object" and "$ref" not in field}
    assert named == load._WITH_NAMES


def test_the_order_of_a_mapping_is_no_difference() -> None:
    derived = {"half": "watch_s / 2", "third": "watch_s / 3"}
    old = Recipe.model_validate(changed("prepare.derive", derived))
    new = Recipe.model_validate(changed("prepare.derive", dict([*derived.items()][::-1])))
    assert recipe_digest(old) == recipe_digest(new)
    assert recipe_differences(old, new) == []
