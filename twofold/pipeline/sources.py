"""Sources of candidates beside the retriever: what they read is fitted here, and described as of a point in time."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.sparse
from jaxtyping import Int64

from twofold.candidate_sources import NUM_NEIGHBORS, CandidateSources
from twofold.dataset.column_encoders import timestamps
from twofold.dataset.dataset import Dataset, item_attributes
from twofold.dataset.recent_counts import popular_items
from twofold.evaluate.candidate_recall import evaluate_sources
from twofold.evaluate.peers import Interactions, fit_item_knn
from twofold.evaluate.results import Report
from twofold.evaluate.scores import ScoreBlock, TwoStages, WindowSources
from twofold.evaluate.window import EvaluationWindow
from twofold.index.filters import compile_filter
from twofold.item_neighbors import ItemNeighbors, load_neighbors
from twofold.pipeline.item_table import described_items
from twofold.recipe.ranker import Candidates, ItemKnnSource
from twofold.recipe.schema import Recipe
from twofold.tables import DAY_MS


@dataclass(frozen=True)
class SourceFit:
    """The sources of a recipe, whose item-kNN is fitted; popularity and conditions are read as of any time."""

    recipe: Recipe
    config: Candidates
    arrays: Dataset
    neighbors: ItemNeighbors | None

    def as_of(self, at: int) -> CandidateSources:
        """Returns the sources as of a time in UTC milliseconds."""
        num_items = len(self.arrays.items)
        items = described_items(self.recipe, self.arrays.folder, self.arrays, as_of=at)
        return CandidateSources(
            self.config,
            self.neighbors,
            popular_items(self.config, self.arrays.positives, num_items, at=at),
            {text: compile_filter(text, items) for _, text in self.config.conditions},
            num_items,
        )

    def before(self, at: int) -> CandidateSources:
        """Returns the sources of the day that begins at a time, with item-kNN fitted on the positives before it alone:
        no training request may read what was liked later.
        """
        neighbors = None if self.neighbors is None else fit_neighbors(self.arrays, before=at)
        sources = replace(self, neighbors=neighbors).as_of(at)
        items = item_attributes(self.arrays.folder)
        if "uploaded_at" not in items.column_names:
            return sources
        is_there = timestamps(items["uploaded_at"]) < at + DAY_MS  # an item of a later day is no candidate of this one
        return replace(sources, flags={text: flags & is_there for text, flags in sources.flags.items()})

    def of_window(self, window: EvaluationWindow) -> WindowSources:
        """Returns the sources as of the first request of a window, with the likes of its users."""
        likes = self.arrays.positives.last_before(window.user_rows, window.query_at, n=num_likes(self.config))
        return WindowSources(self.as_of(int(window.query_at.min())), likes)


def num_likes(config: Candidates) -> int:
    """Returns the number of newest positives that the sources read."""
    return max((each.last_likes for each in config.sources if isinstance(each, ItemKnnSource)), default=0)


def fit_sources(recipe: Recipe, arrays: Dataset) -> SourceFit | None:
    """Fits the sources on the training window; `None` means that the recipe has none."""
    config = None if recipe.ranker is None else recipe.ranker.candidates
    if config is None or not config.sources:
        return None
    end = int(np.asarray(arrays.examples["train"].at).max(initial=0)) + 1
    return SourceFit(recipe, config, arrays, fit_neighbors(arrays, before=end) if num_likes(config) else None)


def load_sources(recipe: Recipe, arrays: Dataset, folder: Path) -> SourceFit | None:
    """Loads the sources that were fitted with the ranker, whose folder it is; `None` means that there are none."""
    config = None if recipe.ranker is None else recipe.ranker.candidates
    return SourceFit(recipe, config, arrays, load_neighbors(folder)) if config is not None and config.sources else None


def with_sources(report: Report, window: EvaluationWindow, scores: ScoreBlock) -> Report:
    """Adds to a report the recall of the candidates of the model whose scores these are, if it has several sources."""
    if not isinstance(scores, TwoStages) or scores.sources is None:
        return report
    section = evaluate_sources(window, scores.candidates, scores.sources.sources.names)
    return replace(report, candidates=section, verdict=(*report.verdict, section.sentence))


def fit_neighbors(arrays: Dataset, *, before: int) -> ItemNeighbors:
    """Fits item-kNN on the training positives before a time, and keeps the nearest items of each item."""
    rows = arrays.examples["train"]
    kept = np.flatnonzero(np.asarray(rows.label) & (np.asarray(rows.at) < before))
    known = Interactions(
        user_rows=np.asarray(rows.user_rows)[kept],
        item_rows=np.asarray(rows.item_rows)[kept].astype(np.int64),
        at=np.asarray(rows.at)[kept],
        until=np.full(len(arrays.users), before),
        num_users=len(arrays.users),
        num_items=len(arrays.items),
    )
    return nearest_items(scipy.sparse.csr_matrix(fit_item_knn(known).weights), NUM_NEIGHBORS)


def nearest_items(weights: scipy.sparse.csr_matrix, most: int) -> ItemNeighbors:
    """Returns the `most` largest weights of each row; equal ones in the order of the item rows."""
    lines = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    kept = weights.data > 0
    lines, rows, values = lines[kept], weights.indices[kept], weights.data[kept]
    order = np.lexsort((rows, -values, lines))
    lines, rows, values = lines[order], rows[order], values[order]
    place = np.arange(len(lines)) - np.searchsorted(lines, lines)
    is_near = place < most
    shape = (weights.shape[0], min(most, max(weights.shape[0], 1)))
    neighbors = ItemNeighbors(np.full(shape, -1, np.int32), np.zeros(shape, np.float32))
    at: tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]] = (lines[is_near], place[is_near])
    neighbors.item_rows[at], neighbors.similarities[at] = rows[is_near], values[is_near]
    return neighbors
