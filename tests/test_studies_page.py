"""docs/studies.md: every number is one of a run whose recipe is in this repository."""

import copy
import json
import random
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from twofold.evaluate.significance import Estimate
from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe
from twofold.render.numbers import format_decimal, format_signed

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import study_runs  # noqa: E402
from study_length_tables import LOG, MODELS, VECTORS, WATCHED  # noqa: E402 - a script beside the page
from study_rows import over_seeds  # noqa: E402
from study_runs import merged, with_neucf  # noqa: E402
from study_tables import WALK  # noqa: E402

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "docs" / "studies"
SAVED = sorted(STUDIES.glob("*.json"))
NUMBER = re.compile(r"[−+]?\d*\.\d+")
IN_TEXT = re.compile(r"(?<![\d.])[−+]?\.\d+")


def cells(page):
    """Every number of the tables of the page, with the first cells of its row and the name of its column."""
    found, header = [], []
    for line in page.splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if line.startswith("| experiment"):
            header = parts
        elif line.startswith("| ") and header:
            for metric, cell in zip(header[3:], parts[3:], strict=True):
                found += [(parts[:3], metric, number, cell) for number in NUMBER.findall(cell)]
    return found


@cache
def saved(path):
    return json.loads(path.read_text(encoding="utf-8"))


def numbers_of(first, metric):
    """The numbers that the runs of one recipe gave for a metric, as the page writes them. `first` are the cells before
    the numbers: `d02: popularity`, the digest, and the k of the metric where the column does not name it.
    """
    name, digest, third = first
    (row,) = [row for path in SAVED for row in saved(path)["rows"] if row["recipes"][0].startswith(digest.strip("`"))]
    if metric.startswith("folding, epoch "):
        folding = saved(STUDIES / "practice.json")["folding"]
        return {format_decimal(folding[name][int(metric.rpartition(" ")[2]) - 1])}
    if metric in WALK.values():
        (cause,) = [cause for cause, column in WALK.items() if column == metric]
        return {format_decimal(step["share"]) for step in row["walk"] if step["cause"] == cause}
    if metric == "processor_s":
        return {format_decimal(sum(row["processor_s"]) / len(row["processor_s"]))}
    if "length" in row and (found := numbers_of_length(row["length"], third, metric)):
        return found
    metric = f"{metric}@{third}" if third.isdigit() else metric
    if ": " in name:
        beside = name.partition(": ")[2]
        minus = row.get("model_minus", {}).get(beside, {}).get(metric, ())
        return {format_decimal(row["beside"][beside][metric])} | {format_signed(value) for value in minus}
    found = row["metrics"][metric]
    known = [value for value in found["per_seed"] if value is not None]
    plain = [sum(known) / len(known), found["chance"]]
    texts = {format_decimal(value) for value in plain if value is not None}
    return texts | {format_signed(value) for value in found["minus"] or () if value is not None}


def numbers_of_length(length, third, metric):
    """The numbers of the tables of length of study C; empty if the column is of another table."""
    if metric.startswith("tenth "):
        return {format_decimal(length["tenths"][(LOG | MODELS)[third]][int(metric.partition(" ")[2]) - 1])}
    if metric in VECTORS:
        bounds = ("ridge_low", "ridge_high") if VECTORS[metric] == "ridge_r2" else ()
        values = [length["numbers"][name] for name in (VECTORS[metric], *bounds)]
        return {text(value) for value in values for text in (format_decimal, format_signed)}
    day, _, daily = metric.partition(" ")
    found = length["watching"].get(WATCHED.get(metric)) or length["days"].get(day, {}).get(daily)
    values = (*found["value"], *(found["minus"] or ())) if found else ()
    return {text(value) for value in values for text in (format_decimal, format_signed)}


def untraced(found):
    """The numbers that are none of the run whose digest stands in their row."""
    wrong = []
    for first, metric, number, cell in found:
        texts = numbers_of(first, metric)
        if number not in texts and f"+{number}" not in texts:
            wrong.append(f"{metric} of {first}: {number} in {cell!r} is none of {texts}")
    return wrong


def test_every_number_of_the_tables_is_one_of_the_run_whose_digest_stands_beside_it():
    found = cells((ROOT / "docs" / "studies.md").read_text(encoding="utf-8"))
    assert len(found) > 1000
    assert not untraced(found)


def test_a_number_that_was_changed_by_hand_is_found():
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    for first, metric, number, cell in random.Random(0).sample(cells(page), 20):
        other = f"{number[:-1]}{(int(number[-1]) + 5) % 10}"
        texts = numbers_of(first, metric)
        if other not in texts and f"+{other}" not in texts:
            assert len(untraced([(first, metric, other, cell.replace(number, other))])) == 1


