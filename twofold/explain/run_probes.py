"""All probes of a run, from its item vectors and recommended lists, and their form in probes.json."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32

from twofold.dataset.dataset import Dataset
from twofold.explain.diversity import probe_content, probe_lists_of_groups, probe_served
from twofold.explain.folding import Grouping, find_neighbors, probe_groups, probe_hubs
from twofold.explain.probes import Probe, probe_lists, probe_norms, probe_vectors
from twofold.ragged import Ragged
from twofold.recipe.features import BagFeature, CategoryFeature


def probe_run(
    dataset: Dataset,
    vectors: Float32[np.ndarray, "items dim"],
    lists: Ragged,
    *,
    attributes: pa.Table,
    columns: Sequence[str] = (),
) -> tuple[Probe, ...]:
    """Runs every probe of item vectors and recommended lists, one list per user row.

    `attributes` has one row per item; `columns` are described at `groupings_of`.
    """
    train = dataset.examples["train"]
    events = np.bincount(train.item_rows[train.label], minlength=len(dataset.items))
    is_cold = np.arange(len(dataset.items)) >= dataset.items.num_known
    likes = Ragged(np.asarray(dataset.positives.item_rows, np.int64), np.asarray(dataset.positives.offsets))
    near = find_neighbors(vectors)
    probes = [*probe_vectors(vectors), *probe_hubs(near), probe_norms(vectors, events)]
    probes += probe_lists(lists.values, num_items=len(dataset.items), num_lists=int((lists.sizes > 0).sum()))
    probes += probe_served(lists, events, is_cold=is_cold)
    for grouping in groupings_of(dataset, attributes, columns):
        probes += [*probe_groups(near, grouping, likes, served=lists), probe_lists_of_groups(lists, grouping)]
    probes += [probe_content(lists, name, np.asarray(content)) for name, content in dataset.vectors.items()]
    return tuple(probes)


def groupings_of(dataset: Dataset, attributes: pa.Table, columns: Sequence[str] = ()) -> list[Grouping]:
    """Groups the items by each category of the item tower, and by those of `columns` that items have; a list of tags
    counts as its first.

    A column that no tower reads must be named in `columns`: its groups are those that training does not separate.
    """
    of_tower = [
        each.column for each in dataset.features.features.item if isinstance(each, CategoryFeature | BagFeature)
    ]
    groupings = []
    for name in dict.fromkeys([*of_tower, *(column for column in columns if column in attributes.column_names)]):
        column = attributes[name].combine_chunks()
        if pa.types.is_nested(column.type):
            filled = pc.if_else(pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0), column, None)
            column = pc.list_element(pc.list_slice(filled, 0, 1, return_fixed_size_list=True), 0)
        codes = column.dictionary_encode().indices.fill_null(-1)
        groupings.append(Grouping(name, codes.to_numpy(zero_copy_only=False).astype(np.int64)))
    return groupings


def read_lists(path: Path, dataset: Dataset) -> Ragged:
    """Reads a file of recommendations as item rows, one list per user row, best first."""
    table = pq.read_table(path, columns=["user_id", "item_id", "rank"])
    users, items = dataset.users.rows_of(table["user_id"]), dataset.items.rows_of(table["item_id"])
    order = np.lexsort((np.asarray(table["rank"]), users))
    offsets = np.searchsorted(users[order], np.arange(len(dataset.users) + 1)).astype(np.int64)
    return Ragged(items[order], offsets)


def probe_records(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """Returns the probes in the form of `probes.json`."""
    return [asdict(probe) | {"is_alarming": probe.is_alarming} for probe in probes]
