"""Columns of the items that the rules after ranking read, from a table of attributes."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32

from twofold.index.filters import compile_filter
from twofold.recipe.rerank import Boost, Limit, Pin, Quota, RerankRule
from twofold.reranking import RuleColumns

MAX_VALUES: Final = 32  # of a list column: longer lists are rare, and every item takes as much memory as the longest


def rule_columns(rules: Sequence[RerankRule], attributes: pa.Table) -> RuleColumns:
    """Reads the columns of limits and evaluates the conditions; RequestError if they do not fit the attributes."""
    columns = dict.fromkeys(rule.column for rule in rules if isinstance(rule, Limit))
    conditions = [rule.when for rule in rules if isinstance(rule, Boost | Quota)]
    conditions += [rule.condition for rule in rules if isinstance(rule, Pin)]
    return RuleColumns(
        {name: value_codes(attributes[name]) for name in columns},
        {text: compile_filter(text, attributes) for text in dict.fromkeys(conditions)},
    )


def value_codes(column: pa.ChunkedArray) -> Int32[np.ndarray, "items _"]:
    """Returns the code of every item's values, padded with -1; of a list, at most the first `MAX_VALUES` values.

    >>> value_codes(pa.chunked_array([[["b", "a"], None, ["a"]]])).tolist()
    [[0, 1], [-1, -1], [1, -1]]
    """
    values = column.combine_chunks()
    if not pa.types.is_list(values.type) and not pa.types.is_large_list(values.type):
        return _codes(values)[:, None]
    owner, codes = pc.list_parent_indices(values).to_numpy(), _codes(values.flatten())
    sizes = np.bincount(owner, minlength=len(values))
    position = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded = np.full((len(values), max(1, min(int(sizes.max(initial=0)), MAX_VALUES))), -1, np.int32)
    is_read = position < padded.shape[1]
    padded[owner[is_read], position[is_read]] = codes[is_read]
    return padded


def _codes(values: pa.Array) -> Int32[np.ndarray, "_"]:
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    return np.asarray(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), np.int32)
