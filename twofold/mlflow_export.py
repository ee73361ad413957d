"""A finished run → MLflow: parameters, metrics, curves, the funnel, its pages, and the bundle as a registered model.

The folders stay the truth; this copies. What MLflow registers is `bundle/`, which `twofold.load` opens once downloaded.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from twofold.digest import digest_of
from twofold.errors import RunError
from twofold.evaluate.results import MODEL, Report, load_report
from twofold.recipe.load import load_recipe
from twofold.run_folder import open_stage
from twofold.runs import STAGES

EXPERIMENT: Final = "twofold"
DIGEST: Final = "twofold.stages"
_PAGES: Final = (".html", ".md", ".json", ".png")
_LONGEST: Final = 6000  # characters of a parameter that MLflow keeps
_AT_ONCE: Final = 100  # parameters that it takes in one request
_METRICS: Final = 1000  # metrics


def log_run(folder: Path, *, uri: str) -> str:
    """Copies a run that has every stage to the MLflow at `uri`; returns MLflow's id of it.

    A run whose stages are there already is found, not copied again. RunError if a stage is missing, or with what MLflow
    says if it does not take the run.
    """
    stages = [open_stage(folder, name) for name in STAGES]
    digest = digest_of([stage.digest for stage in stages])
    name = load_recipe(folder / "recipe.yaml").name
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        held = client.get_experiment_by_name(EXPERIMENT)
        experiment = held.experiment_id if held else client.create_experiment(EXPERIMENT)
        known = client.search_runs([experiment], f"tags.`{DIGEST}` = '{digest}'", max_results=1)
        if known:
            return str(known[0].info.run_id)
        run = str(client.create_run(experiment, run_name=folder.name).info.run_id)
        try:
            _log(client, run, folder)
            _register(client, run, folder, name)
        except BaseException:
            client.set_terminated(run, "FAILED")
            raise
        client.set_tag(run, DIGEST, digest)  # last: what was cut off is copied anew
        client.set_terminated(run)
    except MlflowException as error:
        raise RunError(
            f"MLflow at {uri} did not take the run {folder}: {error}. The run itself is complete; give the same "
            f"command again, or unset MLFLOW_TRACKING_URI and delete the recipe's mlflow."
        ) from error
    return run


def _log(client: MlflowClient, run: str, folder: Path) -> None:
    """All but the bundle."""
    report = load_report(folder / "evaluate" / "report.json")
    recipe = load_recipe(folder / "recipe.yaml").model_dump(mode="json", exclude={"tune", "mlflow"})
    params = [Param(_named(field), str(value)[:_LONGEST]) for field, value in _leaves(recipe)]
    for first in range(0, len(params), _AT_ONCE):
        client.log_batch(run, params=params[first : first + _AT_ONCE])
    epochs = open_stage(folder, "train").facts["epochs"]
    metrics = [*_metrics(report, epochs), *_steps(folder / "train" / "training_steps.parquet")]
    for first in range(0, len(metrics), _METRICS):
        client.log_batch(run, metrics=metrics[first : first + _METRICS])
    for tag in ("recipe_digest", "commit", "hardware"):
        client.set_tag(run, f"twofold.{tag}", getattr(report.facts, tag))
    client.log_dict(run, {"funnel": [asdict(line) for line in report.facts.funnel]}, "funnel.json")
    client.log_artifact(run, str(folder / "recipe.yaml"))
    for place in (None, "evaluate", "explain"):  # the run's card, and the pages of its stages
        for path in sorted(folder.joinpath(place or "").iterdir()):
            if path.suffix in _PAGES:
                client.log_artifact(run, str(path), place)


def _register(client: MlflowClient, run: str, folder: Path, name: str) -> None:
    """The bundle, as the next version of the model that has the recipe's name."""
    client.log_artifacts(run, str(folder / "index"), "bundle/index")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    client.create_model_version(name, source=f"runs:/{run}/bundle", run_id=run)


def _metrics(report: Report, epochs: list[dict[str, Any]]) -> Iterator[Metric]:
    """The model's on the test window; by epoch, loss and validation; by step of the funnel, the rows it left."""
    now = int(time.time() * 1000)
    for name, value in report.metrics_of(MODEL).items():
        yield Metric(_named(name), value, now, 0)
    for epoch in epochs:
        for name in ("loss", "validation"):
            if epoch[name] is not None:
                yield Metric(f"train/{name}", epoch[name], now, epoch["epoch"])
    for step, line in enumerate(report.facts.funnel):
        yield Metric("funnel/rows", line.rows, now, step)


def _steps(log: Path) -> Iterator[Metric]:
    """What a training by steps logged of them: `train/step/loss` and its like."""
    now = int(time.time() * 1000)
    for line in pq.read_table(log).to_pylist() if log.is_file() else ():
        step = line.pop("step")
        yield from (Metric(f"train/step/{name}", value, now, step) for name, value in line.items())


def _leaves(tree: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that holds no other, by its path."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not pairs or not tree:
        yield field, tree
    for key, value in pairs:
        yield from _leaves(value, f"{field}.{key}" if field else str(key))


def _named(name: str) -> str:
    """MLflow takes no @ in a name, nor most other signs: recall@100 is recall_at_100."""
    return re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))
