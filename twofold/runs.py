"""The table of all runs: what each run folder says of itself. The folders are the truth; nothing else is kept."""

import json
from dataclasses import dataclass
from pathlib import Path

from twofold.bundle import Stage, find_stage

STAGES = ("prepare", "dataset", "train", "evaluate", "index", "recommend", "explain")


@dataclass(frozen=True)
class RunSummary:
    """One line of the table. `metrics` are the model's own on the test window; empty until the run has been judged."""

    name: str
    folder: Path
    recipe_digest: str
    stage: str
    seconds: float
    metrics: dict[str, float]


def list_runs(runs: Path) -> list[RunSummary]:
    """All run folders below `runs`, by name. Half-made ones are listed with the last stage they completed."""
    folders = sorted(path.parent for path in runs.glob("*/recipe.yaml")) if runs.is_dir() else []
    return [_summary(folder) for folder in folders]


def _summary(folder: Path) -> RunSummary:
    done = {name: stage for name in STAGES if (stage := find_stage(folder, name)) is not None}
    judged = done.get("evaluate")
    return RunSummary(
        name=folder.name,
        folder=folder,
        recipe_digest=_digest(folder),
        stage=list(done)[-1] if done else "—",
        seconds=sum((stage.seconds for stage in done.values()), start=0.0),
        metrics=_metrics(judged) if judged else {},
    )


def _digest(folder: Path) -> str:
    try:
        return str(json.loads((folder / "run.json").read_text())["recipe_digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return "?"


def _metrics(judged: Stage) -> dict[str, float]:
    metrics = judged.facts.get("metrics", {})
    return {str(name): float(value) for name, value in metrics.items()}
