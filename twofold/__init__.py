"""A recommender system from an interaction log to served recommendations, with an honest measure of their quality.

```python
import twofold

result = twofold.run("recipes/kuairand.yaml")           # runs every stage
result.metrics                                          # {'catalogue/recall@100': …, …}
result.recommender.recommend([12, 34], k=20)            # Arrow table: user_id, item_id, score, rank

recipe = twofold.draft(events, items=items)             # tables of pandas, polars, Arrow or DuckDB, or paths
twofold.run(recipe, events=newer_events)                # the same recipe on other tables
```
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from twofold.errors import DataError, RecipeError, RequestError, RunError, TwofoldError

if TYPE_CHECKING:
    from twofold.pipeline.run_result import RunResult
    from twofold.prepare.frames import Frame
    from twofold.recipe.schema import Recipe
    from twofold.serve.recommender import Recommender

__version__ = version("twofold")


def run(
    recipe: "str | Path | Recipe",
    *,
    events: "Frame | None" = None,
    items: "Frame | None" = None,
    users: "Frame | None" = None,
    overrides: Sequence[str] = (),
    runs: str | Path = "runs",
    name: str | None = None,
    overwrite: bool = False,
) -> "RunResult":
    """Runs every stage of a recipe (a file or a `Recipe`) and returns the results.

    `events`, `items` and `users` replace the tables of the recipe: paths, or tables of pandas, polars, Arrow or DuckDB,
    which are written into the run folder. `overrides` are `field=value` texts, for a file only. Stages whose inputs are
    unchanged are not run again. `overwrite` discards the results of another recipe in the same folder.
    """
    from twofold.pipeline.run import run as run_pipeline
    from twofold.pipeline.run_result import RunResult
    from twofold.prepare.frames import with_tables
    from twofold.recipe.load import load_recipe
    from twofold.recipe.schema import Recipe

    loaded = load_recipe(Path(recipe), overrides=overrides) if isinstance(recipe, str | Path) else recipe
    if not isinstance(loaded, Recipe):
        raise RecipeError(
            f"twofold.run takes a recipe, and this is a {type(loaded).__name__}. For a table: recipe = "
            f"twofold.draft(table), then twofold.run(recipe)."
        )
    tables = {"events": events, "items": items, "users": users}
    with_own = with_tables(loaded, tables, Path(runs) / (name or loaded.name) / "tables")
    job = run_pipeline(with_own, runs=Path(runs), name=name, overwrite=overwrite)
    return RunResult(job.folder, job.recipe)


def draft(
    events: "Frame",
    *,
    items: "Frame | None" = None,
    users: "Frame | None" = None,
    out: str | Path = "recipe.yaml",
    overwrite: bool = False,
) -> "Recipe":
    """Drafts a recipe from a log, as `twofold recipe new`, writes it with its comments to `out`, and returns it.

    Tables are paths, or those of pandas, polars, Arrow or DuckDB; these are written beside the recipe, into a folder of
    its name. RecipeError if `out` exists, unless it may be overwritten.
    """
    from twofold.ingest.draft_recipe import write_draft

    return write_draft({"--log": events, "--items": items, "--users": users}, Path(out), overwrite=overwrite)


def load(folder: str | Path) -> "Recommender":
    """Opens the bundle of a finished run; needs neither torch nor DuckDB."""
    from twofold.serve.recommender import load as load_bundle

    return load_bundle(Path(folder))


__all__ = [
    "DataError",
    "RecipeError",
    "RequestError",
    "RunError",
    "TwofoldError",
    "__version__",
    "draft",
    "load",
    "run",
]
