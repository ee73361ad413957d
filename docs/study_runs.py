"""Runs the studies of recipes/studies and gathers what came of them, for make_studies.py."""

import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from study_pictures import ANIMATED, MAPPED, draw_gap, draw_practice

from twofold.errors import RequestError
from twofold.evaluate.compare import compare_runs, compare_seeds
from twofold.evaluate.results import MODEL, Report
from twofold.evaluate.scores import FIRST_STAGE
from twofold.page.run_page import keep_base
from twofold.page.tracker import read_tracker
from twofold.page.tracker_page import tracker_page
from twofold.pipeline.job import report_of
from twofold.pipeline.run import run
from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe
from twofold.run_folder import find_stage, open_stage, write_json

ROOT: Final = Path(__file__).parents[1]
STUDIES: Final = ROOT / "recipes" / "studies"
RESULTS: Final = ROOT / "docs" / "studies"
RUNS: Final = ROOT / "runs" / "studies"
Saved = dict[str, Any]

COST: Final = "cost.json"
"""File of a run folder with the processor seconds that the run took, all threads together."""
LABEL_WITH_LENGTH: Final = "label_with_length"
"""Rank correlation of the label with the length of the item, on rows that fitted nothing."""

SHOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "features": (
        *(f"impressions/{name}" for name in ("auc", "ndcg@5", "ndcg@10", "mrr", "map", "map@10")),
        *("coverage", "overlap"),
    ),
    "gap": (
        *(f"in_batch/hit_rate@{k}" for k in (1, 5, 20, 100, 200)),
        *(f"catalogue/recall@{k}" for k in (1, 5, 20, 100, 200)),
        *("catalogue_filtered/recall@100", "catalogue_filtered/ceiling"),
        *("impressions/auc", "impressions/recall@10", "language/folding", "language/off_group"),
    ),
    "watch-time": (
        LABEL_WITH_LENGTH,
        *(f"impressions/{name}" for name in ("recall@5", "recall@10", "recall@50", "recall@100", "map", "auc", "mrr")),
        *("watch_time/xauc", "watch_time/wtg@5", "watch_time/mae", "watch_time/rmse"),
    ),
    "practice": ("catalogue/recall@100", "catalogue/ndcg@10", "language/folding"),
    "two-stages": (
        *(f"catalogue/{name}@{k}" for k in (10, 20, 50, 100) for name in ("hit_rate", "recall", "ndcg", "mrr")),
        *(
            f"sampled/{draw}/{name}"
            for draw in ("popularity-100", "uniform-100")
            for name in ("hit_rate@10", "ndcg@10", "mrr")
        ),
    ),
}
"""Metrics and probes of each study's table."""
BESIDE: Final[Mapping[str, tuple[str, ...]]] = {
    "gap": ("popularity", "popularity, own language"),
    "practice": ("popularity, own language",),
    "two-stages": ("popularity", FIRST_STAGE),
}
"""Rows of a report that are saved beside the model's."""
NOT_RUN: Final = ("b09", "b10", "d01", "d03", "c09", "prod-dnn", "e05")
"""Experiments that `make studies` leaves out: their log must be downloaded (d01, d03), they are not in the notes
(b09, b10, c09, prod-dnn), or a step for every example takes too long (e05). `--only` runs them.
"""
COMPARED: Final[Mapping[str, str]] = {
    **{"a02": "a01", "a04": "a03", "a05": "a03", "a06": "a04", "a08": "a07", "a09": "a08", "a10": "a08", "a11": "a03"},
    **{"c02": "c01", "c03": "c02", "c04": "c03", "c05": "c03", "c06": "c05", "c07": "c03", "c08": "c03", "c09": "c03"},
    **{"e03": "e02", "e04": "e03"},
}
"""Experiments that are compared with another one than the base: the one that their opening says they change."""


# --- running ----------------------------------------------------------------------------------------------------------


def run_study(study: str, *, seeds: int, only: Sequence[str], rows: int | None) -> Path:
    """Makes the data, runs the base and its experiments with each seed, and writes the results and the tracker."""
    paths = [STUDIES / study / "base.yaml", *sorted(each for each in (STUDIES / study).glob("*.yaml"))]
    paths = [paths[0], *(each for each in paths[1:] if _is_run(each, only))]
    data, result = _make_data(paths[0], rows=rows), RESULTS / f"{study}.json"
    RESULTS.mkdir(exist_ok=True)
    folders: dict[str, list[Path]] = {path.stem: [] for path in paths}
    for seed in range(seeds):
        for path in paths:
            folders[path.stem].append(_run(path, seed, data=data))
        results = _results(study, paths, folders)
        if study == "practice" and set(ANIMATED) <= set(folders):
            results["folding"] = draw_practice(RUNS / study, RESULTS / "practice.svg")
        if study == "gap" and set(MAPPED) <= set(folders):
            draw_gap(RUNS / study, RESULTS / "gap.svg")
        write_json(result, results)
        tracker = read_tracker([folder for each in folders.values() for folder in each])
        page = tracker_page(tracker)  # without links: the runs are not published
        (RESULTS / f"{study}.html").write_text(page, encoding="utf-8")
    return result


def _is_run(path: Path, only: Sequence[str]) -> bool:
    return path.stem != "base" and (path.stem in only if only else path.stem not in NOT_RUN)


