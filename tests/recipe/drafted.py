"""A recipe as a mapping, and what the tests of its loading do with it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from twofold.errors import RecipeError
from twofold.recipe.load import load_recipe

ASKED: dict[str, Any] = {
    "name": "tiny",
    "about": "what it shows",
    "data": {"kind": "table", "events": "../data/events.parquet"},
    "prepare": {
        "time_zone": "Asia/Shanghai",
        "positive": "long_view OR is_like",
        "filters": [{"kind": "items", "min_events": 5}, {"kind": "users", "min_positives": 2}],
        "split": {
            "kind": "temporal",
            "train": {"first": "2022-04-09", "end": "2022-05-07"},
            "validation": {"first": "2022-05-07", "end": "2022-05-08"},
            "test": {"first": "2022-05-08", "end": "2022-05-09"},
        },
    },
    "features": {
        "user": [
            {"kind": "history", "events": "positives"},
            {"kind": "history", "events": "negatives", "max_length": 50},
        ],
        "item": [{"kind": "id"}, {"kind": "category", "column": "author_id"}],
    },
    "retriever": {"kind": "two_tower", "dim": 32, "hidden": [64]},
    "train": {"epochs": 2},
}


def write(path: Path, tree: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def changed(field: str, value: Any, tree: dict[str, Any] = ASKED) -> dict[str, Any]:
    """A copy of a recipe with one field set; the field's keys are divided by dots."""
    copied = copy.deepcopy(tree)
    here: Any = copied
    *way, last = field.split(".")
    for step in way:
        here = here[int(step)] if isinstance(here, list) else here[step]
    here[int(last) if isinstance(here, list) else last] = value
    return copied


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as refused:
        load_recipe(path, overrides=overrides)
    message = str(refused.value)
    for jargon in ("pydantic", "Input should", "validation error", "Traceback", "Value error", "tuple"):
        assert jargon not in message
    return message
