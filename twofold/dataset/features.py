"""Features fitted once on the training window and applied anywhere: one code path for training and serving.

Row 0 of every embedding table stands for *none*: padding, an unknown value and a cold item alike. It is the zero vector
and is not trained, because the training window has no example of it, unless `unknown_rate` makes some.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from pydantic import ValidationError

from twofold.dataset.column_encoders import (
    Scale,
    fit_scale,
    log_days,
    numbers,
    popularity,
    timestamps,
    value_lists,
)
from twofold.dataset.examples import BATCH_ROWS, Examples
from twofold.dataset.id_tables import IdTable
from twofold.dataset.vocabulary import Vocabulary, build_value_vocabulary, build_vocabulary
from twofold.digest import file_stem
from twofold.errors import RunError
from twofold.ragged import chunks
from twofold.recipe.features import (
    AgeFeature,
    BagFeature,
    CategoryFeature,
    ClusterFeature,
    CounterFeature,
    Features,
    HistoryFeature,
    IdFeature,
    ItemFeature,
    NumberFeature,
    PopularityFeature,
    ProfileFeature,
    SequenceFeature,
    TimeFeature,
    UserFeature,
    VectorFeature,
    feature_name,
    history_length,
)
from twofold.recipe.messages import problems_of


@dataclass(frozen=True)
class FeatureState:
    """Everything fitted: with the recipe's features, enough to turn a request into the inputs of a tower.

    The keys of vocabularies and scales are `TOWER.NAME`, because both towers may read a column of one name.
    """

    features: Features
    time_zone: str
    num_known_items: int
    vocabularies: Mapping[str, Vocabulary]
    scales: Mapping[str, Scale]
    own_ids: Mapping[Literal["user", "item"], int] = field(default_factory=dict)
    """Number of ids with a row of their own in tables; all of training, where it is not given."""

    def history_length(self, events: Literal["positives", "negatives"], *, sequences: bool = True) -> int:
        """Returns how many of these events the user tower reads, by default also in sequence features; 0 if none."""
        read = (each for each in self.features.user if sequences or not isinstance(each, SequenceFeature))
        return max((history_length(each, events) for each in read), default=0)

    def id_table(
        self, tower: Literal["user", "item"], feature: IdFeature | HistoryFeature | SequenceFeature
    ) -> IdTable:
        """Returns the table of ids that a feature of a tower reads."""
        if isinstance(feature, IdFeature) and tower == "user":
            limits, known = self.features.user_ids, len(self.vocabularies["user.id"])
        else:
            tower, limits, known = "item", self.features.item_ids, self.num_known_items
        if isinstance(feature, HistoryFeature | SequenceFeature):
            shared = (each for each in self.features.item if isinstance(each, IdFeature))
            feature = next(shared, feature) if feature.share_item_embedding else feature
        buckets = feature.num_buckets if isinstance(feature, IdFeature) else None
        return IdTable(known, self.own_ids.get(tower, known), limits.shared_rows if limits else 0, buckets)

    @property
    def reads_times(self) -> bool:
        """True if a sequence of the user tower reads when its events happened, so that it is of one request time."""
        return any(isinstance(each, SequenceFeature) and each.time_bias for each in self.features.user)

    def with_features(self, features: Features) -> "FeatureState":
        """Returns this state restricted to some of its features."""
        return replace(self, features=features)


def id_notes(state: FeatureState) -> list[str]:
    """Returns a sentence for each table of ids in which some have no row of their own, or share one with others."""
    notes: dict[str, None] = {}
    sides: tuple[tuple[Literal["user", "item"], tuple[UserFeature | ItemFeature, ...]], ...] = (
        ("item", state.features.item),
        ("user", state.features.user),
    )
    for tower, side in sides:
        for feature in side:
            if isinstance(feature, IdFeature | HistoryFeature | SequenceFeature):
                is_user = tower == "user" and isinstance(feature, IdFeature)
                limits = state.features.user_ids if is_user else state.features.item_ids
                sentences = state.id_table(tower, feature).sentences("users" if is_user else "items", limits)
                notes |= dict.fromkeys(sentences)
    return list(notes)


def single_from(state: FeatureState, tower: Literal["user", "item"], feature: UserFeature | ItemFeature) -> int | None:
    """Returns the first row of a feature's embedding table that is fitted on one item (or user) alone: the id, and
    values that no other has; such rows are the last of a table. `None` means the feature reads no such table.
    """
    match feature:
        case IdFeature():
            return 1
        case CategoryFeature() | BagFeature():
            return 1 + state.vocabularies[f"{tower}.{feature_name(feature)}"].num_known
        case _:
            return None


def fit_features(
    features: Features, *, items: pa.Table, users: pa.Table, train: Examples, num_known_items: int, time_zone: str
) -> FeatureState:
    """Fits vocabularies and scales on the items, users and examples of the training window.

    `items` is in the order of the item rows; `users` are only those of the training window.
    """
    vocabularies: dict[str, Vocabulary] = {}
    scales: dict[str, Scale] = {}
    known_items = items.slice(0, num_known_items)
    towers: tuple[tuple[str, pa.Table, tuple[UserFeature | ItemFeature, ...]], ...] = (
        ("user", users, features.user),
        ("item", known_items, features.item),
    )
    for tower, table, side in towers:
        for feature in side:
            key = f"{tower}.{feature_name(feature)}"
            match feature:
                case CategoryFeature(column=column):
                    vocabularies[key] = build_value_vocabulary(table[column])
                case BagFeature(column=column, sep=sep):
                    vocabularies[key] = build_value_vocabulary(value_lists(table[column], sep))
                case NumberFeature(column=column, scale=scale):
                    scales[key] = fit_scale([numbers(table[column], is_log=scale == "log", name=column)])
                case PopularityFeature():
                    scales[key] = fit_scale([popularity(table)])
                case AgeFeature():
                    scales[key] = fit_scale(_ages(timestamps(items["uploaded_at"]), train))
                case CounterFeature():
                    values = train.counter_values[feature_name(feature)]
                    scales[key] = fit_scale(values[block] for block in chunks(len(values), BATCH_ROWS))
                case IdFeature() if tower == "user":
                    vocabularies[key] = build_vocabulary(table["user_id"], table["user_id"])
                case IdFeature() | VectorFeature() | HistoryFeature() | SequenceFeature():
                    pass
                case ClusterFeature() | TimeFeature() | ProfileFeature():
                    pass
                case _:
                    assert_never(feature)
    return FeatureState(features, time_zone, num_known_items, vocabularies, scales)


def _ages(uploaded_at: Int64[np.ndarray, "items"], train: Examples) -> Iterator[Float32[np.ndarray, "_"]]:
    for block in chunks(len(train), BATCH_ROWS):
        yield log_days(uploaded_at[train.item_rows[block]], train.at[block])


def save_features(state: FeatureState, folder: Path) -> None:
    """Writes `features.json` and one Parquet file per vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, vocabulary in state.vocabularies.items():
        vocabulary.save(_vocabulary_file(folder, name))
    saved = {
        "features": state.features.model_dump(mode="json"),
        "time_zone": state.time_zone,
        "num_known_items": state.num_known_items,
        "own_ids": dict(state.own_ids),
        "vocabularies": sorted(state.vocabularies),
        "scales": {name: asdict(scale) for name, scale in sorted(state.scales.items())},
    }
    (folder / "features.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def load_features(folder: Path) -> FeatureState:
    """Reads the files that `save_features` wrote; RunError if another version of twofold wrote other fields."""
    path = folder / "features.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    try:
        return FeatureState(
            Features.model_validate(saved["features"]),
            saved["time_zone"],
            saved["num_known_items"],
            {name: Vocabulary.load(_vocabulary_file(folder, name)) for name in saved["vocabularies"]},
            {name: Scale(scale["mean"], scale["std"]) for name, scale in saved["scales"].items()},
            saved["own_ids"],
        )
    except KeyError as error:
        raise _of_another_version(path, f"it has no {error.args[0]}") from error
    except ValidationError as error:
        raise _of_another_version(path, "; ".join(map(str, problems_of(error, Features)))) from error


def _of_another_version(path: Path, difference: str) -> RunError:
    stage = path.parents[1]
    return RunError(
        f"{path} was written by another version of twofold: {difference}. Delete {stage} and run `twofold run` with "
        f"its recipe again: it makes {stage.name}/ anew."
    )


def _vocabulary_file(folder: Path, key: str) -> Path:
    tower, _, name = key.partition(".")
    return folder / f"vocabulary.{tower}.{file_stem(name)}.parquet"


def feature_names(state: FeatureState) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the user tower's and the item tower's inputs, in the recipe's order."""
    user, item = (
        tuple(feature_name(feature) for feature in side) for side in (state.features.user, state.features.item)
    )
    timed = (f"{feature_name(f)}.ages" for f in state.features.user if isinstance(f, SequenceFeature) and f.time_bias)
    return (*user, *timed), item
