"""Report section on the rules after ranking: accuracy, coverage and concentration of the lists with and without each.

The lists are those that the service returns: the same module orders them (`twofold/reranking.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.candidate_sources import MergedCandidates
from twofold.dataset.histories import Histories
from twofold.evaluate.metrics import ranking_metrics
from twofold.evaluate.scores import TwoStages, find_best, find_candidates
from twofold.evaluate.significance import Estimate, estimates_of
from twofold.evaluate.window import EvaluationWindow
from twofold.ragged import chunks
from twofold.recipe.rerank import Limit, Rerank, RerankRule
from twofold.render.numbers import format_decimal, format_interval, format_signed
from twofold.render.plots import ScatterPlot, ScatterPoint, scatter_plot
from twofold.reranking import Candidates, RuleItems, guaranteed, merge_stages, reorder, with_guaranteed
from twofold.topk import NOT_ALLOWED, Products

K: Final = 10
NONE: Final = "no rule"
ALL: Final = "all rules"
CHUNK_USERS: Final = 512


@dataclass(frozen=True)
class RuleLine:
    """Lists under some of the rules: accuracy with its paired difference from the lists without rules, and shares."""

    name: str
    ndcg: Estimate
    ndcg_minus: Estimate
    recall: Estimate
    recall_minus: Estimate
    coverage: float
    """Share of the catalogue that is in some list."""
    new_items: float | None
    """Share of places with items that have no event before the window. `None` means that this is not known."""
    gini: float
    """Gini coefficient of the places over creators or items: 0 where all get as many, 1 where one gets all."""
    is_best: bool
    """Whether no other line has both a higher NDCG and a lower Gini coefficient."""


@dataclass(frozen=True)
class RuleSection:
    """Prices of the rules. The first line has no rule, the last one all of them."""

    k: int
    num_candidates: int
    users: int
    gini_of: str
    """Column of the first limit, whose values the Gini coefficient is over; else `item_id`."""
    lines: tuple[RuleLine, ...]
    sentence: str

    @property
    def plot(self) -> ScatterPlot:
        """NDCG and the Gini coefficient of every line, with the undominated ones joined."""
        return scatter_plot(
            [ScatterPoint(each.name, each.gini, each.ndcg.value or 0, each.is_best) for each in self.lines]
        )


@dataclass(frozen=True)
class RuleInputs:
    """The rules, the items as they see them, and the items that may be recommended without and with blocks."""

    config: Rerank
    items: RuleItems
    allowed: Bool[np.ndarray, "items"]
    unblocked: Bool[np.ndarray, "items"]
    is_new: Bool[np.ndarray, "items"] | None = None
    events: Histories | None = None
    """Events of all users; `None` means that no rule reads when a user saw an item."""


def lists_by_rules(
    window: EvaluationWindow,
    scores: Products | TwoStages,
    rules: RuleInputs,
    variants: Mapping[str, tuple[RerankRule, ...]],
    *,
    users: Int64[np.ndarray, "queries"],
    k: int,
) -> dict[str, Int64[np.ndarray, "queries k"]]:
    """Returns, for each variant, the first k items of each of these users of the window, as they are served with its
    rules; -1 after the last one.

    The catalogue is searched, and the ranker runs, once for all variants with blocks and once for all others.
    """
    lists = {name: np.full((len(users), k), -1) for name in variants}
    for part in chunks(len(users), CHUNK_USERS):
        candidates_of, own = _candidate_search(window, scores, rules, users[part], k=k), users[part]
        met = None if rules.events is None else rules.events.meetings(window.user_rows[own], window.query_at[own])
        for name, chosen in variants.items():
            candidates = candidates_of(chosen).with_meetings(met)
            config = rules.config.model_copy(update={"rules": chosen})
            if chosen:
                positions = reorder(config, rules.items, candidates, k).positions
            else:
                positions = np.tile(np.arange(min(k, candidates.num_ranked)), (len(candidates.item_rows), 1))
            rows = np.take_along_axis(candidates.item_rows, np.maximum(positions, 0), axis=1)
            lists[name][part, : rows.shape[1]] = np.where(positions >= 0, rows, -1)
    return lists


def _candidate_search(
    window: EvaluationWindow,
    scores: Products | TwoStages,
    rules: RuleInputs,
    users: Int64[np.ndarray, "queries"],
    *,
    k: int,
) -> Callable[[tuple[RerankRule, ...]], Candidates]:
    """Returns a function from rules to the candidates of `users`, in the order of the ranker if there is one. What
    several sets of rules have in common is found once.
    """
    products = (scores.retrieved if isinstance(scores, TwoStages) else scores).of(users)
    seen, top = window.seen.of(users), scores.candidates.num_candidates if isinstance(scores, TwoStages) else 0
    sources = scores.sources.of(users) if isinstance(scores, TwoStages) and scores.sources is not None else None
    num_ranked = max(k, top, rules.config.num_candidates)

    @cache
    def merged(is_blocking: bool) -> MergedCandidates:
        allowed = rules.unblocked if is_blocking else rules.allowed
        return find_candidates(products, seen=seen, top=top, allowed=allowed, sources=sources, count=num_ranked)

    @cache
    def find(is_blocking: bool, condition: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        allowed = (rules.unblocked if is_blocking else rules.allowed) & rules.items.columns.flags[condition]
        return _with_scores(products, find_best(products, seen=seen, top=count, allowed=allowed))

    @cache
    def ranked(is_blocking: bool) -> Float32[np.ndarray, "queries _"]:
        assert isinstance(scores, TwoStages)
        return _ranker_scores(scores, users, merged(is_blocking))

    def candidates_of(chosen: tuple[RerankRule, ...]) -> Candidates:
        is_blocking = any(rule.kind == "block" for rule in chosen)
        others = [find(is_blocking, condition, count) for condition, count in guaranteed(chosen)]
        candidates = with_guaranteed(*_with_scores(products, merged(is_blocking).item_rows), others)
        if not top:
            return candidates
        return merge_stages(candidates, ranked(is_blocking), num_items=window.num_items)[0]

    return candidates_of


def _ranker_scores(
    both: TwoStages, users: Int64[np.ndarray, "queries"], found: MergedCandidates
) -> Float32[np.ndarray, "queries _"]:
    """Returns the ranker's scores of the candidates."""
    rows = found.item_rows[:, : found.num_candidates]
    return np.asarray(both.score_pairs(users, np.maximum(rows, 0), found.ranks(rows)))


