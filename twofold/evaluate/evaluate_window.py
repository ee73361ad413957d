"""One window, one model, every protocol, beside the baselines and with intervals: the Report."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import TypeAdapter

from twofold.evaluate.baselines import (
    EASE_MAX_ITEMS,
    IALS_MAX_POSITIVES,
    Interactions,
    ease,
    ials,
    item_knn,
    popularity,
    popularity_of_own,
    random_scores,
    recent_popularity,
)
from twofold.evaluate.calibration import Calibration, head_in_words
from twofold.evaluate.catalogue import (
    TIE_RULE,
    EvaluationWindow,
    InBatch,
    PerUser,
    bounds_of_impressions,
    catalogue_name,
    evaluate_catalogue,
    evaluate_filtered,
    evaluate_impressions,
    evaluate_in_batch,
)
from twofold.evaluate.results import (
    MODEL,
    BatchLine,
    BatchSection,
    Bounds,
    DaySection,
    Estimate,
    EvaluationSetup,
    Facts,
    FilterLine,
    FilterSection,
    LengthPart,
    Report,
    Row,
    SampledSection,
    Section,
    SliceSection,
    WatchSection,
    estimates,
    filter_sentences,
    number,
    summary_sentences,
)
from twofold.evaluate.sampled import Negatives, evaluate_sampled
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.significance import RESAMPLES, bootstrap
from twofold.evaluate.slices import Slicing, evaluate_days, evaluate_slices
from twofold.evaluate.two_stages import FIRST_STAGE
from twofold.evaluate.watch_time import evaluate_watch_time, length_decile
from twofold.evaluate.watched import Watched
from twofold.progress import progress_bar

_RECENT_DAYS: Final = 2
_SEED: Final = 0
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class AllowedItems:
    """The items that may be recommended, and the rule that says so."""

    where: str
    allowed: Bool[np.ndarray, "items"]


@dataclass(frozen=True)
class EvaluationOptions:
    """What a window is further asked: `others` are further rows, by name; `to_find` is the digest of the pairs to be
    found; days begin at midnight of `utc_offset_h`; `only` is who may be recommended, None: all;
    every positive is also judged against each of `sampled`; `groups` of items have a baseline each; `heads` are judged.
    """

    slicings: tuple[Slicing, ...] = ()
    watched: Watched | None = None
    to_find: str = ""
    utc_offset_h: int = 0
    only: AllowedItems | None = None
    sampled: tuple[Negatives, ...] = ()
    groups: Mapping[str, Int64[np.ndarray, "items"]] = field(default_factory=dict)
    others: Mapping[str, ScoreBlock] = field(default_factory=dict)
    heads: tuple[Calibration, ...] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """The report, and what the model's numbers in it are means of."""

    report: Report
    catalogue: PerUser
    impressions: PerUser
    passing: PerUser | None = None
    """The catalogue ranking of those that may be recommended, where not all may."""


def evaluate_window(
    window: EvaluationWindow,
    scores: ScoreBlock,
    positives: Interactions,
    *,
    batch_size: int,
    facts: Mapping[str, Any],
    details: EvaluationOptions | None = None,
) -> EvaluationResult:
    """The model and the baselines on one window, by every protocol.

    `positives` are those before the window, which baselines learn from; `facts` are the fields of `Facts`, as JSON.
    DataError where nobody can be judged.
    """
    details = details or EvaluationOptions()
    floor, left_out = baselines(window, positives, details.groups)
    judged = {MODEL: scores, **floor, **details.others}
    ranked: dict[str, PerUser] = {}
    ordered: dict[str, PerUser] = {}
    with progress_bar("evaluate", total=len(judged), unit="rows") as advance:
        for name, each in judged.items():
            ranked[name] = evaluate_catalogue(window, each)
            ordered[name] = evaluate_impressions(window, each)
            advance(1, name)
    catalogue, impressions = _catalogue_section(window, ranked), _impressions_section(window, ordered)
    trained = details.others.get(FIRST_STAGE, scores)  # what batches were made for
    in_batch = _batch_section(evaluate_in_batch(window, trained, batch_size=batch_size, seed=_SEED))
    headline = primary_metric_of(window.num_items, is_two_stages=FIRST_STAGE in details.others)
    is_cold = window.is_cold[window.relevant.values]
    verdict = summary_sentences(catalogue, impressions, in_batch, headline=headline)
    passing = None if details.only is None else evaluate_filtered(window, scores, details.only.allowed)
    section = None if passing is None else _filter_section(details, ranked[MODEL], passing)
    if section is not None:
        verdict = (*verdict, filter_sentences(section, window.num_items, headline=headline))
    verdict = (*verdict, *map(head_in_words, details.heads))
    report = Report(
        window=window.name,
        track=window.track,
        tie_rule=TIE_RULE,
        interval=f"95 %, bootstrap over users, {RESAMPLES:,} resamples, seed {_SEED}; differences are paired",
        headline=headline,
        verdict=verdict,
        beats_all=all((row.model_minus[headline].low or 0) > 0 for row in catalogue.rows[1:]),
        cold_items=int(window.is_cold.sum()),
        cold_relevant_share=float(is_cold.mean()),
        catalogue=catalogue,
        impressions=impressions,
        in_batch=in_batch,
        facts=TypeAdapter(Facts).validate_python(dict(facts)),
        question=_question(window, details, users=catalogue.users_judged),
        slices=_slices(window, ranked, details, headline=headline),
        days=_days(window, ranked, details, headline=headline),
        watch_time=_watch_section(window, judged, details.watched),
        passing=section,
        left_out=left_out,
        sampled=tuple(_sampled_section(window, judged, negatives) for negatives in details.sampled),
        heads=details.heads,
    )
    return EvaluationResult(report, ranked[MODEL], ordered[MODEL], passing)


