"""Rules after ranking in the pipeline: the columns of the items that they read, and their section of the report."""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from twofold.dataset.dataset import Dataset
from twofold.errors import RecipeError
from twofold.evaluate.new_items import find_new_items
from twofold.evaluate.results import Report
from twofold.evaluate.rule_prices import RuleInputs, RuleSection, evaluate_rules
from twofold.evaluate.scores import ScoreBlock, TwoStages
from twofold.evaluate.window import EvaluationWindow
from twofold.index.rule_columns import rule_columns
from twofold.model.retriever import Model, item_vectors
from twofold.pipeline.adapters import allowed_items
from twofold.pipeline.trained_models import TrainedModels
from twofold.recipe.rerank import Pin, Rerank, without_blocked
from twofold.recipe.schema import Recipe
from twofold.reranking import RuleColumns, RuleItems
from twofold.topk import Products


def where_of(recipe: Recipe) -> str | None:
    """Returns the condition for every recommended item: `index.where` without the blocked items; `None` means all."""
    return without_blocked(recipe.index.where, () if recipe.rerank is None else recipe.rerank.rules)


def check_rules(rerank: Rerank | None, items: pa.Table) -> RuleColumns | None:
    """Returns the columns that the rules read; `None` means no rules. RecipeError if a pinned id is unknown."""
    if rerank is None:
        return None
    columns = rule_columns(rerank.rules, items)
    for number, rule in enumerate(rerank.rules):
        if isinstance(rule, Pin) and rule.item is not None and not columns.flags[rule.condition].any():
            examples = ", ".join(map(str, items["item_id"][:3].to_pylist()))
            raise RecipeError(
                f"rerank.rules.{number}: item {rule.item} is pinned, and none of the {len(items):,} items of the "
                f"catalogue has this id. Ids look like {examples}. Correct the id, or delete the pin."
            )
    return columns


def rule_inputs(recipe: Recipe, items: pa.Table, model: Model, arrays: Dataset, *, as_of: int) -> RuleInputs | None:
    """Returns the rules with what they read, as of a time in UTC milliseconds; `None` means that there are no rules.

    Columns of the items are those of `described_items` as of the same time.
    """
    columns = check_rules(recipe.rerank, items)
    if recipe.rerank is None or columns is None:
        return None
    vectors, all_items = item_vectors(model, arrays, as_of), np.ones(len(items), bool)
    where, unblocked = allowed_items(items, recipe.index.where), allowed_items(items, where_of(recipe))
    return RuleInputs(
        recipe.rerank,
        RuleItems(columns, lambda rows: vectors[rows]),
        all_items if where is None else where.allowed,
        all_items if unblocked is None else unblocked.allowed,
        events=arrays.events if recipe.rerank.reads_meetings else None,
    )


def rule_section(
    recipe: Recipe, items: pa.Table, models: TrainedModels, window: EvaluationWindow, scores: ScoreBlock
) -> RuleSection | None:
    """Returns the prices of the rules on a window; `scores` are those of the model. `None` means no rules."""
    arrays = models.data.retriever
    rules = rule_inputs(recipe, items, models.retriever, arrays, as_of=int(window.query_at.min()))
    if rules is None:
        return None
    assert isinstance(scores, Products | TwoStages)
    return evaluate_rules(window, scores, replace(rules, is_new=find_new_items(arrays, window)))


def with_rules(report: Report, section: RuleSection | None) -> Report:
    """Adds the prices of the rules to a report, and their sentence to its summary."""
    return report if section is None else replace(report, rerank=section, verdict=(*report.verdict, section.sentence))
