"""A recommender system from an interaction log to served recommendations, with an honest measure of their quality.

```python
import twofold

job = twofold.run("recipes/kuairand.yaml")              # runs every stage
recommender = twofold.load(job.folder)                  # opens the run's bundle
recommender.recommend([12, 34], k=20)                   # Arrow table: user_id, item_id, score, rank
```
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twofold.errors import DataError, RecipeError, RequestError, RunError, TwofoldError

if TYPE_CHECKING:
    from twofold.pipeline.job import Job
    from twofold.recipe.schema import Recipe
    from twofold.serve.recommender import Recommender


def run(
    recipe: "str | Path | Recipe",
    *,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    name: str | None = None,
    overwrite: bool = False,
) -> "Job":
    """Runs every stage of a recipe (a file or a `Recipe`) and returns the job; `job.folder` holds the results.

    `overrides` are `field=value` texts, for a file only. Stages whose inputs are unchanged are not run again.
    `overwrite` discards the results of another recipe in the same folder.
    """
    from twofold.pipeline import run as pipeline
    from twofold.recipe.load import load_recipe

    loaded = load_recipe(Path(recipe), overrides=overrides) if isinstance(recipe, str | Path) else recipe
    return pipeline.run(loaded, runs=Path(runs), name=name, overwrite=overwrite)


def load(folder: str | Path) -> "Recommender":
    """Opens the bundle of a finished run; needs neither torch nor DuckDB."""
    from twofold.serve.recommender import load as load_bundle

    return load_bundle(Path(folder))


__all__ = ["DataError", "RecipeError", "RequestError", "RunError", "TwofoldError", "load", "run"]
