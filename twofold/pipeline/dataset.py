"""The stage `dataset`: prepared tables become arrays."""

from twofold.dataset import build
from twofold.pipeline.job import Job
from twofold.run_folder import Stage


def build_dataset(job: Job, prepared: Stage) -> Stage:
    """Writes the arrays; vocabularies and features are fitted on the training window."""
    features, zone = job.recipe.all_features, job.recipe.prepare.time_zone
    inputs = {"prepare": prepared.digest, "features": features.model_dump(mode="json")}
    return job.run_stage(
        "dataset", inputs, lambda out: build.build_dataset(prepared.folder, features, out, time_zone=zone)
    )