def _with_scores(
    products: Products, rows: Int64[np.ndarray, "queries _"]
) -> tuple[Int64[np.ndarray, "queries _"], Float32[np.ndarray, "queries _"]]:
    """Returns the items of each query with the retriever's scores."""
    lines = np.repeat(np.arange(len(rows)), rows.shape[1])
    values = products.pairs(lines, np.maximum(rows, 0).ravel()).reshape(rows.shape)
    return rows, np.where(rows >= 0, values, NOT_ALLOWED)


def evaluate_rules(window: EvaluationWindow, scores: Products | TwoStages, rules: RuleInputs) -> RuleSection:
    """Evaluates the lists without rules, with each rule alone, and with all, on users with something to find."""
    users = np.flatnonzero(window.relevant.sizes)
    limit = next((rule for rule in rules.config.rules if isinstance(rule, Limit)), None)
    own = None if limit is None else rules.items.columns.values[limit.column].astype(np.int64)
    groups = np.arange(window.num_items)[:, None] if own is None else own
    lists = lists_by_rules(window, scores, rules, _variants(rules.config), users=users, k=K)
    values = {name: _accuracy(window, users, rows) for name, rows in lists.items()}
    lines = _lines(lists, values, groups=groups, is_new=rules.is_new)
    return RuleSection(
        K,
        rules.config.num_candidates,
        len(users),
        "item_id" if limit is None else limit.column,
        lines,
        _sentence(lines),
    )


def _variants(config: Rerank) -> dict[str, tuple[RerankRule, ...]]:
    alone = {rule.name: (rule,) for rule in config.rules}
    return {NONE: (), **alone, ALL: config.rules}


def _accuracy(
    window: EvaluationWindow, users: Int64[np.ndarray, "queries"], lists: Int64[np.ndarray, "queries k"]
) -> dict[str, Float64[np.ndarray, "queries"]]:
    relevant, lines = window.relevant.of(users), np.broadcast_to(np.arange(len(users))[:, None], lists.shape)
    hits = relevant.contains(lines, lists) & (lists >= 0)
    found = ranking_metrics(hits, relevant.sizes.astype(np.int64), ks=(K,))
    return {"ndcg": found[f"ndcg@{K}"], "recall": found[f"recall@{K}"]}


def _lines(
    lists: Mapping[str, Int64[np.ndarray, "queries k"]],
    values: Mapping[str, Mapping[str, Float64[np.ndarray, "queries"]]],
    *,
    groups: Int64[np.ndarray, "items _"],
    is_new: Bool[np.ndarray, "items"] | None,
) -> tuple[RuleLine, ...]:
    columns = {(name, metric): each for name, own in values.items() for metric, each in own.items()}
    columns |= {
        (name, f"{metric} - none"): each - values[NONE][metric]
        for name, own in values.items()
        for metric, each in own.items()
    }
    found, lines = estimates_of(columns), []
    for name, rows in lists.items():
        items = rows[rows >= 0]
        lines.append(
            RuleLine(
                name,
                ndcg=found[name, "ndcg"],
                ndcg_minus=found[name, "ndcg - none"],
                recall=found[name, "recall"],
                recall_minus=found[name, "recall - none"],
                coverage=len(np.unique(items)) / len(groups),
                new_items=None if is_new is None or not len(items) else float(is_new[items].mean()),
                gini=gini(np.bincount(groups[items][groups[items] >= 0], minlength=int(groups.max(initial=0)) + 1)),
                is_best=False,
            )
        )
    return tuple(replace(line, is_best=not any(_is_better(other, line) for other in lines)) for line in lines)


def _is_better(one: RuleLine, other: RuleLine) -> bool:
    return (one.ndcg.value or 0) > (other.ndcg.value or 0) and one.gini < other.gini


def gini(counts: Int64[np.ndarray, "_"]) -> float:
    """Returns the Gini coefficient of counts.

    >>> gini(np.array([2, 2])), gini(np.array([0, 4]))
    (0.0, 0.5)
    """
    ordered, n = np.sort(counts), len(counts)
    if not counts.sum():
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def _sentence(lines: Sequence[RuleLine]) -> str:
    """Sums up what all rules together cost and change."""
    before, after = lines[0], lines[-1]
    gap = after.ndcg_minus
    return (
        f"Rules after ranking: NDCG@{K} is {format_decimal(after.ndcg.value)} with all rules, "
        f"{format_signed(gap.value)} {format_interval(gap.low, gap.high)} from none; coverage "
        f"{format_decimal(before.coverage)} becomes {format_decimal(after.coverage)}, the Gini coefficient "
        f"{format_decimal(before.gini)} becomes {format_decimal(after.gini)}."
    )
