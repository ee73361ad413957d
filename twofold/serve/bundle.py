"""The folder that serving opens, and nothing else: written by the index stage, checked when it is opened.

```
index/
├── user_tower.onnx           what a user asks with: inputs named as the user features, output `vector`; or
├── fold_in.json              how that is solved from a history and item_vectors.npy
├── ranker.json               where there is a second stage: how many of the best it orders anew; with
├── ranker_user.onnx          its user encoder, ranker_pairs.onnx its scores, ranker_items.npy what it makes of items
├── item_vectors.npy          what is searched, with index.json; mapped
├── item_lists.faiss          where items are many, the same vectors in lists; mapped
├── users.parquet             id ↔ row
├── items.parquet             id ↔ row
├── item_attributes.parquet   what filters read, in the order of the item rows; counts of the recipe's index too
├── features/                 the fitted features
├── user_arrays/              attributes of users; the cluster of each item
├── counters/user_id/         what users did, by the hour
├── events.*.npy              what each user met; positives.*.npy and negatives.*.npy are the parts the tower reads
└── context.json              as_of: the moment of the item vectors and counts; where: who may be recommended, or null
```
"""

import json
import shutil
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from twofold.dataset.features import FeatureState, UserArrays, feature_names, load_features, load_user_arrays
from twofold.dataset.histories import Histories, load_histories
from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import DataError, RunError
from twofold.index.item_mask import Filters, ItemMask
from twofold.index.search import Index, load_index
from twofold.model.fold_in import FOLD_IN, FoldIn, load_fold_in
from twofold.run_folder import open_stage, write_json
from twofold.serve.onnx_models import USER_TOWER, Ranker, UserTower, load_ranker, load_user_tower

CONTEXT: Final = "context.json"
TABLES: Final = ("users.parquet", "items.parquet", "item_attributes.parquet")
HISTORIES: Final = ("events", "positives", "negatives")
FOLDERS: Final = ("features", "user_arrays", "counters/user_id")


@dataclass(frozen=True)
class Bundle:
    """Everything an answer needs, each part checked to belong to the others."""

    users: Vocabulary
    items: Vocabulary
    attributes: pa.Table
    filters: Filters
    features: FeatureState
    events: Histories
    positives: Histories
    negatives: Histories
    user_arrays: UserArrays
    index: Index
    tower: UserTower | FoldIn
    ranker: Ranker | None
    as_of: int
    where: str | None
    """What holds of every item that may be recommended, whoever asks."""

    def eligible(self, where: str | None) -> ItemMask | None:
        """The items that may answer a request with this filter; None: all."""
        rules = [rule for rule in (self.where, where) if rule is not None]
        return reduce(ItemMask.both, map(self.filters.eligible, rules)) if rules else None


def save_context(
    dataset: Path, out: Path, *, as_of: int, attributes: pa.Table | None = None, where: str | None = None
) -> None:
    """Copies into `out` what serving needs of a dataset/ folder. The user tower and the index are written beside it.

    `as_of` (UTC milliseconds) is the moment that item ages were computed for, and that recommendations are made for.
    `attributes` stand in the place of the dataset's, item row by item row; `where` is what must hold of all answers.
    """
    names = [*TABLES, *(path.name for name in HISTORIES for path in dataset.glob(f"{name}.*.npy"))]
    for name in names:
        shutil.copyfile(dataset / name, out / name)
    for name in FOLDERS:
        if (dataset / name).is_dir():
            shutil.copytree(dataset / name, out / name, dirs_exist_ok=True)
    if attributes is not None:
        pq.write_table(attributes, out / "item_attributes.parquet", compression="zstd")
    write_json(out / CONTEXT, {"as_of": as_of, "where": where})


def open_bundle(run: Path) -> Bundle:
    """Opens `run/index/`; RunError says what is missing, damaged, or of another run."""
    folder = open_stage(run, "index", verify=True).folder
    try:
        features, index = load_features(folder / "features"), load_index(folder)
        attributes = pq.read_table(folder / "item_attributes.parquet")
        context = json.loads((folder / CONTEXT).read_text())
        bundle = Bundle(
            users=Vocabulary.load(folder / "users.parquet"),
            items=Vocabulary.load(folder / "items.parquet"),
            attributes=attributes,
            filters=Filters(attributes, index.vectors),
            features=features,
            events=load_histories(folder, "events"),
            positives=load_histories(folder, "positives"),
            negatives=load_histories(folder, "negatives"),
            user_arrays=load_user_arrays(features.features, folder),
            index=index,
            tower=load_user_tower(folder / USER_TOWER)
            if not (folder / FOLD_IN).exists()
            else load_fold_in(folder, index.vectors),
            ranker=load_ranker(folder),
            as_of=context["as_of"],
            where=context.get("where"),  # older bundles have none
        )
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise RunError(f"the bundle {folder} cannot be read: {error}. {_again(folder)}") from error
    _check_features(bundle, folder)
    return bundle


def _check_features(bundle: Bundle, folder: Path) -> None:
    """A part of another run answers with confidence and nonsense; counts and widths tell."""
    items, users = len(bundle.items), len(bundle.users)
    expected, _ = feature_names(bundle.features)
    read = {*bundle.tower.inputs, *(() if bundle.ranker is None else bundle.ranker.user.inputs)}
    ids = bundle.attributes.column("item_id").combine_chunks() if "item_id" in bundle.attributes.column_names else None
    histories = {name: getattr(bundle, name) for name in HISTORIES}
    faults = [
        (len(bundle.index) != items, f"it holds {len(bundle.index)} item vectors for {items} items"),
        (bundle.tower.dim != bundle.index.dim, f"users have {bundle.tower.dim} dimensions, items {bundle.index.dim}"),
        (read != set(expected), f"the graphs read {sorted(read)}, features are {expected}"),
        (
            bundle.ranker is not None and len(bundle.ranker.items) != items,
            f"ranker_items.npy is not of {items} items",
        ),
        (
            ids is None or not ids.equals(bundle.items.ids),
            "item_attributes.parquet lists other items than items.parquet",
        ),
        *(
            (
                len(history.offsets) != users + 1
                or history.offsets[-1] != len(history.item_rows)
                or history.item_rows.max(initial=0) >= max(items, 1),
                f"{name}.*.npy are histories of other users or items",
            )
            for name, history in histories.items()
        ),
        (
            any(len(values) != users + 1 for values in bundle.user_arrays.attributes.values())
            or any(len(counters.first) != users + 1 for counters in bundle.user_arrays.counters.values())
            or any(len(clusters) != items + 1 for clusters in bundle.user_arrays.clusters.values()),
            "user_arrays/ or counters/ are of other users or items",
        ),
    ]
    found = [text for is_wrong, text in faults if is_wrong]
    if found:
        raise RunError(f"the parts of {folder} do not belong together: {'; '.join(found)}. {_again(folder)}")


def _again(folder: Path) -> str:
    return f"Delete {folder} and run `twofold run` again."
