"""Bundle of a run: the files that a service reads, written by the index stage and checked when they are opened.

```
index/
├── user_tower.onnx           the user tower: inputs named as the user features, output `vector`; with an
│                             ensemble also user_tower.1.onnx and so on; instead or beside them
├── fold_in.json              how a peer computes a user's vector from a history and item_vectors.npy, or from
├── left_vectors.npy          the vectors that an item-item model adds up
├── rerank.json               if the recipe has rules after ranking: the rules, as in the recipe
├── ranker.json               if there is a second stage: how many of the best items the ranker reorders; with
├── ranker_user.onnx          its user encoder, ranker_pairs.onnx its scores, ranker_items.npy its item encodings
├── sources.json              if the ranker has further sources of candidates: its `candidates`, as in the recipe; with
├── item_neighbors.*.npy      the nearest items of each item, if a source is item_knn
├── item_vectors.npy          the vectors that are searched, with index.json; memory-mapped
├── quantized_products.onnx   products of a search in 8 bits; in a small catalogue item_products.onnx, in 32; if there
│                             are many items instead
├── item_lists.faiss          the same vectors as an inverted file; memory-mapped
├── page.json                 if the recipe has them: the columns that the live page shows
├── users.parquet             id ↔ row
├── items.parquet             id ↔ row
├── users.ids.arrow           the same where ids are texts, with users.hashes.npy and users.rows.npy, and so for items;
│                             memory-mapped
├── item_attributes.parquet   columns that filters read, in the order of the item rows, with the recipe's recent counts
├── features/                 the fitted features
├── user_arrays/              attributes of users; the cluster of each item
├── counters/user_id/         event counts of each user, by the hour
├── events.*.npy              items seen by each user; positives.*.npy and negatives.*.npy are the parts the tower reads
└── context.json              as_of: time of the item vectors and counts; where and include_seen, as in the recipe
```
"""

import json
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from twofold.candidate_sources import CandidateSources
from twofold.dataset.features import FeatureState, feature_names, load_features
from twofold.dataset.histories import Histories, load_histories
from twofold.dataset.mapped_vocabulary import load_mapped, save_mapped
from twofold.dataset.recent_counts import popular_items
from twofold.dataset.tower_inputs import UserArrays, load_user_arrays
from twofold.dataset.vocabulary import Vocabulary
from twofold.digest import FileState, digest_of, file_state
from twofold.errors import DataError, RequestError, RunError
from twofold.index.filters import Filters
from twofold.index.item_index import Index, load_index
from twofold.index.item_mask import ItemMask
from twofold.index.rule_columns import rule_columns
from twofold.item_neighbors import ItemNeighbors, load_neighbors
from twofold.model.fold_in import FOLD_IN, HistoryModel, load_fold_ins
from twofold.model.history_additions import HistoryAdditions, load_additions
from twofold.recipe.ranker import Candidates, ConditionSource
from twofold.recipe.rerank import Rerank
from twofold.reranking import RuleItems, guaranteed
from twofold.run_folder import MANIFEST, open_stage, write_json
from twofold.serve.onnx_models import USER_TOWER, BlendedTower, Ranker, UserTower, load_ranker, load_user_towers

CONTEXT: Final = "context.json"
RERANK: Final = "rerank.json"
SOURCES: Final = "sources.json"
PAGE: Final = "page.json"
VOCABULARIES: Final = ("users", "items")
TABLES: Final = ("users.parquet", "items.parquet", "item_attributes.parquet")
HISTORIES: Final = ("events", "positives", "negatives")
FOLDERS: Final = ("features", "user_arrays", "counters/user_id")


@dataclass(frozen=True)
class BundleRules:
    """Rules after ranking, and the items as the rules see them."""

    config: Rerank
    items: RuleItems


