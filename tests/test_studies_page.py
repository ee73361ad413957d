"""docs/studies.md: every number is one of a run whose recipe is in this repository."""

import json
import random
import re
import sys
from pathlib import Path

import pytest

from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe
from twofold.render.numbers import format_decimal, format_signed

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

from study_tables import WALK  # noqa: E402 - a script beside the page

ROOT = Path(__file__).parents[1]
SAVED = sorted((ROOT / "docs" / "studies").glob("*.json"))
NUMBER = re.compile(r"[−+]?\d*\.\d+")


def cells():
    """Every number of the tables of the page, with the first cells of its row and the name of its column."""
    found, header = [], []
    for line in (ROOT / "docs" / "studies.md").read_text(encoding="utf-8").splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| experiment"):
            header = parts
        elif line.startswith("| ") and header:
            for metric, cell in zip(header[3:], parts[3:], strict=True):
                found += [(parts[:3], metric, number, cell) for number in NUMBER.findall(cell)]
    return found


def numbers_of(first, metric):
    """The numbers that the runs of one recipe gave for a metric, as the page writes them. `first` are the cells before
    the numbers: `d02: popularity`, the digest, and the k of the metric where the column does not name it.
    """
    name, digest, k = first
    rows = [row for path in SAVED for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    (row,) = [row for row in rows if row["recipes"][0].startswith(digest.strip("`"))]
    if metric.startswith("folding, epoch "):
        folding = json.loads((ROOT / "docs" / "studies" / "practice.json").read_text(encoding="utf-8"))["folding"]
        return {format_decimal(folding[name][int(metric.rpartition(" ")[2]) - 1])}
    if metric in WALK.values():
        (cause,) = [cause for cause, column in WALK.items() if column == metric]
        return {format_decimal(step["share"]) for step in row["walk"] if step["cause"] == cause}
    metric = f"{metric}@{k}" if k.isdigit() else metric
    if ": " in name:
        beside = name.partition(": ")[2]
        minus = row.get("model_minus", {}).get(beside, {}).get(metric, ())
        return {format_decimal(row["beside"][beside][metric])} | {format_signed(value) for value in minus}
    saved = row["metrics"][metric]
    known = [value for value in saved["per_seed"] if value is not None]
    difference, *bounds = saved["minus"] or [None, None, None]
    plain = [sum(known) / len(known), saved["chance"]]
    texts = {format_decimal(value) for value in plain if value is not None}
    return texts | {format_signed(value) for value in (difference, *bounds) if value is not None}


def test_a_hundred_numbers_of_the_page_are_those_of_the_run_whose_digest_stands_beside_them():
    sampled = random.Random(0).sample(cells(), 100)
    for first, metric, number, cell in sampled:
        texts = numbers_of(first, metric)
        assert number in texts or f"+{number}" in texts, f"{metric} of {first}: {number} in {cell!r} is none of {texts}"


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_the_saved_runs_are_of_the_recipes_as_they_are_here(path):
    """A recipe that was changed afterwards has another digest: run `make studies` again."""
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        recipe = ROOT / "recipes" / "studies" / path.stem / f"{row['name']}.yaml"
        digests = [
            recipe_digest(load_recipe(recipe, overrides=[f"train.seed={seed}"])) for seed in range(len(row["recipes"]))
        ]
        assert row["recipes"] == digests, row["name"]
