"""Sources of candidates beside the retriever of the shipped log: quotas chosen on the validation day, then judged.

    twofold train recipes/kuairand.yaml
    python benchmarks/candidate_sources.py runs/kuairand

The first fit of the run, which knows nothing of the validation day, chooses for each kind of source its number and its
quota by the recall of 100 candidates. The second fit is judged on the test day: each choice alone, and all together.
Both are done for the retriever that is served, the sum of towers and iALS, and for its towers alone. Writes
benchmarks/candidate_sources.jsonl, a line for each.
"""

import json
import sys
from pathlib import Path
from typing import Final

from twofold.candidate_sources import merge_sources
from twofold.evaluate.candidate_recall import SourceSection, evaluate_sources
from twofold.evaluate.scores import find_candidates
from twofold.model.retriever import Blend
from twofold.pipeline.adapters import catalogue_scores, window_of
from twofold.pipeline.job import Job, reopen, selection_job
from twofold.pipeline.sources import SourceFit, fit_neighbors
from twofold.pipeline.trained_models import load_models
from twofold.recipe.schema import Recipe
from twofold.run_folder import open_stage
from twofold.tables import Split

RESULTS: Final = Path(__file__).with_suffix(".jsonl")
NUM_CANDIDATES: Final = 100
SOURCES: Final = [
    *({"kind": "item_knn", "last_likes": likes} for likes in (3, 10, 30)),
    *({"kind": "popularity", "days": days} for days in (1, 2)),
    *({"kind": "condition", "when": f"positives_3d < {count}"} for count in (40, 400)),
]
"""All videos of this log are older than 27 days: in place of new ones, those that were liked little lately."""
QUOTAS: Final = (5, 10, 20)
COUNTS: Final = {"positives_3d": {"events": "positives", "days": 3}}
Quotas = dict[str, int]
"""Quota by the name of the source."""


class Listed:
    """The lists of the retriever and of every source on one window of a run."""

    def __init__(self, job: Job, split: Split, *, towers_alone: bool) -> None:
        """Lists the items of each source once; quotas only merge them."""
        models = load_models(job, open_stage(job.folder, "dataset"), open_stage(job.folder, "train"))
        arrays, retriever = models.data.retriever, models.retriever
        assert isinstance(retriever, Blend)
        sources = [{**source, "quota": 1} for source in SOURCES]
        ranker = {"kind": "mlp", "candidates": {"num_candidates": NUM_CANDIDATES, "sources": sources}}
        changes = {"ranker": ranker, "index": {"recent_counts": COUNTS}}
        recipe = Recipe.model_validate({**job.recipe.model_dump(), **changes})
        assert recipe.ranker is not None
        self.window = window_of(job.recipe, arrays, split)
        retrieved = catalogue_scores(retriever.towers[0] if towers_alone else retriever, arrays, self.window)
        neighbors = fit_neighbors(arrays, before=int(self.window.query_at.min()))
        own = SourceFit(recipe, recipe.ranker.candidates, arrays, neighbors).of_window(self.window)
        found = find_candidates(retrieved, seen=self.window.seen, top=NUM_CANDIDATES, sources=own)
        self.names, self.lists = own.sources.names[1:], found.lists
        self.words = f"{split}, {'towers alone' if towers_alone else 'served'}"

    def evaluated(self, quotas: Quotas) -> SourceSection:
        """Returns the section of the report for some of the sources, and adds its sentence to the file of results."""
        lists = [self.lists[1 + self.names.index(name)] for name in quotas]
        merged = merge_sources(self.lists[0], lists, tuple(quotas.values()), top=NUM_CANDIDATES)
        section = evaluate_sources(self.window, merged, ["retriever", *quotas])
        record = {"window": self.words, "quotas": quotas, "sentence": section.sentence}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        print(*record.values(), flush=True)
        return section


def choose_and_judge(job: Job, *, towers_alone: bool) -> None:
    """Chooses on the validation day of the first fit, and judges the choices on the test day of the second."""
    validation = Listed(selection_job(job), "validation", towers_alone=towers_alone)
    best: Quotas = {}
    for first in ("item-kNN", "popularity", "where"):
        tried = [{name: quota} for name in validation.names if name.startswith(first) for quota in QUOTAS]
        best |= max(tried, key=lambda quotas: validation.evaluated(quotas).union.value or 0)
    validation.evaluated(best)
    test = Listed(job, "test", towers_alone=towers_alone)
    for quotas in (*({name: quota} for name, quota in best.items()), best):
        test.evaluated(quotas)


def main(run: Path) -> None:
    """Measures both retrievers."""
    RESULTS.unlink(missing_ok=True)
    for towers_alone in (False, True):
        choose_and_judge(reopen(run), towers_alone=towers_alone)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
