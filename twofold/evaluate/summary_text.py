"""Summary sentences of an evaluation report."""

from twofold.evaluate.results import FEW_USERS, FilterSection, Row, Section
from twofold.evaluate.significance import Estimate
from twofold.render.numbers import format_decimal, format_interval, format_signed, percent, plural


def summary_sentences(catalogue: Section, impressions: Section, *, primary_metric: str) -> tuple[str, ...]:
    """Compares the model with every baseline on the primary metric, strongest first, then sums up the rest."""
    strongest_first = sorted(catalogue.rows[1:], key=lambda row: -(row.metrics[primary_metric].value or 0))
    value = format_estimate(catalogue.rows[0].metrics[primary_metric])
    opening = f"{primary_metric.replace('/', ' ')}: the model reaches {value} and"
    sentences = [
        f"{opening if row is strongest_first[0] else 'The model'} is {compared_with(row, primary_metric)}."
        for row in strongest_first
    ]
    if catalogue.users_judged < FEW_USERS:
        users = plural(catalogue.users_judged, "user")
        sentences.append(f"Only {users} could be evaluated: rely on the intervals, not on the values.")
    sentences.append(_impressions_sentence(impressions))
    return tuple(sentences)


def filter_sentences(section: FilterSection, num_items: int, *, primary_metric: str) -> str:
    """Says how many items the rule allows, how much can be found among them, and how much was."""
    (line,) = (line for line in section.lines if line.metric.partition("/")[2] == primary_metric.partition("/")[2])
    return (
        f"index.where: {section.where} allows {section.items:,} of {plural(num_items, 'item')}, which contain "
        f"{format_decimal(section.ceiling.value)} of the relevant items: {primary_metric.replace('/', ' ')} is "
        f"{format_estimate(line.filtered)} among them, a difference of {format_difference(line.minus)} from all items."
    )


def compared_with(row: Row, metric: str) -> str:
    """Says whether the model differs significantly from a baseline on a metric, and by how much."""
    other, gap = f"{row.name} {format_decimal(row.metrics[metric].value)}", row.model_minus[metric]
    if gap.value is None or gap.low is None or gap.high is None:
        return f"not comparable with {other}, because fewer than two users are evaluated"
    size = f"(difference {format_signed(gap.value)}, 95 % interval {format_interval(gap.low, gap.high)})"
    if gap.low > 0:
        return f"significantly better than {other} {size}"
    if gap.high < 0:
        return f"significantly worse than {other} {size}"
    return f"not significantly different from {other} {size}"


def _impressions_sentence(impressions: Section) -> str:
    metric = "impressions/auc"
    auc, bounds = impressions.rows[0].metrics[metric], impressions.bounds[metric]
    if auc.value is None or bounds.headroom is None:
        return "impressions: no user has both a positive and another impression in the window, so AUC is undefined."
    strongest = max(impressions.rows[1:], key=lambda row: row.metrics[metric].value or 0)
    return (
        f"impressions AUC: the model reaches {format_estimate(auc)} on {plural(impressions.users_judged, 'user')}, "
        f"{percent(bounds.headroom)} of the way from chance (0.500) to a perfect order, and is "
        f"{compared_with(strongest, metric)}."
    )


def format_estimate(estimate: Estimate) -> str:
    """Returns the value and its interval.

    >>> format_estimate(Estimate(0.3864, 0.37, 0.4011))
    '0.386 [0.370, 0.401]'
    """
    return f"{format_decimal(estimate.value)} {format_interval(estimate.low, estimate.high)}".rstrip()


def format_difference(difference: Estimate) -> str:
    """Returns a difference with its sign and its interval.

    >>> format_difference(Estimate(0.0364, 0.02, 0.0511))
    '+0.036 [0.020, 0.051]'
    """
    return f"{format_signed(difference.value)} {format_interval(difference.low, difference.high)}".rstrip()
