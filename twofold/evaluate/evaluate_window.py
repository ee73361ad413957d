"""Evaluation of one window: every protocol and report section, for the model and the baselines, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64
from pydantic import TypeAdapter

from twofold.dataset.dataset import Dataset
from twofold.evaluate.baseline_results import LeftOut, PeerTuning
from twofold.evaluate.baselines import baseline_scores
from twofold.evaluate.calibration import Calibration, head_sentence
from twofold.evaluate.catalogue import TIE_RULE, evaluate_catalogue, evaluate_filtered
from twofold.evaluate.evaluation_setup import EvaluationSetup, WindowDigests, digests_of
from twofold.evaluate.headline_metrics import beats_all, deciding_metrics, headline_of, primary_k, primary_metric_of
from twofold.evaluate.impressions import bounds_of_impressions, evaluate_impressions
from twofold.evaluate.in_batch import BatchSection, batch_section, evaluate_in_batch
from twofold.evaluate.new_items import NewItemSection, evaluate_new_items, find_new_items
from twofold.evaluate.peer_tuning import fixed_constants
from twofold.evaluate.peers import Interactions
from twofold.evaluate.results import (
    MODEL,
    Bounds,
    Facts,
    FilterLine,
    FilterSection,
    LengthPart,
    Report,
    SampledSection,
    Section,
    SliceSection,
    WatchSection,
    rows_of,
)
from twofold.evaluate.sampled import Negatives, evaluate_sampled
from twofold.evaluate.scores import FIRST_STAGE, ScoreBlock
from twofold.evaluate.significance import estimates_of, json_number, means_of
from twofold.evaluate.slices import Slicing, evaluate_slices, item_groups, slicings_of
from twofold.evaluate.summary_text import badge_sentence, filter_sentences, summary_sentences
from twofold.evaluate.watch_time import Watched, evaluate_watch_time, length_decile, watched_rows
from twofold.evaluate.window import SEED, EvaluationWindow, PerUser, without_short_lists
from twofold.progress import heartbeat, progress_bar
from twofold.recipe.features import CategoryFeature


@dataclass(frozen=True)
class AllowedItems:
    """The items that may be recommended, and the rule that selects them."""

    where: str
    allowed: Bool[np.ndarray, "items"]


@dataclass(frozen=True)
class EvaluationOptions:
    """Optional parts of an evaluation."""

    slicings: tuple[Slicing, ...] = ()
    watched: Watched | None = None
    digests: WindowDigests = WindowDigests()
    dates: str = ""
    """Days of the window in words."""
    allowed_items: AllowedItems | None = None
    """`None` means every item may be recommended."""
    sampled: tuple[Negatives, ...] = ()
    """Sets of negatives; every positive is also ranked among each of them."""
    groups: Mapping[str, Int64[np.ndarray, "items"]] = field(default_factory=dict)
    """Groupings of items by name; each adds the baseline `popularity_of_own`."""
    others: Mapping[str, ScoreBlock] = field(default_factory=dict)
    """Scores of further rows of the report, by name."""
    heads: tuple[Calibration, ...] = ()
    correction: Float32[np.ndarray, "items"] | None = None
    """Part of an item's score that training subtracts within a batch: see `evaluate_in_batch`."""
    is_new: Bool[np.ndarray, "items"] | None = None
    """Flags of the items without an event before the window. `None` means no section on them."""
    tuning: PeerTuning | None = None
    """Hyperparameters of the baselines, chosen on the validation window. `None` means fixed ones: there is none."""


