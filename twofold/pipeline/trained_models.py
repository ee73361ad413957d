"""Trained models of a run, loaded from the folders of its finished stages."""

from dataclasses import dataclass

from twofold.model.ranker import Ranker, RetrieverAndRankerData, load_ranker_data, load_ranker_stage
from twofold.model.retriever import Model, load_model
from twofold.pipeline.job import Job
from twofold.pipeline.sources import SourceFit, load_sources
from twofold.run_folder import Stage


@dataclass(frozen=True)
class TrainedModels:
    """Trained models, loaded with the arrays that they read."""

    data: RetrieverAndRankerData
    retriever: Model
    ranker: Ranker | None
    """`None` means that the recipe has no ranker."""
    sources: SourceFit | None = None
    """Sources of candidates beside the retriever; `None` means that the recipe has none."""


def load_models(job: Job, dataset: Stage, retriever: Stage, ranker: Stage | None = None) -> TrainedModels:
    """Loads the results of finished stages: the arrays, the retriever and, if there is one, the ranker."""
    data = load_ranker_data(dataset.folder, job.recipe.features, job.recipe.ranker_features)
    model = load_model(job.recipe.retriever, data.retriever, retriever.folder)
    trained = load_ranker_stage(job.recipe.ranker, data, ranker)
    sources = None if ranker is None else load_sources(job.recipe, data.retriever, ranker.folder)
    return TrainedModels(data, model, trained, sources)
