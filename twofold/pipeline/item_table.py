"""The items as filters, rules and sources of candidates see them: their table, described as of a point in time."""

from pathlib import Path

import pyarrow as pa

from twofold.dataset.column_encoders import age_days
from twofold.dataset.dataset import Dataset, item_attributes
from twofold.dataset.recent_counts import with_counts
from twofold.recipe.rerank import AGE
from twofold.recipe.schema import Recipe


def described_items(recipe: Recipe, folder: Path, arrays: Dataset, *, as_of: int) -> pa.Table:
    """Returns the items table in the order of the item rows, with recent counts and, if the items have `uploaded_at`,
    `age_days`.
    """
    items = with_counts(item_attributes(folder), arrays, recipe.index.recent_counts, as_of=as_of)
    if "uploaded_at" not in items.column_names or AGE in items.column_names:
        return items
    return items.append_column(AGE, age_days(items["uploaded_at"], as_of))