@dataclass(frozen=True)
class EvaluationResult:
    """A report and the values per user whose means its numbers are."""

    report: Report
    rows: Mapping[str, PerUser]
    """Catalogue metrics of every row, the model first."""
    impressions: PerUser
    filtered: PerUser | None = None
    """The catalogue ranking of the allowed items; `None` means every item is allowed."""

    @property
    def catalogue(self) -> PerUser:
        """Catalogue metrics of the model."""
        return self.rows[MODEL]


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation in progress: its inputs and the values per user of every row, the model first."""

    window: EvaluationWindow
    options: EvaluationOptions
    sources: Mapping[str, ScoreBlock]
    catalogue: Mapping[str, PerUser]
    impressions: Mapping[str, PerUser]
    filtered: PerUser | None
    primary_metric: str
    baselines: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    tuning: PeerTuning


def evaluate_window(
    window: EvaluationWindow,
    scores: ScoreBlock,
    positives: Interactions,
    *,
    batch_size: int,
    facts: Mapping[str, Any],
    options: EvaluationOptions | None = None,
) -> EvaluationResult:
    """Evaluates the model and the baselines on one window, by every protocol.

    `positives` are those before the window, which baselines learn from; `facts` are the fields of `Facts`, as JSON.
    DataError if no user can be evaluated.
    """
    options = options or EvaluationOptions()
    tuning = options.tuning or fixed_constants(deciding_metrics(window.num_items))
    with heartbeat("evaluate"):
        baselines, left_out = baseline_scores(window, positives, options.groups, tuning)
    sources = {MODEL: scores, **baselines, **options.others}
    catalogue, impressions = dict[str, PerUser](), dict[str, PerUser]()
    with progress_bar("evaluate", total=len(sources), unit="rows") as advance:
        for name, source in sources.items():
            catalogue[name] = evaluate_catalogue(window, source)
            impressions[name] = without_short_lists(evaluate_impressions(window, source), window.candidates.sizes)
            advance(1, name)
    rule = options.allowed_items
    filtered = None if rule is None else evaluate_filtered(window, scores, rule.allowed)
    primary_metric = primary_metric_of(window.num_items, is_two_stages=FIRST_STAGE in options.others)
    evaluation = _Evaluation(
        window, options, sources, catalogue, impressions, filtered, primary_metric, tuple(baselines), left_out, tuning
    )
    with heartbeat("evaluate"):
        report = _report(evaluation, batch_size=batch_size, facts=facts)
    return EvaluationResult(report, catalogue, impressions[MODEL], filtered)


def _report(evaluation: _Evaluation, *, batch_size: int, facts: Mapping[str, Any]) -> Report:
    window, options, left_out = evaluation.window, evaluation.options, evaluation.left_out
    catalogue, impressions = _catalogue_section(evaluation), _impressions_section(evaluation)
    filtered, new_items = _filter_section(evaluation), _new_item_section(evaluation)
    rows = [row for row in catalogue.rows if row.name in evaluation.baselines]
    headlines = tuple(headline_of(catalogue.rows[0], rows, each) for each in deciding_metrics(window.num_items))
    verdict = summary_sentences(headlines, catalogue, impressions, baselines=evaluation.baselines, left_out=left_out)
    if filtered is not None:
        verdict = (*verdict, filter_sentences(filtered, window.num_items, primary_metric=evaluation.primary_metric))
    if new_items is not None:
        verdict = (*verdict, new_items.sentence)
    is_cold = window.is_cold[window.relevant.values]
    return Report(
        window=window.name,
        track=window.track,
        tie_rule=TIE_RULE,
        interval="95 %, mean ± t · standard error over users; differences are paired",
        primary_metric=evaluation.primary_metric,
        verdict=(*verdict, *map(head_sentence, options.heads)),
        badge=badge_sentence(headlines, left_out),
        headlines=headlines,
        beats_all=beats_all(rows, [each.metric for each in headlines]) and not left_out,
        cold_items=int(window.is_cold.sum()),
        cold_relevant_share=float(is_cold.mean()),
        catalogue=catalogue,
        impressions=impressions,
        in_batch=_batch_section(evaluation, batch_size=batch_size),
        facts=TypeAdapter(Facts).validate_python(dict(facts)),
        question=_setup(evaluation, users=catalogue.users_judged),
        slices=_slice_section(evaluation),
        watch_time=None if options.watched is None else _watch_section(window, evaluation.sources, options.watched),
        filtered=filtered,
        baselines=evaluation.baselines,
        left_out=left_out,
        tuning=evaluation.tuning,
        sampled=tuple(_sampled_section(evaluation, negatives) for negatives in options.sampled),
        heads=options.heads,
        new_items=new_items,
    )


def _setup(evaluation: _Evaluation, *, users: int) -> EvaluationSetup:
    window, options, digests = evaluation.window, evaluation.options, evaluation.options.digests
    facts = (window.name, options.dates, window.track, TIE_RULE, window.num_items, users, digests.relevant)
    return EvaluationSetup(*facts, window.includes_seen, digests.ranked, digests.impressions)


def _slice_section(evaluation: _Evaluation) -> SliceSection | None:
    """Compares both stages with the first, or the model with the strongest baseline, group by group."""
    if not evaluation.options.slicings:
        return None
    catalogue, metric = evaluation.catalogue, evaluation.primary_metric
    names = (FIRST_STAGE,) if FIRST_STAGE in catalogue else evaluation.baselines
    base = max(names, key=lambda name: catalogue[name].mean(metric))
    ranks, base_ranks = (catalogue[name].ranks for name in (MODEL, base))
    assert ranks is not None  # a catalogue ranking has ranks
    assert base_ranks is not None
    relevant, slicings, k = evaluation.window.relevant, evaluation.options.slicings, int(metric.partition("@")[2])
    return evaluate_slices(ranks, base_ranks, relevant=relevant, slicings=slicings, k=k, base=base)


def _watch_section(window: EvaluationWindow, sources: Mapping[str, ScoreBlock], watched: Watched) -> WatchSection:
    """Evaluates all rows on all impressions, and the model also by item length; the model's row is first."""
    all_lengths: dict[str, PerUser] = {}
    deciles: tuple[PerUser, ...] = ()
    for name, scores in sources.items():
        # Only the model's score can be a prediction of the target; the scores of all other rows are for ordering.
        own = watched if name == MODEL else replace(watched, target=None)
        found, parts = evaluate_watch_time(window, scores, own)
        all_lengths[name] = without_short_lists(found, watched.item_rows.sizes)
        deciles = parts if name == MODEL else deciles
    decile, length, whole = length_decile(watched.length_s), watched.length_s, all_lengths[MODEL]
    by_length = []
    for number, part in enumerate(deciles):
        if part.evaluated:
            is_in = decile == number
            means = means_of(without_short_lists(part, watched.where(is_in).item_rows.sizes).values)
            means |= {name: json_number(value) for name, value in part.pooled.items()}
            metrics = {name: means.get(name) for name in (*whole.values, *part.pooled)}
            by_length.append(
                LengthPart(float(length[is_in].min()), float(length[is_in].max()), part.evaluated, metrics)
            )
    return WatchSection(len(length), whole.evaluated, rows_of(all_lengths), tuple(by_length), whole.absent)


