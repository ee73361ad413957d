"""Results of a run as numbers and tables, for Python."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from twofold.evaluate.results import MODEL, Report
from twofold.pipeline.job import report_of
from twofold.recipe.schema import Recipe
from twofold.render.numbers import format_decimal

if TYPE_CHECKING:
    from twofold.dataset.vocabulary import Ids
    from twofold.serve.recommender import Recommender


@dataclass(frozen=True)
class RunResult:
    """A finished run. All tables are Arrow; `.to_pandas()` and `polars.from_arrow` convert them."""

    folder: Path
    """The run folder; run.html in it is the report."""
    recipe: Recipe
    """The recipe, with the dates of its windows."""

    @cached_property
    def report(self) -> Report:
        """The report, with all rows, intervals and sections."""
        return report_of(self.folder)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the model on the test window, such as catalogue/recall@100."""
        return self.report.metrics_of(MODEL)

    @cached_property
    def recommender(self) -> "Recommender":
        """The bundle that is served, opened."""
        from twofold.serve.recommender import load

        return load(self.folder)

    @property
    def recommendations(self) -> pa.Table:
        """The recommendations for all users of the log: user_id, item_id, score, rank."""
        return pq.read_table(self.folder / "recommend" / "recommendations.parquet")

    def user_vectors(self, users: "Ids | None" = None) -> pa.Table:
        """Returns the vectors of users, see `Recommender.user_vectors`."""
        return self.recommender.user_vectors(users)

    def item_vectors(self) -> pa.Table:
        """Returns the vectors of all items, see `Recommender.item_vectors`."""
        return self.recommender.item_vectors()

    def similar(self, item: Any, *, k: int = 20) -> pa.Table:
        """Returns the items most similar to one, see `Recommender.similar`."""
        return self.recommender.similar(item, k=k)

    def explain(self, user: Any, *, k: int = 20) -> pa.Table:
        """Returns a user's recommendations with reasons, see `Recommender.explain`."""
        return self.recommender.explain(user, k=k)

    def __repr__(self) -> str:
        """Returns the folder, the main metric and the first sentence of the report."""
        metric = self.report.primary_metric
        value = format_decimal(self.metrics.get(metric))
        return f"RunResult({str(self.folder)!r}, {metric} {value}: {self.report.verdict[0]})"
