"""What the towers read, fitted once on the training window and applied anywhere: one code path for training and
serving.

Every trained table has row 0 for *none*: padding, an unknown value and a cold item alike. It is the zero vector and
stays it, because nothing in the training window could teach it better.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64

from twofold.dataset.vocabulary import Vocabulary, build_vocabulary
from twofold.recipe.features import (
    AgeFeature,
    BagFeature,
    CategoryFeature,
    Features,
    HistoryFeature,
    IdFeature,
    NumberFeature,
    TimeFeature,
    feature_name,
)

Inputs = Mapping[str, np.ndarray]
"""One array a feature, by `feature_name`; the first dimension is the batch."""

DAY_MS = 86_400_000
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a number on the training window."""

    mean: float
    std: float

    def apply(self, values: Float32[np.ndarray, "batch"]) -> Float32[np.ndarray, "batch"]:
        """Standardised; NaN (no value) becomes the mean, which is 0."""
        standardised = (values - np.float32(self.mean)) / np.float32(self.std)
        return np.asarray(np.nan_to_num(standardised))


@dataclass(frozen=True)
class FeatureState:
    """Everything fitted: enough, with the recipe's features, to turn a request into a tower's inputs."""

    features: Features
    utc_offset_h: int
    num_known_items: int
    vocabularies: Mapping[str, Vocabulary]
    scales: Mapping[str, Scale]

    def table_rows(self, name: str) -> int:
        """How many rows the trained table of a feature needs, row 0 included."""
        fixed = {"hour": 24, "weekday": 7, "id": self.num_known_items}
        fixed["positives"] = fixed["negatives"] = self.num_known_items
        return 1 + (fixed[name] if name in fixed else len(self.vocabularies[name]))


@dataclass(frozen=True)
class ItemArrays:
    """The features of all catalogue items that do not depend on the moment, one line an item row."""

    inputs: Inputs
    uploaded_at: Int64[np.ndarray, "items"] | None

    def __len__(self) -> int:
        """Number of items of the catalogue."""
        return len(next(iter(self.inputs.values())))


def fit_features(
    features: Features,
    items: pa.Table,
    *,
    num_known_items: int,
    train_item_rows: Int64[np.ndarray, "rows"],
    train_at: Int64[np.ndarray, "rows"],
    utc_offset_h: int,
) -> FeatureState:
    """Fits vocabularies and scales on the training window: its items, and for the age its rows. `items` is in row
    order.
    """
    vocabularies: dict[str, Vocabulary] = {}
    scales: dict[str, Scale] = {}
    known = items.slice(0, num_known_items)
    for feature in features.item:
        match feature:
            case CategoryFeature(column=column):
                vocabularies[column] = build_vocabulary(known[column], known[column])
            case BagFeature(column=column):
                values = pc.list_flatten(known[column].combine_chunks())
                vocabularies[column] = build_vocabulary(values, values)
            case NumberFeature(column=column):
                scales[column] = _fit_scale(_number(feature, known))
            case AgeFeature():
                scales["age"] = _fit_scale(_log_days(_int64(items["uploaded_at"])[train_item_rows], train_at))
            case IdFeature():
                pass
            case _:
                assert_never(feature)
    return FeatureState(features, utc_offset_h, num_known_items, vocabularies, scales)


def item_arrays(state: FeatureState, items: pa.Table) -> ItemArrays:
    """The catalogue as arrays; `items` is in row order."""
    inputs: dict[str, np.ndarray] = {}
    uploaded_at = None
    for feature in state.features.item:
        match feature:
            case IdFeature():
                inputs["id"] = id_rows(np.arange(len(items)), state.num_known_items)
            case CategoryFeature(column=column):
                inputs[column] = state.vocabularies[column].rows_of(items[column]) + 1
            case BagFeature(column=column):
                inputs[column] = _bag_rows(items[column].combine_chunks(), state.vocabularies[column])
            case NumberFeature(column=column):
                inputs[column] = state.scales[column].apply(_number(feature, items))
            case AgeFeature():
                uploaded_at = _int64(items["uploaded_at"])
            case _:
                assert_never(feature)
    return ItemArrays(inputs, uploaded_at)


def item_inputs(
    state: FeatureState, items: ItemArrays, item_rows: Int64[np.ndarray, "batch"], at: Int64[np.ndarray, "batch"]
) -> Inputs:
    """What the item tower reads of these items at these moments (UTC milliseconds)."""
    inputs = {name: values[item_rows] for name, values in items.inputs.items()}
    if items.uploaded_at is not None:
        inputs["age"] = state.scales["age"].apply(_log_days(items.uploaded_at[item_rows], at))
    return inputs