def evaluation_options(
    dataset: Dataset,
    window: EvaluationWindow,
    *,
    tables: Sequence[pa.Table],
    with_target: bool,
    columns: Sequence[str] = (),
) -> EvaluationOptions:
    """Returns the options that follow from a data set: slices by category features and by `columns`, watch time.

    See `slicings_of` for `tables`, `watched_rows` for `with_target`.
    """
    features = dataset.features.features
    categories = [each.column for each in (*features.user, *features.item) if isinstance(each, CategoryFeature)]
    return EvaluationOptions(
        slicings=slicings_of(dataset, window, tables=tables, columns=categories, declared=columns),
        groups=item_groups(dataset, tables, columns),
        watched=watched_rows(dataset, window, with_target=with_target),
        digests=digests_of(dataset, window),
        is_new=find_new_items(dataset, window),
    )


def _catalogue_section(evaluation: _Evaluation) -> Section:
    return Section(
        protocol="catalogue",
        candidates="every item of the catalogue, cold ones included, ranked in full and exactly",
        excluded=evaluation.window.excluded,
        num_items=evaluation.window.num_items,
        users_judged=evaluation.catalogue[MODEL].evaluated,
        users_skipped=evaluation.catalogue[MODEL].skipped,
        rows=rows_of(evaluation.catalogue),
        bounds={},
        absent=evaluation.catalogue[MODEL].absent,
    )


