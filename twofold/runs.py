"""A list of all runs, read from their run folders: nothing else about them is stored."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import yaml

from twofold.errors import RequestError
from twofold.render.numbers import plural
from twofold.run_folder import MANIFEST, Stage, find_stage, read_json

STAGES: Final = ("prepare", "dataset", "train", "evaluate", "index", "recommend", "explain")
VALIDATION: Final = "validation"
"""Name of the metric that chose the best epoch, on the validation window (`train.best_epoch_by`); trials of a search
have no other.
"""
_COUNTS: Final = (("users", "user"), ("num_items", "item"))
STUDY: Final = "study.db"
"""File that marks the folder of a search."""


@dataclass(frozen=True)
class RunSummary:
    """A run: the last complete stage, and the metrics of the model."""

    name: str
    folder: Path
    recipe_digest: str
    base: str
    """Name of the recipe that this one is based on; empty means none."""
    stage: str
    """The last complete stage."""
    changed_at: datetime | None
    """Time when that stage was completed; `None` means that no stage is complete."""
    seconds: float
    window: str
    """Test window in words: its days, the number of users and of items; empty means that the run is not evaluated."""
    setup: str
    """Evaluation setup as JSON, see `EvaluationSetup`; runs with different ones cannot be ranked together."""
    primary_metric: str
    """Metric of the report's verdict; empty means that the run is not evaluated."""
    metrics: dict[str, float]
    """Metrics on the test window, and `VALIDATION`; empty before training."""


def list_runs(runs: Path) -> list[RunSummary]:
    """Returns all run folders in `runs`, by name; incomplete and damaged ones with what can be read.

    A run has a recipe.yaml and, beside it, run.json or a stage: a recipe may also lie with the tables of a log. The
    folder of a search is no run; it holds its trials.
    """
    folders = sorted(path.parent for path in runs.glob("*/recipe.yaml")) if runs.is_dir() else []
    return [summary for folder in folders if (summary := find_run(folder)) is not None]


def find_run(folder: Path) -> RunSummary | None:
    """Returns the run in a folder; `None` means that the folder is none, as in `list_runs`."""
    is_run = (folder / "recipe.yaml").exists() and _is_run(folder) and not (folder / STUDY).exists()
    return _summary(folder) if is_run else None


@dataclass(frozen=True)
class RunGroup:
    """Runs with the same evaluation setup, or those without any, with the best value of `metric` first."""

    window: str
    """Test window in words; empty means that the runs are not evaluated."""
    metric: str
    runs: tuple[RunSummary, ...]


def group_runs(runs: Sequence[RunSummary], *, metric: str | None = None) -> list[RunGroup]:
    """Returns the runs by evaluation setup, the latest window first and runs without one last.

    Within a group the best value comes first, and runs without a value come last, by name. `metric` is by default
    the primary metric of most runs of the group. RequestError for a metric that no run has.
    """
    known = {name for run in runs for name in run.metrics}
    if metric is not None and metric not in known and f"catalogue/{metric}" in known:
        metric = f"catalogue/{metric}"
    if metric is not None and known and metric not in known:
        near = [name for name in known if metric in name] or get_close_matches(metric, known, n=10) or known
        raise RequestError(f"no run has a metric {metric}; choose from: {', '.join(sorted(near))}")
    setups = sorted({(run.window, run.setup) for run in runs}, reverse=True)
    return [_group([run for run in runs if (run.window, run.setup) == each], metric) for each in setups]


def is_smaller_better(metric: str) -> bool:
    """Returns whether a metric is an error, of which the smallest value is the best.

    >>> [is_smaller_better(name) for name in ("watch_time/mae", "heads/liked/ece", "watch_time/xauc")]
    [True, True, False]
    """
    return metric in ("watch_time/mae", "watch_time/rmse") or metric.startswith("heads/") and metric.endswith("/ece")


def _group(runs: Sequence[RunSummary], metric: str | None) -> RunGroup:
    primary = Counter(run.primary_metric for run in runs if run.primary_metric)
    chosen = metric or (primary.most_common(1)[0][0] if primary else VALIDATION)
    sign = 1 if is_smaller_better(chosen) else -1
    ordered = sorted(runs, key=lambda run: (sign * run.metrics.get(chosen, sign * math.inf), run.name))
    return RunGroup(runs[0].window, chosen, tuple(ordered))


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").exists() or any((folder / stage / MANIFEST).exists() for stage in STAGES)


def _summary(folder: Path) -> RunSummary:
    done = {name: stage for name in STAGES if (stage := find_stage(folder, name)) is not None}
    last = list(done)[-1] if done else None
    evaluated, trained = done.get("evaluate"), done.get("train")
    report = read_json(evaluated.folder / "report.json") if evaluated else {}
    setup = report.get("question")
    return RunSummary(
        name=folder.name,
        folder=folder,
        recipe_digest=str(read_json(folder / "run.json").get("recipe_digest", "?")),
        base=_base(folder / "base.yaml"),
        stage=last or "–",
        changed_at=datetime.fromtimestamp((folder / last / MANIFEST).stat().st_mtime, UTC) if last else None,
        seconds=sum(_numbers({name: stage.seconds for name, stage in done.items()}).values(), start=0.0),
        window=_window(setup if isinstance(setup, dict) else {}) if report else "",
        setup=json.dumps(setup, sort_keys=True),
        primary_metric=str(report.get("primary_metric", "")),
        metrics=(_validation(trained) if trained else {}) | (_metrics(evaluated) if evaluated else {}),
    )


def _window(setup: Mapping[str, Any]) -> str:
    users, items = (plural(number, noun) if isinstance(number := setup.get(key), int) else "" for key, noun in _COUNTS)
    return ", ".join(part for part in (str(setup.get("dates") or "unknown days"), users, items) if part)


def _base(path: Path) -> str:
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["name"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ""


def _metrics(evaluated: Stage) -> dict[str, float]:
    facts: Any = evaluated.facts
    return _numbers(facts.get("metrics")) if isinstance(facts, dict) else {}


def _validation(trained: Stage) -> dict[str, float]:
    try:
        return _numbers({VALIDATION: trained.facts["epochs"][trained.facts["best_epoch"]]["validation"]})
    except (KeyError, IndexError, TypeError):
        return {}


def _numbers(values: Any) -> dict[str, float]:
    """Returns the numbers of a mapping that are not NaN: a folder of another version may hold anything."""
    pairs = values.items() if isinstance(values, Mapping) else ()
    return {str(name): float(value) for name, value in pairs if isinstance(value, int | float) and value == value}