@dataclass(frozen=True)
class Bundle:
    """The parts of a bundle, checked to belong together."""

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
    tower: UserTower | HistoryModel | BlendedTower
    ranker: Ranker | None
    as_of: int
    where: str | None
    """The rule (`index.where`) that every recommended item satisfies, for all users."""
    include_seen: bool = False
    """Whether lists contain items that the user has already seen, unless a request says otherwise."""
    added: HistoryAdditions | None = None
    """Additions to the scores of some items by a user's newest positives."""
    rules: BundleRules | None = None
    """Rules after ranking; `None` means that the recipe has none."""
    sources: CandidateSources | None = None
    """Sources of candidates beside the retriever; `None` means that the recipe has none."""

    @property
    def reads_meetings(self) -> bool:
        """Returns whether a rule reads when a user saw an item."""
        return self.rules is not None and self.rules.config.reads_meetings

    @property
    def conditions(self) -> list[str]:
        """SQL conditions under which the bundle itself searches items."""
        conditions = [] if self.where is None else [self.where]
        if self.rules is not None:
            conditions += [condition for condition, _ in guaranteed(self.rules.config.rules)]
        if self.sources is not None:
            conditions += [each.when for each in self.sources.config.sources if isinstance(each, ConditionSource)]
        return conditions

    def excludes_seen(self, requested: bool | None) -> bool:
        """Returns whether a list excludes seen items: as requested, else as the recipe says."""
        return not self.include_seen if requested is None else requested

    def eligible(self, where: str | None) -> ItemMask | None:
        """Returns the items that a request with this filter may return; `None` means all."""
        rules = [rule for rule in (self.where, where) if rule is not None]
        return reduce(ItemMask.intersection, map(self.filters.eligible, rules)) if rules else None


def save_context(dataset: Path, out: Path, *, as_of: int, where: str | None = None, include_seen: bool = False) -> None:
    """Copies the parts of a dataset/ folder that serving needs to `out`, beside the user tower and the index.

    `as_of` (UTC milliseconds) is the time for which item ages were computed and recommendations are made. Every
    recommended item must satisfy the SQL condition `where`. With `include_seen`, items that a user has seen are
    recommended again.
    """
    names = [*TABLES, *(path.name for name in HISTORIES for path in dataset.glob(f"{name}.*.npy"))]
    for name in names:
        shutil.copyfile(dataset / name, out / name)
    for name in FOLDERS:
        if (dataset / name).is_dir():
            shutil.copytree(dataset / name, out / name, dirs_exist_ok=True)
    for name in VOCABULARIES:
        save_mapped(Vocabulary.load(out / f"{name}.parquet"), out, name)
    write_json(out / CONTEXT, {"as_of": as_of, "where": where, "include_seen": include_seen})


def save_sources(config: Candidates, neighbors: ItemNeighbors | None, out: Path) -> None:
    """Writes the sources of candidates, and what item-kNN reads, beside the ranker."""
    write_json(out / SOURCES, config.model_dump(mode="json"))
    if neighbors is not None:
        neighbors.save(out)


def content_digest(run: Path) -> str:
    """Returns the digest of the names and checksums of a bundle's files; RunError if there is no complete bundle."""
    folder = open_stage(run, "index").folder
    return digest_of(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])


