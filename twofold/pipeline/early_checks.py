"""Checks of a recipe against its arrays before anything is trained.

What a report, a bundle or a ranker cannot do with this log is said here, not by the stage that does it: that stage
comes after hours of training.
"""

import numpy as np

from twofold.dataset.dataset import Dataset, load_dataset
from twofold.errors import DataError
from twofold.evaluate.catalogue import check_relevant
from twofold.evaluate.impressions import evaluate_impressions
from twofold.evaluate.sampled import negatives_of
from twofold.evaluate.watch_time import evaluate_watch_time, watched_rows
from twofold.evaluate.window import DayBounds, EvaluationWindow
from twofold.index.filters import compile_filter
from twofold.pipeline.adapters import allowed_items, positives_before_window, window_of
from twofold.pipeline.item_table import described_items
from twofold.pipeline.rerank import check_rules, where_of
from twofold.recipe.schema import Recipe
from twofold.render.numbers import plural
from twofold.run_folder import Stage
from twofold.topk import Products


def check_later_stages(recipe: Recipe, dataset: Stage) -> None:
    """Raises the error with which a stage after the training would end: evaluation, index or ranker."""
    arrays = load_dataset(dataset.folder, recipe.all_features)
    test = window_of(recipe, arrays, "test")
    check_relevant(test)
    for day in recipe.evaluate.windows:
        check_relevant(window_of(recipe, arrays, "test", DayBounds(f"{day}", *recipe.prepare.day_ms(day))))
    for as_of in (int(test.query_at.min()), dataset.facts["last_event_at"] + 1):  # of the report, and of the bundle
        _check_items(recipe, dataset, arrays, as_of)
    if recipe.evaluate.sampled:
        positives = positives_before_window(recipe.prepare, arrays, test)
        published = recipe.data.published_negatives
        negatives_of(recipe.evaluate.sampled, test, arrays, positives=positives, published=published)
    if recipe.ranker is not None and recipe.ranker.best_epoch_by == "xauc":
        check_watched(arrays, window_of(recipe, arrays, "validation"))


def _check_items(recipe: Recipe, dataset: Stage, arrays: Dataset, as_of: int) -> None:
    """Raises an error if a condition on items cannot be evaluated, admits no item, or pins an item that is none."""
    sources = () if recipe.ranker is None else recipe.ranker.candidates.conditions
    if recipe.index.where is None and recipe.rerank is None and not sources:
        return
    items = described_items(recipe, dataset.folder, arrays, as_of=as_of)
    for where in (recipe.index.where, where_of(recipe)):
        allowed_items(items, where)
    check_rules(recipe.rerank, items)
    for _, condition in sources:
        compile_filter(condition, items)


def check_shown(window: EvaluationWindow) -> None:
    """Raises DataError if AUC is to choose the epoch and no user of the window was shown a positive and a negative."""
    if np.isnan(evaluate_impressions(window, _equal_scores(window)).mean("impressions/auc")):
        raise DataError(
            f"train.best_epoch_by is auc, and none of the {plural(len(window.user_rows), 'user')} of the validation "
            f"window was shown both a positive and a negative: write best_epoch_by: recall, or a longer "
            f"prepare.split.validation"
        )


def check_watched(arrays: Dataset, window: EvaluationWindow) -> None:
    """Raises DataError if XAUC is to choose the epoch of the ranker and no user of the window was shown items of
    different watch times.
    """
    shown = watched_rows(arrays, window, with_target=False)
    if shown is None or np.isnan(evaluate_watch_time(window, _equal_scores(window), shown)[0].mean("watch_time/xauc")):
        raise DataError(
            f"ranker.best_epoch_by is xauc, and none of the {plural(len(window.user_rows), 'user')} of the validation "
            f"window has impressions of different watch times: write best_epoch_by: ndcg, or add watch_s and length_s "
            f"to the log"
        )


def _equal_scores(window: EvaluationWindow) -> Products:
    """Returns a score of 0 for every pair: which users have a metric does not depend on the scores."""
    users, items = (np.zeros((count, 1), np.float32) for count in (len(window.user_rows), window.num_items))
    return Products(users, items)
