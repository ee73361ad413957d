"""Summary sentences of an evaluation report."""

from collections.abc import Mapping, Sequence

from twofold.evaluate.baseline_results import Headline, LeftOut
from twofold.evaluate.headline_metrics import headline_of
from twofold.evaluate.results import FEW_USERS, FilterSection, Section
from twofold.evaluate.significance import Estimate
from twofold.render.numbers import format_decimal, format_interval, format_signed, in_short, percent, plural


def badge_sentence(headlines: Sequence[Headline], left_out: Sequence[LeftOut]) -> str:
    """Says on which headline metrics the model beats the best baseline, and which baselines were not run."""
    parts = [f"{_name(each.metric)}: {_outcome(each)} the best baseline, {each.baseline}." for each in headlines]
    missing = [f"Not run: {', '.join(each.name for each in left_out)}."] if left_out else []
    return " ".join(parts + missing)


def summary_sentences(
    headlines: Sequence[Headline],
    catalogue: Section,
    impressions: Section,
    *,
    baselines: Sequence[str],
    left_out: Sequence[LeftOut],
) -> tuple[str, ...]:
    """Compares the model with the best baseline on each headline metric, then sums up the rest."""
    sentences = [
        f"{_name(each.metric)} {format_estimate(each.model)}: {compared_with(each, prefix='the best baseline, ')}."
        for each in headlines
    ]
    sentences += [f"Not run: {each.name} ({each.reason})." for each in left_out]
    if catalogue.users_judged < FEW_USERS:
        users = plural(catalogue.users_judged, "user")
        sentences.append(f"Only {users} could be evaluated: rely on the intervals, not on the values.")
    return (*sentences, _impressions_sentence(impressions, baselines))


def filter_sentences(section: FilterSection, num_items: int, *, primary_metric: str) -> str:
    """Says how many items the rule allows, how much can be found among them, and how much was."""
    (line,) = (line for line in section.lines if line.metric.partition("/")[2] == primary_metric.partition("/")[2])
    return (
        f"index.where: {section.where} allows {section.items:,} of {plural(num_items, 'item')}, which contain "
        f"{format_decimal(section.ceiling.value)} of the relevant items: {primary_metric.replace('/', ' ')} is "
        f"{format_estimate(line.filtered)} among them, a difference of {format_difference(line.minus)} from all items."
    )


def order_sentence(values: Mapping[float, float], chosen: float, *, metric: str) -> str:
    """Says which weight the retriever's score has in the order of both stages, and what the metric is on the validation
    window by it, by the ranker alone and by the retriever alone. `values` are those of the metric by weight.
    """
    alone = {0.0: "the ranker alone", 1.0: "the retriever alone"}
    best = alone.get(chosen, f"{1 - chosen:g} · ranker + {chosen:g} · retriever")
    others = ", ".join(f"{name} {format_decimal(values[share])}" for share, name in alone.items() if share != chosen)
    end = ". The ranker gains nothing and changes no order" if chosen == 1 else ""
    return (
        f"Order of the candidates, chosen on the validation window: {best}, {_name(metric)} "
        f"{format_decimal(values[chosen])} ({others}){end}."
    )


def compared_with(compared: Headline, *, prefix: str = "") -> str:
    """Says whether the model differs significantly from a baseline, and by how much; `prefix` precedes its name."""
    gap, best = compared.minus, compared.best.value
    has_size = best and gap.value is not None and (compared.is_better or compared.is_worse)
    size = f"{percent(abs(gap.value or 0.0) / (best or 1.0))} " if has_size else ""
    difference = "" if gap.low is None else f" (difference {format_difference(gap)})"
    return f"{size}{_outcome(compared)} {prefix}{compared.baseline} {format_decimal(best)}{difference}"


def _outcome(compared: Headline) -> str:
    if compared.minus.low is None:
        return "not comparable (fewer than two users) with"
    if compared.is_better:
        return "better than"
    return "worse than" if compared.is_worse else "not significantly different from"


def _name(metric: str) -> str:
    name = in_short(metric)
    return name.upper() if name.startswith("ndcg") else name[0].upper() + name[1:]


def _impressions_sentence(impressions: Section, baselines: Sequence[str]) -> str:
    metric = "impressions/auc"
    auc = impressions.rows[0].metrics[metric]
    if auc.value is None:
        return "AUC on shown items: undefined, because no user has both a positive and another impression."
    best = headline_of(impressions.rows[0], [row for row in impressions.rows if row.name in baselines], metric)
    users = plural(impressions.users_judged, "user")
    return f"AUC on shown items {format_estimate(auc)} (0.5 is random), {users}: {compared_with(best)}."


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
