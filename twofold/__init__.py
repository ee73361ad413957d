"""twofold: from an interaction log to served recommendations, and the truth about how good they are.

```python
import twofold

job = twofold.run("recipes/kuairand.yaml")              # every stage; returns where it lives
recommender = twofold.load(job.folder)                  # opens the run's bundle
recommender.recommend([12, 34], k=20)                   # Arrow table: user_id, item_id, score, rank
```
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twofold.errors import DataError, RecipeError, RequestError, RunError, TwofoldError

if TYPE_CHECKING:
    from twofold.pipeline.run import Job
    from twofold.recipe.schema import Recipe
    from twofold.serve.recommender import Recommender


def run(
    recipe: "str | Path | Recipe",
    *,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    name: str | None = None,
    replace: bool = False,
) -> "Job":
    """Runs every stage of a recipe (a file or a `Recipe`) and returns the job; `job.folder` holds the results.

    `overrides` are `field=value` texts, for a file only. Stages whose inputs are unchanged are not run again.
    """
    from twofold.pipeline import run as pipeline
    from twofold.recipe.load import load_recipe

    loaded = load_recipe(Path(recipe), overrides=overrides) if isinstance(recipe, str | Path) else recipe
    return pipeline.run(loaded, runs=Path(runs), name=name, replace=replace)


def load(folder: str | Path) -> "Recommender":
    """Opens the bundle of a finished run; needs neither torch nor DuckDB."""
    from twofold.serve.recommender import load as load_bundle

    return load_bundle(Path(folder))


__all__ = ["DataError", "RecipeError", "RequestError", "RunError", "TwofoldError", "load", "run"]
