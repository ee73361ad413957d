"""Each field of a recipe has a reason: two recipes of recipes/ differ in it, or docs/extending.md names it."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
LISTED = set(re.findall(r"`([A-Z]\w+\.\w+)`", PAGE[PAGE.index("## Fields that no two shipped recipes differ in") :]))


def sections(model: Any) -> Iterator[type[BaseModel]]:
    """Yields the types of the sections of a recipe, from their common base."""
    for each in model.__subclasses__():
        yield each
        yield from sections(each)


def values_in(part: Any) -> Iterator[tuple[str, str]]:
    """Yields each field of a recipe, with the name of its section's type, and its value as text."""
    if isinstance(part, BaseModel):
        for name in type(part).model_fields:
            yield f"{type(part).__name__}.{name}", repr(getattr(part, name))
            yield from values_in(getattr(part, name))
    elif isinstance(part, dict | list | tuple):
        for each in part.values() if isinstance(part, dict) else part:
            yield from values_in(each)


def test_two_recipes_differ_in_each_field_or_the_page_says_why_it_is_there() -> None:
    of_recipes = [each for each in sections(BaseModel) if each.__module__.startswith("twofold.recipe.")]
    fields = {f"{each.__name__}.{name}" for each in of_recipes for name in each.model_fields if name != "kind"}
    found = defaultdict(set)
    for path in ROOT.glob("recipes/**/*.yaml"):
        if re.search(r"^(name|base):", path.read_text(encoding="utf-8"), re.MULTILINE):
            for field, value in values_in(load_recipe(path)):
                found[field].add(value)
    assert Recipe in of_recipes
    assert "TwoTower.dim" in fields - LISTED
    assert fields >= LISTED
    assert sorted(field for field in fields - LISTED if len(found[field]) < 2) == []
