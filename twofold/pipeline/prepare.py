"""The stage `prepare`: the log becomes labelled, split events."""

from typing import Final

from twofold.pipeline.job import Job
from twofold.prepare import run_plan
from twofold.prepare.check import check_recipe
from twofold.run_folder import Stage

_FILES: Final = {"kind", "events", "items", "users", "vectors", "published_negatives"}
"""Fields of `data` whose files the fingerprint identifies, or which a later stage reads."""
_OPTIONAL: Final = ("item_columns", "user_columns")
"""Fields of `data` that are inputs where they are given, so that the stages of other recipes stay what they are."""


def prepare(job: Job) -> Stage:
    """Writes rows, events, items, users and the funnel of the recipe's log."""
    source = check_recipe(job.recipe)
    inputs = {
        "prepare": job.recipe.prepare.model_dump(mode="json"),
        "data": source.fingerprint(),
        **job.recipe.data.model_dump(
            mode="json", exclude=_FILES | {name for name in _OPTIONAL if not getattr(job.recipe.data, name)}
        ),
    }
    return job.run_stage("prepare", inputs, lambda out: run_plan.prepare(job.recipe, out, job.engine, source=source))
