"""One window, one model, every protocol, beside the baselines and with intervals: the Report."""

from collections.abc import Hashable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Float64
from pydantic import TypeAdapter

from twofold.evaluate.baselines import (
    EASE_MAX_ITEMS,
    Interactions,
    ease,
    item_knn,
    popularity,
    random_scores,
    recent_popularity,
)
from twofold.evaluate.protocols import (
    TIE_RULE,
    InBatch,
    JudgedWindow,
    PerUser,
    bounds_of_impressions,
    catalogue_name,
    judge_catalogue,
    judge_impressions,
    judge_in_batch,
)
from twofold.evaluate.ranking import ScoreBlock
from twofold.evaluate.significance import RESAMPLES, bootstrap
from twofold.evaluate.verdict import (
    MODEL,
    BatchLine,
    BatchSection,
    Bounds,
    Estimate,
    Facts,
    Report,
    Row,
    Section,
    in_words,
)
from twofold.progress import progress_bar

_RECENT_DAYS: Final = 2
_SEED: Final = 0
Name = TypeVar("Name", bound=Hashable)


def judge(
    window: JudgedWindow,
    scores: ScoreBlock,
    positives: Interactions,
    *,
    batch_size: int,
    facts: Mapping[str, Any],
    others: Mapping[str, ScoreBlock] | None = None,
) -> Report:
    """The model and the baselines on one window, by every protocol.

    `positives` are those before the window, which baselines learn from; `facts` are the fields of `Facts`, as JSON;
    `others` are further rows, by name. DataError where nobody can be judged.
    """
    judged = {MODEL: scores, **baselines(window, positives), **(others or {})}
    ranked: dict[str, PerUser] = {}
    ordered: dict[str, PerUser] = {}
    with progress_bar("evaluate", total=len(judged), unit="rows") as advance:
        for name, each in judged.items():
            ranked[name] = judge_catalogue(window, each)
            ordered[name] = judge_impressions(window, each)
            advance(1, name)
    catalogue, impressions = _catalogue_section(window, ranked), _impressions_section(window, ordered)
    in_batch = _batch_section(judge_in_batch(window, scores, batch_size=batch_size, seed=_SEED))
    headline = f"catalogue/recall@{headline_k(window.num_items)}"
    is_cold = window.is_cold[window.relevant.values]
    return Report(
        window=window.name,
        track=window.track,
        tie_rule=TIE_RULE,
        interval=f"95 %, bootstrap over users, {RESAMPLES:,} resamples, seed {_SEED}; differences are paired",
        headline=headline,
        verdict=in_words(catalogue, impressions, in_batch, headline=headline),
        beats_all=all((row.model_minus[headline].low or 0) > 0 for row in catalogue.rows[1:]),
        cold_items=int(window.is_cold.sum()),
        cold_relevant_share=float(is_cold.mean()),
        catalogue=catalogue,
        impressions=impressions,
        in_batch=in_batch,
        facts=TypeAdapter(Facts).validate_python(dict(facts)),
    )


def baselines(window: JudgedWindow, positives: Interactions) -> dict[str, ScoreBlock]:
    """The rows that stand in every report; EASE, cubic in the items, up to `EASE_MAX_ITEMS` of them."""
    rows = {
        "random": random_scores(window.num_items, seed=_SEED),
        "popularity": popularity(positives),
        f"popularity, last {_RECENT_DAYS} days": recent_popularity(
            positives, end=int(window.query_at.min()), days=_RECENT_DAYS
        ),
        "item-kNN": item_knn(positives, window.user_rows),
    }
    if window.num_items <= EASE_MAX_ITEMS:
        rows["EASE"] = ease(positives, window.user_rows)
    return rows


def headline_k(num_items: int) -> int:
    """The k that decides: 100, but at most a tenth of a small catalogue, where a hit among 100 would say nothing.

    >>> [headline_k(items) for items in (1, 60, 300, 7502)]
    [1, 5, 20, 100]
    """
    return max(k for k in (1, 5, 10, 20, 50, 100) if k == 1 or k * 10 <= num_items)


def _catalogue_section(window: JudgedWindow, judged: Mapping[str, PerUser]) -> Section:
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


def _impressions_section(window: JudgedWindow, judged: Mapping[str, PerUser]) -> Section:
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
        metrics |= {metric: Estimate(_number(value), None, None) for metric, value in each.pooled.items()}
        minus = {} if name == MODEL else {metric: estimates[name, f"model - {metric}"] for metric in each.values}
        rows.append(Row(name, metrics, minus))
    return tuple(rows)


def _estimates(columns: Mapping[Name, Float64[np.ndarray, "users"]]) -> dict[Name, Estimate]:
    drawn = bootstrap(np.stack(list(columns.values()), axis=1), seed=_SEED)
    numbers = zip(drawn.value, drawn.low, drawn.high, strict=True)
    return {name: Estimate(*map(_number, each)) for name, each in zip(columns, numbers, strict=True)}


def _means(columns: Mapping[str, Float64[np.ndarray, "users"]]) -> dict[str, float | None]:
    return {name: None if np.isnan(each).all() else float(np.nanmean(each)) for name, each in columns.items()}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
