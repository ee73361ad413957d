"""Model and training of a drafted recipe: defaults that follow from counts of the log."""

from math import log2

from twofold.ingest.log_profile import EventFacts
from twofold.recipe.retriever import Cosine, TwoTower
from twofold.recipe.train import Train
from twofold.render.numbers import plural


def model_lines(events: EventFacts) -> list[tuple[str, str]]:
    """Returns the lines of the sections `retriever` and `train`, each with its reason; an empty text means none."""
    tower, score, train = TwoTower(kind="best"), Cosine(kind="cosine"), Train()
    epochs = _epochs(events.positives)
    patience = min(3, epochs - 1)
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
        (f"  epochs: {epochs}", f"at most so many passes over the positives, {_duration(events.positives)} each"),
        (
            f"  patience: {patience}",
            f"training stops after {plural(patience, 'epoch')} without a better one, the best is kept",
        ),
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


def _epochs(positives: int) -> int:
    """Returns 30, or as many passes as show 60 million examples, an hour on one core; at least 2.

    >>> [_epochs(positives) for positives in (1_000, 3_000_000, 10**9)]
    [30, 20, 2]
    """
    return int(min(max(60_000_000 // max(positives, 1), 2), 30))


def _duration(positives: int) -> str:
    """Returns the usual time of a pass on one core: 20,000 examples a second, or 20 steps a second of small batches.

    >>> [_duration(positives) for positives in (1_000, 2_000_000, 10**9)]
    ['less than a minute', 'about 2 minutes', 'about 13.9 hours']
    """
    minutes = positives / min(20_000, 20 * _batch_size(positives)) / 60
    if minutes < 1:
        return "less than a minute"
    return f"about {round(minutes / 60, 1):g} hours" if minutes > 90 else f"about {plural(round(minutes), 'minute')}"
