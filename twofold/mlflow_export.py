"""Export of a finished run to MLflow: parameters, metrics, curves, the funnel, pages, and the bundle as a model.

The run folder stays authoritative; MLflow gets a copy. The registered model is `bundle/`: download it, and
`twofold.load` opens it.
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
from twofold.ragged import chunks
from twofold.recipe.load import load_recipe
from twofold.run_folder import open_stage
from twofold.runs import STAGES

EXPERIMENT: Final = "twofold"
DIGEST: Final = "twofold.stages"
_PAGES: Final = (".html", ".md", ".json", ".png")
_LONGEST_PARAM: Final = 6000  # characters that MLflow stores
_PARAMS_PER_REQUEST: Final = 100
_METRICS_PER_REQUEST: Final = 1000


def log_run(folder: str | Path, *, uri: str) -> str:
    """Copies a run that has every stage to the MLflow at `uri`; returns MLflow's id of the run.

    A run that was copied before is found, not copied again. RunError if a stage is missing, or with MLflow's message if
    MLflow refuses the run.
    """
    folder = Path(folder)
    stages = [open_stage(folder, name) for name in STAGES]
    digest = digest_of([stage.digest for stage in stages])
    name = load_recipe(folder / "recipe.yaml").name
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        existing = client.get_experiment_by_name(EXPERIMENT)
        experiment = existing.experiment_id if existing else client.create_experiment(EXPERIMENT)
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
        client.set_tag(run, DIGEST, digest)  # last: an interrupted copy is made again
        client.set_terminated(run)
    except MlflowException as error:
        raise RunError(
            f"MLflow at {uri} refused the run {folder}: {error}. The run itself is complete; give the same "
            f"command again, or unset MLFLOW_TRACKING_URI and delete the recipe's mlflow."
        ) from error
    return run


def _log(client: MlflowClient, run: str, folder: Path) -> None:
    """Copies all but the bundle."""
    report = load_report(folder / "evaluate" / "report.json")
    recipe = load_recipe(folder / "recipe.yaml").model_dump(mode="json", exclude={"tune", "mlflow"})
    params = [Param(_mlflow_name(field), str(value)[:_LONGEST_PARAM]) for field, value in _leaves(recipe)]
    for part in chunks(len(params), _PARAMS_PER_REQUEST):
        client.log_batch(run, params=params[part])
    epochs = open_stage(folder, "train").facts["epochs"]
    metrics = [*_metrics(report, epochs), *_step_metrics(folder / "train" / "training_steps.parquet")]
    for part in chunks(len(metrics), _METRICS_PER_REQUEST):
        client.log_batch(run, metrics=metrics[part])
    for tag in ("recipe_digest", "commit", "hardware"):
        client.set_tag(run, f"twofold.{tag}", getattr(report.facts, tag))
    client.set_tag(run, "twofold.window", report.question.dates if report.question else report.window)
    for compared in report.headlines:
        client.set_tag(run, f"twofold.baseline.{_mlflow_name(compared.metric)}", compared.baseline)
    client.log_dict(run, {"funnel": [asdict(step) for step in report.facts.funnel]}, "funnel.json")
    client.log_artifact(run, str(folder / "recipe.yaml"))
    for stage in (None, "evaluate", "explain"):  # the run's page, and the files of its stages
        for path in sorted(folder.joinpath(stage or "").iterdir()):
            if path.suffix in _PAGES:
                client.log_artifact(run, str(path), stage)


def _register(client: MlflowClient, run: str, folder: Path, name: str) -> None:
    """Registers the bundle as the next version of the model that has the recipe's name."""
    client.log_artifacts(run, str(folder / "index"), "bundle/index")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    client.create_model_version(name, source=f"runs:/{run}/bundle", run_id=run)


def _metrics(report: Report, epochs: list[dict[str, Any]]) -> Iterator[Metric]:
    """Yields the model's metrics on the test window, the headline metrics with their intervals, those of the best
    baseline and the difference from it, loss and validation by epoch, and the rows of the funnel."""
    now = int(time.time() * 1000)
    for name, value in report.metrics_of(MODEL).items():
        yield Metric(_mlflow_name(name), value, now, 0)
    for compared in report.headlines:
        numbers = {"": compared.model, "_baseline": compared.best, "_minus_baseline": compared.minus}
        for suffix, estimate in numbers.items():
            for end, number in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
                if number is not None and suffix + end:
                    yield Metric(f"{_mlflow_name(compared.metric)}{suffix}{end}", number, now, 0)
    for epoch in epochs:
        for name in ("loss", "validation"):
            if epoch[name] is not None:
                yield Metric(f"train/{name}", epoch[name], now, epoch["epoch"])
    for number, step in enumerate(report.facts.funnel):
        yield Metric("funnel/rows", step.rows, now, number)


def _step_metrics(log: Path) -> Iterator[Metric]:
    """Yields the metrics of single training steps, such as `train/step/loss`, if the training logged them."""
    now = int(time.time() * 1000)
    for record in pq.read_table(log).to_pylist() if log.is_file() else ():
        step = record.pop("step")
        yield from (Metric(f"train/step/{name}", value, now, step) for name, value in record.items())


def _leaves(tree: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every field that contains no other, with its path."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not pairs or not tree:
        yield field, tree
    for key, value in pairs:
        yield from _leaves(value, f"{field}.{key}" if field else str(key))


def _mlflow_name(name: str) -> str:
    """Returns a name that MLflow accepts: recall@100 becomes recall_at_100."""
    return re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))
