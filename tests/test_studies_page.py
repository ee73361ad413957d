"""docs/studies.md: every number is one of a run whose recipe is in this repository."""

import json
import random
import re
from pathlib import Path

import pytest

from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe
from twofold.render.numbers import format_decimal, format_signed

ROOT = Path(__file__).parents[1]
SAVED = sorted((ROOT / "docs" / "studies").glob("*.json"))
NUMBER = re.compile(r"[−+]?\d*\.\d+")


def cells():
    """Every number of the tables of the page, with the digest of its row and the name of its column."""
    found, header = [], []
    for line in (ROOT / "docs" / "studies.md").read_text(encoding="utf-8").splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| experiment"):
            header = parts
        elif line.startswith("| ") and header:
            digest = parts[1].strip("`")
            for metric, cell in zip(header[3:], parts[3:], strict=True):
                found += [(digest, metric, number, cell) for number in NUMBER.findall(cell)]
    return found


def numbers_of(digest, metric):
    """The numbers that the runs of one recipe gave for a metric, as the page writes them."""
    rows = [row for path in SAVED for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    (row,) = [row for row in rows if row["recipes"][0].startswith(digest)]
    saved = row["metrics"][metric]
    known = [value for value in saved["per_seed"] if value is not None]
    difference, *bounds = saved["minus"] or [None, None, None]
    plain = [sum(known) / len(known), saved["chance"]]
    texts = {format_decimal(value) for value in plain if value is not None}
    return texts | {format_signed(value) for value in (difference, *bounds) if value is not None}


def test_twenty_numbers_of_the_page_are_those_of_the_run_whose_digest_stands_beside_them():
    sampled = random.Random(0).sample(cells(), 20)
    for digest, metric, number, cell in sampled:
        texts = numbers_of(digest, metric)
        assert number in texts or f"+{number}" in texts, (
            f"{metric} of {digest}: {number} in {cell!r} is none of {texts}"
        )


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_the_saved_runs_are_of_the_recipes_as_they_are_here(path):
    """A recipe that was changed afterwards has another digest: run `make studies` again."""
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        recipe = ROOT / "recipes" / "studies" / path.stem / f"{row['name']}.yaml"
        digests = [
            recipe_digest(load_recipe(recipe, overrides=[f"train.seed={seed}"])) for seed in range(len(row["recipes"]))
        ]
        assert row["recipes"] == digests, row["name"]
