"""The stage `dataset`: prepared tables become arrays."""

from pathlib import Path
from typing import Any

from twofold.dataset import build
from twofold.pipeline.job import Job
from twofold.progress import heartbeat
from twofold.run_folder import Stage
from twofold.tables import Split


def build_dataset(job: Job, prepared: Stage, *, with_validation: bool = False) -> Stage:
    """Writes the arrays; vocabularies and features are fitted on the training window.

    `with_validation` adds the validation window to the training examples.
    """
    features, zone = job.recipe.all_features, job.recipe.prepare.time_zone
    inputs = {"prepare": prepared.digest, "features": features.model_dump(mode="json")}
    fit_on: tuple[Split, ...] = ("train", "validation") if with_validation else ("train",)
    inputs |= {"fit_on": fit_on} if with_validation else {}

    def work(out: Path) -> dict[str, Any]:
        with heartbeat("dataset"):
            return build.build_dataset(prepared.folder, features, out, time_zone=zone, fit_on=fit_on)

    return job.run_stage("dataset", inputs, work)
