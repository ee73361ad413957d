"""Rows of docs/studies/*.json: what came of the runs of an experiment, for study_runs.py and study_tables.py."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.stats
from study_length import length_figures

from twofold.errors import RequestError
from twofold.evaluate.compare import compare_runs, compare_seeds
from twofold.evaluate.results import MODEL, Report
from twofold.evaluate.scores import FIRST_STAGE
from twofold.evaluate.significance import Estimate
from twofold.pipeline.job import report_of
from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe
from twofold.run_folder import find_stage, open_stage

Saved = dict[str, Any]

COST: Final = "cost.json"
"""File of a run folder with the processor seconds that the run took, all threads together."""
NEUCF: Final = "NeuCF"
"""Row beside the model that study_neucf.py adds."""
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
COMPARED: Final[Mapping[str, str]] = {
    **{"a02": "a01", "a04": "a03", "a05": "a03", "a06": "a04", "a08": "a07", "a09": "a08", "a10": "a08", "a11": "a03"},
    **{"c02": "c01", "c03": "c02", "c04": "c03", "c05": "c03", "c06": "c05", "c07": "c03", "c08": "c03", "c09": "c03"},
    **{"e03": "e02", "e04": "e03"},
}
"""Experiments that are compared with another one than the base: the one that their opening says they change."""


def results_of(study: str, paths: Sequence[Path], folders: Mapping[str, Sequence[Path]]) -> Saved:
    return {"study": study, "rows": [_row(study, path, folders) for path in paths]}


def _row(study: str, path: Path, folders: Mapping[str, Sequence[Path]]) -> Saved:
    own, metrics = folders[path.stem], SHOWN[study]
    reports = [report_of(folder) for folder in own]
    against = COMPARED.get(path.stem, "base")
    minus = _differences(folders[against], own) if path.stem != "base" and against in folders else {}
    minus |= _filtered_minus(reports) if minus else {}
    setup = reports[0].question
    row = {
        "name": path.stem,
        "about": load_recipe(path).about,
        **opening_of(path),
        "recipes": [recipe_digest(load_recipe(folder / "recipe.yaml")) for folder in own],
        "tested_on": None if setup is None else f"{setup.dates}, {setup.users:,} users, {setup.num_items:,} items",
        "positive_share": _test_share(own[0]),
        "against": against if minus else None,
        "processor_s": [_cost(folder) for folder in own],
        "beside": {name: _beside(reports, name, metrics) for name in BESIDE.get(study, ())},
        "model_minus": {name: _model_minus(reports, name, metrics) for name in BESIDE.get(study, ())},
        "walk": _walk(own) if study == "gap" else [],
        "metrics": {
            metric: {
                "per_seed": [_value(report, folder, metric) for report, folder in zip(reports, own, strict=True)],
                "chance": _chance(reports[0], metric),
                "minus": minus.get(metric),
            }
            for metric in metrics
        },
    }
    return row | ({"length": length_figures(own, folders[against] if minus else None)} if study == "watch-time" else {})


def _cost(folder: Path) -> float | None:
    """Returns the processor seconds of a run; `None` means that they were not measured."""
    path = folder / COST
    return float(json.loads(path.read_text(encoding="utf-8"))["processor_s"]) if path.exists() else None


def _beside(reports: Sequence[Report], name: str, metrics: Sequence[str]) -> dict[str, float]:
    """Returns the values of a row beside the model, each the mean over the seeds."""
    values = [report.metrics_of(name) for report in reports]
    return {metric: float(np.mean([each[metric] for each in values])) for metric in metrics if metric in values[0]}


def _model_minus(reports: Sequence[Report], name: str, metrics: Sequence[str]) -> dict[str, list[float | None]]:
    """Returns the differences of the model from a row of its catalogue, paired within each run, with intervals."""
    found: dict[str, list[Estimate]] = {}
    for report in reports:
        for row in (row for row in report.catalogue.rows if row.name == name):
            for metric in (metric for metric in row.model_minus if metric in metrics):
                found.setdefault(metric, []).append(row.model_minus[metric])
    users = reports[0].catalogue.users_judged
    return {metric: over_seeds(each, users) for metric, each in found.items()}


def _filtered_minus(reports: Sequence[Report]) -> dict[str, list[float | None]]:
    """Returns what a filter of the index changes: the allowed items alone, less all items, of the same model."""
    lines = [each.filtered.lines for each in reports if each.filtered is not None]
    users = reports[0].catalogue.users_judged
    return {same[0].metric: over_seeds([line.minus for line in same], users) for same in zip(*lines, strict=True)}


def over_seeds(runs: Sequence[Estimate], users: int) -> list[float | None]:
    """Returns the mean of the runs' differences, and an interval over users and seeds.

    Its variance is the mean of the runs' variances over users, plus that of the mean over seeds. It is rather too wide:
    a mean over seeds varies less over users than one run does, and the variance between seeds holds a part of that.
    """
    values = np.array([each.value for each in runs], np.float64)
    if len(runs) == 1 or runs[0].low is None:
        return [runs[0].value, runs[0].low, runs[0].high]
    half = np.array([each.high - each.low for each in runs], np.float64) / 2
    of_users = float(((half / scipy.stats.t.ppf(0.975, users - 1)) ** 2).mean())
    of_seeds = float(values.var(ddof=1) / len(values))
    variance, errors = of_users + of_seeds, of_users**2 / (users - 1) + of_seeds**2 / (len(values) - 1)
    width = float(scipy.stats.t.ppf(0.975, variance**2 / errors) * np.sqrt(variance)) if variance else 0.0
    return [float(values.mean()), float(values.mean() - width), float(values.mean() + width)]


def _walk(folders: Sequence[Path]) -> list[Saved]:
    """Returns the steps from the hit rate@10 in a batch to that of the served lists at the same share of candidates.

    Shares are means over the seeds.
    """
    shares: dict[str, list[float]] = {}
    for folder in folders:
        gap = json.loads((open_stage(folder, "explain").folder / "gap.json").read_text(encoding="utf-8"))
        shares.setdefault("in a batch", []).append(gap["in_batch"])
        for step in (*gap["exam"], *gap["serving"]):
            shares.setdefault(step["cause"], []).append(step["share"])
    return [{"cause": cause, "share": float(np.mean(each))} for cause, each in shares.items()]


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
