"""The headline of a report: the metrics that decide, and the best baseline on each."""

from collections.abc import Sequence

from twofold.evaluate.baseline_results import Headline
from twofold.evaluate.results import Row


def primary_k(num_items: int) -> int:
    """Returns the k of the primary metric: 100, but at most a tenth of a small catalogue, where hits would mean little.

    >>> [primary_k(items) for items in (1, 60, 300, 7502)]
    [1, 5, 20, 100]
    """
    return max(k for k in (1, 5, 10, 20, 50, 100) if k == 1 or k * 10 <= num_items)


def deciding_metrics(num_items: int) -> tuple[str, str]:
    """Returns the two metrics on which the model must beat every baseline.

    >>> deciding_metrics(7502), deciding_metrics(60)
    (('catalogue/recall@100', 'catalogue/ndcg@10'), ('catalogue/recall@5', 'catalogue/ndcg@5'))
    """
    k = primary_k(num_items)
    return f"catalogue/recall@{k}", f"catalogue/ndcg@{min(k, 10)}"


def primary_metric_of(num_items: int, *, is_two_stages: bool) -> str:
    """Returns the primary metric: recall for a retriever alone, NDCG at 10 where a ranker orders what it found.

    >>> primary_metric_of(7502, is_two_stages=False), primary_metric_of(7502, is_two_stages=True)
    ('catalogue/recall@100', 'catalogue/ndcg@10')
    """
    return deciding_metrics(num_items)[1 if is_two_stages else 0]


def headline_of(model: Row, baselines: Sequence[Row], metric: str) -> Headline:
    """Compares the model with the baseline that has the highest value of the metric."""
    best = max(baselines, key=lambda row: row.metrics[metric].value or 0)
    return Headline(metric, model.metrics[metric], best.name, best.metrics[metric], best.model_minus[metric])


def beats_all(baselines: Sequence[Row], metrics: Sequence[str]) -> bool:
    """Returns whether the interval of the difference lies above 0 for every baseline and every metric."""
    return all((row.model_minus[metric].low or 0) > 0 for row in baselines for metric in metrics)