def _impressions_section(evaluation: _Evaluation) -> Section:
    rows = rows_of(evaluation.impressions)
    chance, best = (means_of(bound.values) for bound in bounds_of_impressions(evaluation.window))
    bounds = {}
    for metric in (name for name in chance if name in rows[0].metrics):
        value, floor, top = rows[0].metrics[metric].value, chance[metric], best[metric]
        headroom = None
        if value is not None and floor is not None and top is not None and floor < top:
            headroom = (value - floor) / (top - floor)
        bounds[metric] = Bounds(floor, top, headroom)
    return Section(
        protocol="impressions",
        candidates="the distinct items that the log shows to the user in the window",
        excluded="nothing; items seen before stay",
        num_items=evaluation.window.num_items,
        users_judged=evaluation.impressions[MODEL].evaluated,
        users_skipped=evaluation.impressions[MODEL].skipped,
        rows=rows,
        bounds=bounds,
        absent=evaluation.impressions[MODEL].absent,
    )


def _filter_section(evaluation: _Evaluation) -> FilterSection | None:
    """Compares the same users with and without the rule."""
    rule, filtered, whole = evaluation.options.allowed_items, evaluation.filtered, evaluation.catalogue[MODEL]
    if rule is None or filtered is None:
        return None
    columns = {("whole", name): values for name, values in whole.values.items()}
    columns |= {("filtered", name): values for name, values in filtered.values.items()}
    pairs = {name: name.replace("catalogue/", "catalogue_filtered/") for name in whole.values}
    columns |= {("minus", name): filtered.values[other] - whole.values[name] for name, other in pairs.items()}
    drawn = estimates_of(columns)
    lines = tuple(
        FilterLine(other, drawn["whole", name], drawn["filtered", other], drawn["minus", name])
        for name, other in pairs.items()
    )
    ceiling = drawn["filtered", "catalogue_filtered/ceiling"]
    return FilterSection(rule.where, int(rule.allowed.sum()), ceiling, lines)


def _sampled_section(evaluation: _Evaluation, negatives: Negatives) -> SampledSection:
    rows = {
        name: evaluate_sampled(evaluation.window, scores, negatives.items)
        for name, scores in evaluation.sources.items()
    }
    return SampledSection(
        draw=negatives.draw,
        count=negatives.items.shape[1],
        seed=negatives.seed,
        candidates=negatives.description(includes_seen=evaluation.window.includes_seen),
        users_judged=rows[MODEL].evaluated,
        users_skipped=rows[MODEL].skipped,
        rows=rows_of(rows),
    )


def _batch_section(evaluation: _Evaluation, *, batch_size: int) -> BatchSection:
    """Evaluates the stage that is trained in batches."""
    stage = FIRST_STAGE if FIRST_STAGE in evaluation.sources else MODEL
    in_batch = evaluate_in_batch(
        evaluation.window,
        evaluation.sources[stage],
        batch_size=batch_size,
        seed=SEED,
        correction=evaluation.options.correction,
    )
    return batch_section(in_batch, evaluation.catalogue[stage].values, num_items=evaluation.window.num_items)


def _new_item_section(evaluation: _Evaluation) -> NewItemSection | None:
    is_new, k = evaluation.options.is_new, primary_k(evaluation.window.num_items)
    ranks = {name: each.ranks for name, each in evaluation.catalogue.items() if each.ranks is not None}
    return None if is_new is None else evaluate_new_items(ranks, evaluation.window, is_new, k=k)
