"""All probes of a run, from its item vectors and recommended lists, and their form in probes.json."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32

from twofold.dataset.column_encoders import value_lists
from twofold.dataset.dataset import Dataset
from twofold.dataset.examples import Examples
from twofold.explain.diversity import ComparedLists, popular_lists, probe_content, probe_group_share, probe_lists
from twofold.explain.folding import Grouping, find_neighbors, probe_folding, probe_hubs, probe_off_group
from twofold.explain.probes import Probe, probe_norms, probe_vectors
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
    train, num_users, num_items = dataset.examples["train"], len(dataset.users), len(dataset.items)
    events = np.bincount(train.item_rows[train.label], minlength=num_items)
    is_cold = np.arange(num_items) >= dataset.items.num_known
    likes = Ragged(np.asarray(dataset.positives.item_rows, np.int64), np.asarray(dataset.positives.offsets))
    before = _positives_of(train, num_users)
    compared = ComparedLists(lists, _popular(dataset, likes, lists), _positives_of(dataset.examples["test"], num_users))
    near = find_neighbors(vectors)
    probes = [*probe_vectors(vectors), probe_hubs(near), *probe_norms(vectors, events)]
    probes += probe_lists(compared, events, is_cold=is_cold)
    for grouping in groupings_of(dataset, attributes, columns):
        off_group = probe_off_group(grouping, before, served=lists, popular=compared.popular, liked=compared.liked)
        probes += [probe_folding(near, grouping, likes), off_group, probe_group_share(compared, grouping)]
    probes += [probe_content(compared, name, np.asarray(content)) for name, content in dataset.vectors.items()]
    return tuple(probes)


def _positives_of(examples: Examples, num_users: int) -> Ragged:
    """Returns the positives of a window, one list per user row."""
    users, items = examples.user_rows[examples.label], examples.item_rows[examples.label]
    order = np.argsort(users, kind="stable")
    offsets = np.searchsorted(users[order], np.arange(num_users + 1)).astype(np.int64)
    return Ragged(np.asarray(items[order]), offsets)


def _popular(dataset: Dataset, likes: Ragged, lists: Ragged) -> Ragged:
    """Returns the items with most positives of the log that each user has not seen, as many as the user's list has."""
    counts = np.bincount(likes.values, minlength=len(dataset.items))
    seen = Ragged(np.asarray(dataset.events.item_rows, np.int64), np.asarray(dataset.events.offsets))
    return popular_lists(counts, seen, lists.sizes)


def groupings_of(dataset: Dataset, attributes: pa.Table, columns: Sequence[str] = ()) -> list[Grouping]:
    """Groups the items by each category of the item tower, and by those of `columns` that items have; a list of tags
    counts as its first.

    A column that no tower reads must be named in `columns`: its groups are those that training does not separate.
    """
    features = dataset.features.features.item
    of_tower = [each.column for each in features if isinstance(each, CategoryFeature | BagFeature)]
    separators = {each.column: each.sep for each in features if isinstance(each, BagFeature)}
    groupings = []
    for name in dict.fromkeys([*of_tower, *(column for column in columns if column in attributes.column_names)]):
        column = value_lists(attributes[name], separators.get(name)).combine_chunks()
        if pa.types.is_nested(column.type):
            filled = pc.if_else(pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0), column, None)
            column = pc.list_element(pc.list_slice(filled, 0, 1, return_fixed_size_list=True), 0)
        coded = column.dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        groupings.append(Grouping(name, codes, tuple(map(str, coded.dictionary.to_pylist()))))
    return groupings


def probe_records(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """Returns the probes in the form of `probes.json`."""
    return [asdict(probe) | {"is_alarming": probe.is_alarming} for probe in probes]
