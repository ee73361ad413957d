"""The table of all runs: what each run folder says of itself. The folders are the truth; nothing else is kept."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import yaml

from twofold.errors import RequestError
from twofold.run_folder import MANIFEST, Stage, find_stage

STAGES: Final = ("prepare", "dataset", "train", "evaluate", "index", "recommend", "explain")
VALIDATION: Final = "validation"
"""What the best epoch was chosen by: recall@k on the validation window. Trials of a search have no other number."""
RECALL: Final = "catalogue/recall@100"
STUDY: Final = "study.db"
"""What makes a folder that of a search."""


@dataclass(frozen=True)
class RunSummary:
    """One line of the table. `metrics` are the model's own on the test window, beside `VALIDATION`; empty until then.

    `stage` is the last complete one and `changed_at` when it was; `base` names the recipe that its own departs from;
    `primary_metric` is the metric that the report's verdict is about. Both are empty where there is none.
    """

    name: str
    folder: Path
    recipe_digest: str
    base: str
    stage: str
    changed_at: datetime | None
    seconds: float
    primary_metric: str
    metrics: dict[str, float]


def list_runs(runs: Path) -> list[RunSummary]:
    """All run folders below `runs`, by name. Half-made and damaged ones are listed with what can be read of them; what
    has no recipe.yaml is no run, nor is the folder of a search, which holds its trials.
    """
    folders = sorted(path.parent for path in runs.glob("*/recipe.yaml")) if runs.is_dir() else []
    return [_summary(folder) for folder in folders if not (folder / STUDY).exists()]


def sort_runs(lines: Sequence[RunSummary], *, by: str | None = None) -> tuple[str, list[RunSummary]]:
    """The metric, and the runs with the best in it first; those without it last, by name.

    Default: the primary_metric of most runs. RequestError for a metric that no judged run has.
    """
    known = {name for line in lines for name in line.metrics}
    if by is not None and known and by not in known:
        near = [name for name in known if by in name] or get_close_matches(by, known, n=10) or known
        raise RequestError(f"no run has a metric {by}; choose from: {', '.join(sorted(near))}")
    primary_metrics = Counter(line.primary_metric for line in lines if line.primary_metric)
    metric = by or (primary_metrics.most_common(1)[0][0] if primary_metrics else RECALL)
    return metric, sorted(lines, key=lambda line: (-line.metrics.get(metric, float("-inf")), line.name))


def _summary(folder: Path) -> RunSummary:
    done = {name: stage for name in STAGES if (stage := find_stage(folder, name)) is not None}
    last = list(done)[-1] if done else None
    judged, trained = done.get("evaluate"), done.get("train")
    return RunSummary(
        name=folder.name,
        folder=folder,
        recipe_digest=str(_read(folder / "run.json").get("recipe_digest", "?")),
        base=_base(folder / "base.yaml"),
        stage=last or "–",
        changed_at=_changed_at(folder / last / MANIFEST) if last else None,
        seconds=sum(_numbers({name: stage.seconds for name, stage in done.items()}).values(), start=0.0),
        primary_metric=str(_read(judged.folder / "report.json").get("primary_metric", "")) if judged else "",
        metrics=(_validation(trained) if trained else {}) | (_metrics(judged) if judged else {}),
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _base(path: Path) -> str:
    try:
        return str(yaml.safe_load(path.read_text())["name"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ""


def _changed_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _metrics(judged: Stage) -> dict[str, float]:
    facts: Any = judged.facts
    return _numbers(facts.get("metrics")) if isinstance(facts, dict) else {}


def _validation(trained: Stage) -> dict[str, float]:
    try:
        return _numbers({VALIDATION: trained.facts["epochs"][trained.facts["best_epoch"]]["validation"]})
    except (KeyError, IndexError, TypeError):
        return {}


def _numbers(held: Any) -> dict[str, float]:
    """What is a finite or infinite number of a mapping: a folder of another version may hold anything."""
    pairs = held.items() if isinstance(held, Mapping) else ()
    return {str(name): float(value) for name, value in pairs if isinstance(value, int | float) and value == value}