def numbers_in(value):
    """Every number of a JSON value."""
    if isinstance(value, dict | list):
        return {each for part in (value.values() if isinstance(value, dict) else value) for each in numbers_in(part)}
    return {float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


@pytest.mark.parametrize(
    "path", [*sorted(STUDIES.glob("*.findings.txt")), STUDIES / "summary.txt"], ids=lambda p: p.stem
)
def test_every_number_of_the_findings_is_one_of_the_results_or_of_the_notes(path):
    """A finding that was not rewritten after new runs has numbers that nothing gave. The mean over seeds counts."""
    study = path.name.partition(".")[0]
    files = [each for each in SAVED if study in ("summary", each.stem)]
    values = {value for each in files for value in numbers_in(saved(each))}
    rows = [row for each in files for row in saved(each)["rows"]]
    means = [
        [value for value in found["per_seed"] if value is not None] for row in rows for found in row["metrics"].values()
    ]
    values |= {sum(each) / len(each) for each in means if each}
    openings = "".join(each.read_text(encoding="utf-8") for each in (ROOT / "recipes" / "studies").glob("*/*.yaml"))
    values |= {float(each) for each in re.findall(r"(?<![\d.])\.\d+", openings)}
    known = {f"{abs(value):.{digits}f}".lstrip("0") for value in values for digits in (2, 3, 4)}
    text = path.read_text(encoding="utf-8")
    assert not [number for number in IN_TEXT.findall(text) if number.lstrip("−+") not in known]


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_the_saved_runs_are_of_the_recipes_as_they_are_here(path):
    """A recipe that was changed afterwards has another digest: run `make studies` again."""
    for row in saved(path)["rows"]:
        recipe = ROOT / "recipes" / "studies" / path.stem / f"{row['name']}.yaml"
        digests = [
            recipe_digest(load_recipe(recipe, overrides=[f"train.seed={seed}"])) for seed in range(len(row["recipes"]))
        ]
        assert row["recipes"] == digests, row["name"]


def test_one_row_again_keeps_the_others():
    rows = [{"name": name, "value": 1} for name in ("base", "e01", "e02")]
    new = [{"name": name, "value": 2} for name in ("base", "e02", "e05")]
    found = merged(
        {"study": "practice", "folding": 3, "rows": rows}, {"study": "practice", "rows": new}, ["e02", "e05"]
    )
    assert {row["name"]: row["value"] for row in found["rows"]} == {"base": 1, "e01": 1, "e02": 2, "e05": 2}
    assert found["folding"] == 3


def test_neucf_stays_beside_the_runs_that_it_was_trained_for_alone():
    old = {"name": "d02", "recipes": ["a"], "neucf": {"tried": 8}, "beside": {"NeuCF": 1}, "model_minus": {"NeuCF": 2}}
    new = {"name": "d02", "beside": {"popularity": 3}, "model_minus": {}}
    (kept,) = with_neucf({"rows": [copy.deepcopy(new) | {"recipes": ["a"]}]}, {"rows": [old]})["rows"]
    assert (kept["beside"], kept["model_minus"]) == ({"popularity": 3, "NeuCF": 1}, {"NeuCF": 2})
    (other,) = with_neucf({"rows": [copy.deepcopy(new) | {"recipes": ["a", "b"]}]}, {"rows": [old]})["rows"]
    assert other == new | {"recipes": ["a", "b"]}


@pytest.mark.parametrize("rows", [None, 40000])
def test_a_small_world_writes_beside_the_results_of_the_page(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(study_runs, "RUNS", tmp_path / "runs" / "studies")
    monkeypatch.setattr(study_runs, "RESULTS", tmp_path / "docs")
    monkeypatch.setattr(study_runs, "_make_data", lambda path, *, rows: [])
    monkeypatch.setattr(study_runs, "_run", lambda path, seed, folder, *, data: folder / f"{path.stem}-seed{seed}")
    monkeypatch.setattr(study_runs, "results_of", lambda study, paths, folders: {"study": study, "rows": []})
    monkeypatch.setattr(study_runs, "_draw", lambda study, names, places: {})
    monkeypatch.setattr(study_runs, "_write_tracker", lambda page, saved, places: None)
    folder = tmp_path / "docs" if rows is None else tmp_path / "runs" / "studies-40000"
    assert study_runs.run_study("features", seeds=1, only=[], rows=rows) == folder / "features.json"
    assert list(tmp_path.rglob("*.json")) == [folder / "features.json"]


def test_an_interval_over_seeds_holds_what_differs_between_seeds():
    """Three runs of 100 users: users deviate by 1, a user within a run by .3, and the levels of the runs by .3."""
    rng = np.random.default_rng(0)
    covered, narrow = [], []
    for _ in range(200):
        users, runs = rng.normal(size=100), []
        for _ in range(3):
            values = 1 + users + rng.normal(scale=0.3, size=100) + rng.normal(scale=0.3)
            half = 1.984 * values.std(ddof=1) / 10
            runs.append(Estimate(values.mean(), values.mean() - half, values.mean() + half))
        _, low, high = over_seeds(runs, 100)
        covered.append(low <= 1 <= high)
        narrow.append(runs[0].low <= 1 <= runs[0].high)
    assert np.mean(covered) > 0.9
    assert np.mean(narrow) < 0.8
