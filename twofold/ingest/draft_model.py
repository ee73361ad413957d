"""Model and training of a drafted recipe: defaults that follow from counts of the log."""

from math import log2

from twofold.ingest.log_profile import EventFacts
from twofold.recipe.retriever import Cosine, TwoTower
from twofold.recipe.train import Train


def model_lines(events: EventFacts) -> list[tuple[str, str]]:
    """Returns the lines of the sections `retriever` and `train`, each with its reason; an empty text means none."""
    tower, score, train = TwoTower(kind="best"), Cosine(kind="cosine"), Train()
    return [
        ("retriever:", ""),
        (f"  kind: {tower.kind}", "the towers, iALS, EASE or item-kNN, or a sum of two: what is best on validation"),
        ("  # ensemble: 2", "remove the first # to add the scores of two pairs of towers: better, twice the time"),
        (f"  dim: {tower.dim}", "vector dimension; 128 if there are many events per item"),
        (
            f"  score: {{kind: {score.kind}, temperature: {score.temperature:g}}}",
            "a lower temperature puts more weight on hard negatives",
        ),
        ("train:", ""),
        ("  epochs: 30", "at most so many passes over the positives; the best epoch is kept"),
        ("  patience: 3", "training stops after 3 epochs without a better one"),
        (f"  batch_size: {_batch_size(events.positives)}", "small logs need small batches, and more steps"),
        (f"  learning_rate: {train.learning_rate:g}", ""),
        ("  refit: true", "a second fit, for what is served, learns from the validation window too"),
        (f"  seed: {train.seed}", ""),
        ("recommend_k: 50", "number of recommendations written per user"),
    ]


def _batch_size(positives: int) -> int:
    """Returns the power of two nearest to a 500th of the positives; the shipped log was better with 512 than 1,024.

    >>> [_batch_size(positives) for positives in (1_000, 280_000, 10**9)]
    [128, 512, 4096]
    """
    return int(min(max(2 ** round(log2(max(positives, 1) / 500)), 128), 4096))
