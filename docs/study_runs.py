"""Runs the studies of recipes/studies, for make_studies.py; study_rows.py gathers what came of them."""

import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from study_pictures import ANIMATED, MAPPED, draw_gap, draw_practice
from study_rows import COMPARED, COST, NEUCF, Saved, results_of

from twofold.page.run_page import keep_base
from twofold.page.tracker import read_tracker
from twofold.page.tracker_page import tracker_page
from twofold.pipeline.run import run
from twofold.recipe.load import load_recipe
from twofold.run_folder import find_stage, write_json

ROOT: Final = Path(__file__).parents[1]
STUDIES: Final = ROOT / "recipes" / "studies"
RESULTS: Final = ROOT / "docs" / "studies"
RUNS: Final = ROOT / "runs" / "studies"
NOT_RUN: Final[Mapping[str, str]] = {
    **dict.fromkeys(("d01", "d03"), "we have no copy of MovieLens-20M"),
    **dict.fromkeys(("b09", "b10", "c09"), "not in the notes"),
    "prod-dnn": "the notes say nothing of it",
    "e05": "a step for each of 251,000 examples, about 7 processor minutes a seed",
}
"""Experiments that `make studies` leaves out, and why; `--only` runs them."""


@dataclass(frozen=True)
class Places:
    """Folders of runs, and of the results that are written from them."""

    runs: Path
    results: Path


def places_of(rows: int | None) -> Places:
    """Returns the folders of the studies, or for a world of `rows` events others: it gives no numbers of the page."""
    small = RUNS.with_name(f"{RUNS.name}-{rows}")
    return Places(RUNS, RESULTS) if rows is None else Places(small, small)


def run_study(study: str, *, seeds: int, only: Sequence[str], rows: int | None) -> Path:
    """Makes the data, runs the base and its experiments with each seed, and writes the results and the tracker.

    With `only`, the base and what these experiments are compared with run beside them, and the saved results of all
    other experiments are kept.
    """
    paths, places = _recipes(study, only), places_of(rows)
    data, result = {path.stem: _make_data(path, rows=rows) for path in paths}, places.results / f"{study}.json"
    places.results.mkdir(parents=True, exist_ok=True)
    folders: dict[str, list[Path]] = {path.stem: [] for path in paths}
    for seed in range(seeds):
        for path in paths:
            folders[path.stem].append(_run(path, seed, places.runs, data=data[path.stem]))
        saved = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        results = with_neucf(results_of(study, paths, folders), saved)
        results = merged(saved, results, only) if only and saved else results
        results |= _draw(study, folders, places)
        write_json(result, results)
        _write_tracker(f"{study}.html", [results], places)
    write_all(places)
    return result


def with_neucf(results: Saved, saved: Saved) -> Saved:
    """Returns the results with the saved rows of NeuCF, where they stand beside the same runs."""
    earlier = {row["name"]: row for row in saved.get("rows", ()) if "neucf" in row}
    for row in results["rows"]:
        old = earlier.get(row["name"])
        if old is not None and old["recipes"] == row["recipes"]:
            row["neucf"] = old["neucf"]
            for part in ("beside", "model_minus"):
                row[part][NEUCF] = old[part][NEUCF]
    return results


def _draw(study: str, names: Collection[str], places: Places) -> Saved:
    """Draws the picture of a study, if the runs on it are among `names`; returns the numbers on it."""
    runs, picture = places.runs / study, places.results / f"{study}.svg"
    if study == "gap" and set(MAPPED) <= set(names):
        draw_gap(runs, picture)
    if study == "practice" and set(ANIMATED) <= set(names):
        return {"folding": draw_practice(runs, picture)}
    return {}


def _recipes(study: str, only: Sequence[str]) -> list[Path]:
    """Returns the base and the recipes that run: those that are not left out, or `only` and what these change."""
    folder = STUDIES / study
    names = sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "base")
    if unknown := [name for name in only if name not in ("base", *names)]:
        raise SystemExit(f"{study} has no experiment {', '.join(unknown)}. It has {', '.join(names)}.")
    chosen = {*only, *(COMPARED[name] for name in only if name in COMPARED)} if only else set(names) - set(NOT_RUN)
    return [folder / "base.yaml", *(folder / f"{name}.yaml" for name in names if name in chosen)]