def user_inputs(
    state: FeatureState,
    *,
    positives: Int64[np.ndarray, "batch length"],
    negatives: Int64[np.ndarray, "batch length2"],
    at: Int64[np.ndarray, "batch"],
    at_is_known: Bool[np.ndarray, "batch"] | None = None,
) -> Inputs:
    """What the user tower reads of a request: histories as item rows (-1 = none), and the moment (UTC milliseconds).

    Histories may be longer or shorter than the recipe's `last`: the newest count, and padding stands on the left.
    Where `at_is_known` is false (estimated times), hour and weekday are *none*.
    """
    inputs: dict[str, np.ndarray] = {}
    for feature in state.features.user:
        match feature:
            case HistoryFeature(of=of, last=last):
                history = positives if of == "positives" else negatives
                inputs[of] = id_rows(_right_aligned(history, last), state.num_known_items)
            case TimeFeature(of=of):
                local = at + state.utc_offset_h * HOUR_MS
                # 1 January 1970 was a Thursday; Monday is 0, as in Python.
                value = local // HOUR_MS % 24 if of == "hour" else (local // DAY_MS + 3) % 7
                inputs[of] = value + 1 if at_is_known is None else np.where(at_is_known, value + 1, 0)
            case _:
                assert_never(feature)
    return inputs


def id_rows(item_rows: Int64[np.ndarray, "*shape"], num_known_items: int) -> Int64[np.ndarray, "*shape"]:
    """Rows of the id tables: 0 for none and for cold items, else item row + 1.

    >>> id_rows(np.array([-1, 0, 4, 5]), num_known_items=5).tolist()
    [0, 1, 5, 0]
    """
    return np.where(item_rows < num_known_items, item_rows + 1, 0)


def save_features(state: FeatureState, folder: Path) -> None:
    """Writes `features.json` and a Parquet file a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, vocabulary in state.vocabularies.items():
        vocabulary.save(folder / f"vocabulary.{name}.parquet")
    saved = {
        "features": state.features.model_dump(mode="json"),
        "utc_offset_h": state.utc_offset_h,
        "num_known_items": state.num_known_items,
        "vocabularies": sorted(state.vocabularies),
        "scales": {name: asdict(scale) for name, scale in sorted(state.scales.items())},
    }
    (folder / "features.json").write_text(json.dumps(saved, indent=1) + "\n")


def load_features(folder: Path) -> FeatureState:
    """Reads what `save_features` wrote."""
    saved = json.loads((folder / "features.json").read_text())
    return FeatureState(
        Features.model_validate(saved["features"]),
        saved["utc_offset_h"],
        saved["num_known_items"],
        {name: Vocabulary.load(folder / f"vocabulary.{name}.parquet") for name in saved["vocabularies"]},
        {name: Scale(scale["mean"], scale["std"]) for name, scale in saved["scales"].items()},
    )


def feature_names(state: FeatureState) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the user tower's and the item tower's inputs, in the recipe's order."""
    user, item = (
        tuple(feature_name(feature) for feature in side) for side in (state.features.user, state.features.item)
    )
    return user, item


def _number(feature: NumberFeature, items: pa.Table) -> Float32[np.ndarray, "items"]:
    values = np.asarray(items[feature.column].cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False))
    if feature.scale == "log":
        values = np.log1p(np.maximum(values, 0))
    return values.astype(np.float32)


def _log_days(uploaded_at: Int64[np.ndarray, "rows"], at: Int64[np.ndarray, "rows"]) -> Float32[np.ndarray, "rows"]:
    days = np.maximum((at - uploaded_at) / DAY_MS, 0)  # an item seen before its upload date is new, not negative
    return np.where(uploaded_at == _NEVER, np.nan, np.log1p(days)).astype(np.float32)


_NEVER = np.int64(np.iinfo(np.int64).min)


def _int64(column: pa.ChunkedArray) -> Int64[np.ndarray, "items"]:
    filled: np.ndarray = pc.fill_null(column, int(_NEVER)).combine_chunks().to_numpy(zero_copy_only=False)
    return filled


def _fit_scale(values: Float32[np.ndarray, "rows"]) -> Scale:
    values = values[~np.isnan(values)].astype(np.float64)
    if len(values) == 0:
        return Scale(0.0, 1.0)
    return Scale(float(values.mean()), float(values.std()) or 1.0)


def _bag_rows(lists: pa.Array, vocabulary: Vocabulary) -> Int64[np.ndarray, "items length"]:
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    width = max(int(lengths.max(initial=0)), 1)
    rows = np.zeros((len(lists), width), np.int64)
    line = np.repeat(np.arange(len(lists)), lengths)
    place = np.arange(len(line)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows[line, place] = vocabulary.rows_of(pc.list_flatten(lists)) + 1
    return rows


def _right_aligned(history: Int64[np.ndarray, "batch length"], last: int) -> Int64[np.ndarray, "batch last"]:
    if history.shape[1] >= last:
        return history[:, history.shape[1] - last :]
    return np.pad(history, ((0, 0), (last - history.shape[1], 0)), constant_values=-1)