def _question(window: EvaluationWindow, details: EvaluationOptions, *, users: int) -> EvaluationSetup:
    return EvaluationSetup(window.name, window.track, TIE_RULE, window.num_items, users, details.to_find)


def _slices(
    window: EvaluationWindow, ranked: Mapping[str, PerUser], details: EvaluationOptions, *, headline: str
) -> SliceSection | None:
    """Both stages against the first, or the model against the strongest other row, group by group."""
    if not details.slicings:
        return None
    strongest = max((name for name in ranked if name != MODEL), key=lambda name: ranked[name].mean(headline))
    base = FIRST_STAGE if FIRST_STAGE in ranked else strongest
    ranks, base_ranks = (ranked[name].ranks for name in (MODEL, base))
    assert ranks is not None, "a catalogue ranking has ranks"
    assert base_ranks is not None, "a catalogue ranking has ranks"
    k = int(headline.partition("@")[2])
    return evaluate_slices(ranks, base_ranks, relevant=window.relevant, slicings=details.slicings, k=k, base=base)


def _days(
    window: EvaluationWindow, ranked: Mapping[str, PerUser], details: EvaluationOptions, *, headline: str
) -> DaySection | None:
    values = {name: each.values[headline] for name, each in ranked.items()}
    days = evaluate_days(values, window.query_at, metric=headline, utc_offset_h=details.utc_offset_h)
    return days if len(days.days) > 1 else None


def _watch_section(
    window: EvaluationWindow, judged: Mapping[str, ScoreBlock], watched: Watched | None
) -> WatchSection | None:
    """All rows on all impressions; the model alone by length, where a baseline's values would say nothing of it."""
    if watched is None:
        return None
    whole: dict[str, PerUser] = {}
    parts: tuple[PerUser, ...] = ()
    for name, scores in judged.items():
        # Only the model's score may be a number that was taught; all others order.
        own = watched if name == MODEL else replace(watched, target=None)
        whole[name], of_lengths = evaluate_watch_time(window, scores, own)
        parts = of_lengths if name == MODEL else parts
    decile, length = length_decile(watched.length_s), watched.length_s
    by_length = tuple(
        LengthPart(
            first_s=float(length[decile == place].min()),
            last_s=float(length[decile == place].max()),
            users=part.judged,
            metrics=_means(part.values) | {name: number(value) for name, value in part.pooled.items()},
        )
        for place, part in enumerate(parts)
        if part.judged
    )
    return WatchSection(len(length), whole[MODEL].judged, _rows(whole), by_length)


def baselines(
    window: EvaluationWindow, positives: Interactions, groups: Mapping[str, Int64[np.ndarray, "items"]]
) -> tuple[dict[str, ScoreBlock], tuple[str, ...]]:
    """The rows that stand in every report, with one for each of the items' `groups`; and what had to be left out, with
    the reason.
    """
    recent = recent_popularity(positives, end=int(window.query_at.min()), days=_RECENT_DAYS)
    rows = {
        "random": random_scores(window.num_items, seed=_SEED),
        "popularity": popularity(positives),
        f"popularity, last {_RECENT_DAYS} days": recent,
        **{f"popularity, own {by}": popularity_of_own(positives, window.user_rows, g) for by, g in groups.items()},
        "item-kNN": item_knn(positives, window.user_rows),
    }
    left_out = []
    if window.num_items > EASE_MAX_ITEMS:
        left_out.append(f"EASE, which is cubic in the items: meant for up to {EASE_MAX_ITEMS:,}")
    else:
        rows["EASE"] = ease(positives, window.user_rows)
    if find_spec("implicit") is None:
        left_out.append("iALS: the library implicit is not installed, pip install 'twofold[ials]'")
    elif len(positives.user_rows) > IALS_MAX_POSITIVES:
        left_out.append(f"iALS: as a baseline meant for up to {IALS_MAX_POSITIVES:,} positives")
    else:
        rows["iALS"] = ials(positives, window.user_rows, seed=_SEED)
    return rows, tuple(left_out)


def primary_k(num_items: int) -> int:
    """The k that decides: 100, but at most a tenth of a small catalogue, where a hit among 100 would say nothing.

    >>> [primary_k(items) for items in (1, 60, 300, 7502)]
    [1, 5, 20, 100]
    """
    return max(k for k in (1, 5, 10, 20, 50, 100) if k == 1 or k * 10 <= num_items)


