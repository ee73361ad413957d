"""The items as filters, rules and sources of candidates see them: their table, described as of a point in time."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from twofold.dataset.column_encoders import timestamps
from twofold.dataset.dataset import Dataset, item_attributes
from twofold.dataset.recent_counts import with_counts
from twofold.recipe.rerank import AGE
from twofold.recipe.schema import Recipe
from twofold.tables import DAY_MS


def described_items(recipe: Recipe, folder: Path, arrays: Dataset, *, as_of: int) -> pa.Table:
    """Returns the items table in the order of the item rows, with recent counts and, if a condition reads it,
    `age_days`.
    """
    items = with_counts(item_attributes(folder), arrays, recipe.index.recent_counts, as_of=as_of)
    if AGE not in recipe.condition_columns or AGE in items.column_names:
        return items
    uploaded, is_known = timestamps(items["uploaded_at"]), items["uploaded_at"].is_valid().to_numpy()
    days = np.maximum((as_of - uploaded) / DAY_MS, 0)  # an item seen before its upload date is new, not negative
    return items.append_column(AGE, pa.array(days, mask=~is_known))