def merged(saved: Saved, new: Saved, only: Sequence[str]) -> Saved:
    """Returns the saved results with the rows of `only` in place of theirs, in the order of their names."""
    rows = {row["name"]: row for row in saved["rows"]} | {
        row["name"]: row for row in new["rows"] if row["name"] in only
    }
    return saved | {"rows": sorted(rows.values(), key=lambda row: (row["name"] != "base", row["name"]))}


def write_all(places: Places) -> None:
    """Writes the tracker page of all runs of all studies, if they are here."""
    saved = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(places.results.glob("*.json"))]
    _write_tracker("all.html", saved, places)


def _write_tracker(page: str, saved: Sequence[Saved], places: Places) -> None:
    """Writes the tracker page of the rows of some studies, if their runs are here; else the one that is there stays."""
    runs = [
        places.runs / results["study"] / f"{row['name']}-seed{seed}"
        for results in saved
        for row in results["rows"]
        for seed in range(len(row["recipes"]))
    ]
    if missing := [str(folder.relative_to(places.runs)) for folder in runs if find_stage(folder, "evaluate") is None]:
        print(f"{page} stays as it is, because these runs are not here: {', '.join(missing)}")
        return
    text = tracker_page(read_tracker(runs))  # without links: the runs are not published
    (places.results / page).write_text(text, encoding="utf-8")


def _make_data(path: Path, *, rows: int | None) -> list[str]:
    """Makes the data that the recipe's opening names, or its base's, if they are missing; returns the settings that
    read them.
    """
    opening = re.compile(r"twofold (data .*--to (\S+))")
    found = opening.search(path.read_text(encoding="utf-8"))
    found = found or opening.search(path.with_stem("base").read_text(encoding="utf-8"))
    assert found is not None, f"{path} or its base names the command that makes its data"
    command, folder = shlex.split(found[1]), ROOT / found[2]
    if rows is not None and "world" in command:
        folder = folder.with_name(f"{folder.name}-{rows}")
        command[command.index("--rows") + 1] = str(rows)
        if "--items" in command:
            del command[command.index("--items") : command.index("--items") + 2]
    command[command.index("--to") + 1] = str(folder)
    if not (folder / "items.parquet").exists():
        subprocess.run([sys.executable, "-m", "twofold", *command], check=True, cwd=ROOT)
    data = load_recipe(path).data
    return [f"data.{name}={folder / getattr(data, name).name}" for name in ("events", "items", "users") if
            getattr(data, name) is not None]  # fmt: skip


def _run(path: Path, seed: int, folder: Path, *, data: Sequence[str]) -> Path:
    """Runs one recipe with one seed. What does not depend on the seed or the model is taken from an earlier run."""
    runs, name = folder / path.parent.name, f"{path.stem}-seed{seed}"
    for earlier, stages in ((f"{path.stem}-seed0", ("prepare", "dataset")), ("base-seed0", ("prepare",))):
        for stage in stages:
            _copy_stage(runs / earlier / stage, runs / name / stage)
    print(f"== {path.parent.name} {name}", flush=True)
    settings = [*data, f"train.seed={seed}"]
    before = _processor_seconds()
    run(load_recipe(path, overrides=settings), runs=runs, name=name, overwrite=True)
    _add_seconds(runs / name / COST, _processor_seconds() - before)
    against = path.with_stem(COMPARED.get(path.stem, "base"))
    keep_base(runs / name, None if path.stem == "base" else load_recipe(against, overrides=settings))
    return runs / name


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _add_seconds(path: Path, seconds: float) -> None:
    """Adds to the processor seconds of a run that was continued; what an attempt that was killed took is not known."""
    earlier = json.loads(path.read_text(encoding="utf-8"))["processor_s"] if path.exists() else 0.0
    write_json(path, {"processor_s": round(earlier + seconds, 1)})


def _copy_stage(source: Path, target: Path) -> None:
    """Copies a stage that is complete; `run` uses it if its digest says that it is the same, and else replaces it."""
    if source != target and source.is_dir() and not target.exists():
        shutil.copytree(source, target.with_suffix(".copy"), dirs_exist_ok=True)
        target.with_suffix(".copy").rename(target)