def file_facts(run: Path) -> dict[str, FileState]:
    """Returns the state of each file of a bundle; a missing file has none."""
    facts = {}
    for path in sorted((run / "index").rglob("*")):
        with suppress(FileNotFoundError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                facts[str(path)] = file_state(status)
    return facts


def open_bundle(run: Path, *, verify: bool = True) -> Bundle:
    """Opens `run/index/`; RunError names what is missing, damaged, or from another run. With `verify`, the checksum of
    every file is compared.
    """
    folder = open_stage(run, "index", verify=verify).folder
    try:
        features, index = load_features(folder / "features"), load_index(folder)
        attributes = pq.read_table(folder / "item_attributes.parquet")
        context = json.loads((folder / CONTEXT).read_text(encoding="utf-8"))
        positives = load_histories(folder, "positives")
        bundle = Bundle(
            users=load_mapped(folder, "users"),
            items=load_mapped(folder, "items"),
            attributes=attributes,
            filters=Filters(attributes, index.vectors),
            features=features,
            events=load_histories(folder, "events"),
            positives=positives,
            negatives=load_histories(folder, "negatives"),
            user_arrays=load_user_arrays(features.features, folder),
            index=index,
            tower=_load_tower(folder, index),
            ranker=load_ranker(folder),
            as_of=context["as_of"],
            where=context["where"],
            include_seen=context["include_seen"],
            added=load_additions(folder),
            rules=_load_rules(folder, attributes, index),
            sources=_load_sources(folder, positives, len(index), as_of=context["as_of"]),
        )
    except (OSError, ValueError, KeyError, TypeError, DataError, RequestError) as error:
        raise RunError(f"the bundle {folder} cannot be read: {error}. {_rebuild_hint(folder)}") from error
    _check_parts(bundle, folder)
    return bundle


def _load_rules(folder: Path, attributes: pa.Table, index: Index) -> BundleRules | None:
    if not (folder / RERANK).exists():
        return None
    config = Rerank.model_validate_json((folder / RERANK).read_bytes())
    return BundleRules(config, RuleItems(rule_columns(config.rules, attributes), lambda rows: index.vectors[rows]))


def _load_sources(folder: Path, positives: Histories, items: int, *, as_of: int) -> CandidateSources | None:
    if not (folder / SOURCES).exists():
        return None
    config = Candidates.model_validate_json((folder / SOURCES).read_bytes())
    return CandidateSources(
        config, load_neighbors(folder), popular_items(config, positives, items, at=as_of), {}, items
    )


def _load_tower(folder: Path, index: Index) -> UserTower | HistoryModel | BlendedTower:
    parts: list[UserTower | HistoryModel] = [*load_user_towers(folder)]
    parts += load_fold_ins(folder, index.vectors[:, sum(part.dim for part in parts) :])
    if not parts:
        raise RunError(f"neither {USER_TOWER} nor {FOLD_IN} is in {folder}. {_rebuild_hint(folder)}")
    return parts[0] if len(parts) == 1 else BlendedTower(tuple(parts))


def _check_parts(bundle: Bundle, folder: Path) -> None:
    """Compares counts and widths of the parts: with a part of another run the service would return nonsense."""
    items, users = len(bundle.items), len(bundle.users)
    expected, _ = feature_names(bundle.features)
    inputs = {*bundle.tower.inputs, *(() if bundle.ranker is None else bundle.ranker.user.inputs)}
    parts = bundle.tower.parts if isinstance(bundle.tower, BlendedTower) else (bundle.tower,)
    has_graph = any(isinstance(part, UserTower) for part in parts)  # peers alone read the positive history alone
    ids = bundle.attributes.column("item_id").combine_chunks() if "item_id" in bundle.attributes.column_names else None
    faults = [
        (len(bundle.index) != items, f"there are {len(bundle.index)} item vectors for {items} items"),
        (
            bundle.tower.dim != bundle.index.dim,
            f"user vectors have {bundle.tower.dim} dimensions, item vectors {bundle.index.dim}",
        ),
        (
            not inputs <= set(expected) or (has_graph and inputs != set(expected)),
            f"the graphs read {sorted(inputs)}, but the features are {expected}",
        ),
        (
            bundle.ranker is not None and len(bundle.ranker.items) != items,
            f"ranker_items.npy does not have {items} items",
        ),
        (
            ids is None or not ids.equals(bundle.items.ids),
            "item_attributes.parquet and items.parquet list different items",
        ),
        *(
            (not _fits(getattr(bundle, name), users, items), f"{name}.*.npy have histories of other users or items")
            for name in HISTORIES
        ),
        (
            any(len(values) != users + 1 for values in bundle.user_arrays.attributes.values())
            or any(len(counters.first) != users + 1 for counters in bundle.user_arrays.counters.values())
            or any(len(clusters) != items + 1 for clusters in bundle.user_arrays.clusters.values()),
            "user_arrays/ or counters/ belong to other users or items",
        ),
    ]
    messages = [message for is_wrong, message in faults if is_wrong]
    if messages:
        raise RunError(f"the parts of {folder} do not belong together: {'; '.join(messages)}. {_rebuild_hint(folder)}")


def _fits(history: Histories, users: int, items: int) -> bool:
    is_whole = len(history.offsets) == users + 1 and history.offsets[-1] == len(history.item_rows)
    return bool(is_whole and history.item_rows.max(initial=0) < max(items, 1))


def _rebuild_hint(folder: Path) -> str:
    return f"Delete {folder} and run `twofold run` again."