def _make_data(base: Path, *, rows: int | None) -> list[str]:
    """Makes the data that the base recipe's opening names, if they are missing; returns the settings that read them."""
    found = re.search(r"twofold (data .*--to (\S+))", base.read_text(encoding="utf-8"))
    assert found is not None, f"{base} names the command that makes its data"
    command, folder = shlex.split(found[1]), ROOT / found[2]
    if rows is not None and "world" in command:
        folder = folder.with_name(f"{folder.name}-{rows}")
        command[command.index("--rows") + 1] = str(rows)
        if "--items" in command:
            del command[command.index("--items") : command.index("--items") + 2]
    command[command.index("--to") + 1] = str(folder)
    if not (folder / "items.parquet").exists():
        subprocess.run([sys.executable, "-m", "twofold", *command], check=True, cwd=ROOT)
    data = load_recipe(base).data
    return [f"data.{name}={folder / getattr(data, name).name}" for name in ("events", "items", "users") if
            getattr(data, name) is not None]  # fmt: skip


def _run(path: Path, seed: int, *, data: Sequence[str]) -> Path:
    """Runs one recipe with one seed. What does not depend on the seed or the model is taken from an earlier run."""
    runs, name = RUNS / path.parent.name, f"{path.stem}-seed{seed}"
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


# --- results ----------------------------------------------------------------------------------------------------------


def _results(study: str, paths: Sequence[Path], folders: Mapping[str, Sequence[Path]]) -> Saved:
    rows = []
    for path in paths:
        own = folders[path.stem]
        reports = [report_of(folder) for folder in own]
        against = COMPARED.get(path.stem, "base")
        minus = _differences(folders[against], own) if path.stem != "base" and against in folders else {}
        setup = reports[0].question
        rows.append(
            {
                "name": path.stem,
                "about": load_recipe(path).about,
                **opening_of(path),
                "recipes": [recipe_digest(load_recipe(folder / "recipe.yaml")) for folder in own],
                "tested_on": None
                if setup is None
                else f"{setup.dates}, {setup.users:,} users, {setup.num_items:,} items",
                "positive_share": _test_share(own[0]),
                "against": against if minus else None,
                "processor_s": [_cost(folder) for folder in own],
                "beside": {name: _beside(reports[0], name, SHOWN[study]) for name in BESIDE.get(study, ())},
                "model_minus": {name: _model_minus(reports[0], name, SHOWN[study]) for name in BESIDE.get(study, ())},
                "walk": _walk(own[0]) if study == "gap" else [],
                "metrics": {
                    metric: {
                        "per_seed": [
                            _value(report, folder, metric) for report, folder in zip(reports, own, strict=True)
                        ],
                        "chance": _chance(reports[0], metric),
                        "minus": minus.get(metric),
                    }
                    for metric in SHOWN[study]
                },
            }
        )
    return {"study": study, "rows": rows}


def _cost(folder: Path) -> float | None:
    """Returns the processor seconds of a run; `None` means that they were not measured."""
    path = folder / COST
    return float(json.loads(path.read_text(encoding="utf-8"))["processor_s"]) if path.exists() else None


def _beside(report: Report, name: str, metrics: Sequence[str]) -> dict[str, float]:
    values = report.metrics_of(name)
    return {metric: values[metric] for metric in metrics if metric in values}


def _model_minus(report: Report, name: str, metrics: Sequence[str]) -> dict[str, list[float | None]]:
    """Returns the paired differences of the model from a row of its catalogue, each with its interval."""
    minus = {
        metric: each for row in report.catalogue.rows if row.name == name for metric, each in row.model_minus.items()
    }
    return {metric: [each.value, each.low, each.high] for metric, each in minus.items() if metric in metrics}


def _walk(folder: Path) -> list[Saved]:
    """Returns the steps from the hit rate@10 in a batch to that of the served lists at the same share of candidates."""
    gap = json.loads((open_stage(folder, "explain").folder / "gap.json").read_text(encoding="utf-8"))
    start = {"cause": "in a batch", "share": gap["in_batch"], "change": None, "low": None, "high": None}
    return [start, *({name: step[name] for name in start} for step in (*gap["exam"], *gap["serving"]))]


def opening_of(path: Path) -> Saved:
    """Returns what the opening comment says the notes claimed and what was expected before the run."""
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    told: dict[str, str] = {"claimed": "", "expected": ""}
    field = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        field = word if word in told else field if line and word not in ("data", "changes", "note", "shows") else ""
        if field:
            told[field] += f" {rest.strip() if word == field else line}"
    return {field: text.strip() for field, text in told.items()}


def _differences(base: Sequence[Path], own: Sequence[Path]) -> dict[str, list[float | None]]:
    """Returns difference, low and high of each metric, over users and, if there are several, seeds; empty if the
    questions differ.
    """
    try:
        if len(base) == 1:
            lines = compare_runs(own[0] / "evaluate", base[0] / "evaluate").metrics
            return {line.metric: [line.minus.value, line.minus.low, line.minus.high] for line in lines}
        (comparison,) = compare_seeds([*base, *own], seeds=len(base))
    except RequestError:
        return {}
    return {name: [claim.difference, claim.low, claim.high] for name, claim in comparison.claims.items()}


def _value(report: Report, folder: Path, metric: str) -> float | None:
    values = report.metrics_of(MODEL)
    if report.filtered is not None:
        values["catalogue_filtered/ceiling"] = report.filtered.ceiling.value
    if metric in values:
        return values[metric]
    if metric == LABEL_WITH_LENGTH:
        prepared = find_stage(folder, "prepare")
        return None if prepared is None else prepared.facts["labels"][metric]
    explained = find_stage(folder, "explain")
    probes = explained.facts["probes"] if explained is not None else ()
    return next((probe["value"] for probe in probes if probe["name"] == metric), None)


def _chance(report: Report, metric: str) -> float | None:
    if metric in report.impressions.bounds:
        return report.impressions.bounds[metric].chance
    return report.metrics_of("random").get(metric)


def _test_share(folder: Path) -> float | None:
    prepared = find_stage(folder, "prepare")
    return None if prepared is None else float(prepared.facts["splits"]["test"]["positive_share"])