def primary_metric_of(num_items: int, *, is_two_stages: bool) -> str:
    """The metric that decides: what a retriever finds; or, where a ranker orders that, NDCG at 10 of it.

    >>> primary_metric_of(7502, is_two_stages=False), primary_metric_of(7502, is_two_stages=True)
    ('catalogue/recall@100', 'catalogue/ndcg@10')
    """
    k = primary_k(num_items)
    return f"catalogue/ndcg@{min(k, 10)}" if is_two_stages else f"catalogue/recall@{k}"


def _catalogue_section(window: EvaluationWindow, judged: Mapping[str, PerUser]) -> Section:
    return Section(
        protocol="catalogue",
        candidates="every item of the catalogue, cold ones included, ranked in full and exactly",
        excluded="items the user met in any event before the request",
        num_items=window.num_items,
        users_judged=judged[MODEL].judged,
        users_skipped=judged[MODEL].skipped,
        rows=_rows(judged),
        bounds={},
    )


def _impressions_section(window: EvaluationWindow, judged: Mapping[str, PerUser]) -> Section:
    rows = _rows(judged)
    chance, best = (_means(bound.values) for bound in bounds_of_impressions(window))
    bounds = {}
    for metric in chance:
        value, floor = rows[0].metrics[metric].value, chance[metric]
        gained = None if value is None or floor is None or floor >= 1 else (value - floor) / (1 - floor)
        bounds[metric] = Bounds(floor, best[metric], gained)
    return Section(
        protocol="impressions",
        candidates="the distinct items that the log shows the user in the window",
        excluded="nothing: items met before stay",
        num_items=window.num_items,
        users_judged=judged[MODEL].judged,
        users_skipped=judged[MODEL].skipped,
        rows=rows,
        bounds=bounds,
    )


def _filter_section(details: EvaluationOptions, whole: PerUser, passing: PerUser) -> FilterSection:
    """The same users with and without the rule, from the same draws."""
    assert details.only is not None, "a rule says what passes"
    columns = {("whole", name): values for name, values in whole.values.items()}
    columns |= {("passing", name): values for name, values in passing.values.items()}
    pairs = {name: name.replace("catalogue/", "catalogue_filtered/") for name in whole.values}
    columns |= {("minus", name): passing.values[other] - whole.values[name] for name, other in pairs.items()}
    drawn = _estimates(columns)
    lines = tuple(
        FilterLine(other, drawn["whole", name], drawn["passing", other], drawn["minus", name])
        for name, other in pairs.items()
    )
    ceiling = drawn["passing", "catalogue_filtered/ceiling"]
    return FilterSection(details.only.where, int(details.only.allowed.sum()), ceiling, lines)


def _sampled_section(
    window: EvaluationWindow, judged: Mapping[str, ScoreBlock], negatives: Negatives
) -> SampledSection:
    rows = {name: evaluate_sampled(window, scores, negatives.items) for name, scores in judged.items()}
    return SampledSection(
        draw=negatives.draw,
        count=negatives.items.shape[1],
        seed=negatives.seed,
        candidates=negatives.in_words(),
        users_judged=rows[MODEL].judged,
        users_skipped=rows[MODEL].skipped,
        rows=_rows(rows),
    )


def _batch_section(judged: InBatch) -> BatchSection:
    estimates = _estimates(judged.per_user.values)
    lines = tuple(
        BatchLine(k, rank, estimates[f"in_batch/hit_rate@{k}"], estimates[catalogue_name(rank)])
        for k, rank in judged.ranks.items()
    )
    return BatchSection(judged.batch_size, judged.pairs, judged.per_user.judged, judged.seed, lines)


def _rows(judged: Mapping[str, PerUser]) -> tuple[Row, ...]:
    """One row each, model first; all intervals and differences from the same draws of users."""
    model = judged[MODEL].values
    columns = {(name, metric): values for name, each in judged.items() for metric, values in each.values.items()}
    columns |= {
        (name, f"model - {metric}"): model[metric] - values
        for name, each in judged.items()
        if name != MODEL
        for metric, values in each.values.items()
    }
    estimates = _estimates(columns)
    rows = []
    for name, each in judged.items():
        metrics = {metric: estimates[name, metric] for metric in each.values}
        metrics |= {metric: Estimate(number(value), None, None) for metric, value in each.pooled.items()}
        minus = {} if name == MODEL else {metric: estimates[name, f"model - {metric}"] for metric in each.values}
        rows.append(Row(name, metrics, minus))
    return tuple(rows)


def _estimates(columns: Mapping[Name, Float64[np.ndarray, "users"]]) -> dict[Name, Estimate]:
    drawn = bootstrap(np.stack(list(columns.values()), axis=1), seed=_SEED)
    return dict(zip(columns, estimates(drawn), strict=True))


def _means(columns: Mapping[str, Float64[np.ndarray, "users"]]) -> dict[str, float | None]:
    return {name: None if np.isnan(each).all() else float(np.nanmean(each)) for name, each in columns.items()}
