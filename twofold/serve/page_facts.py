"""Facts of a bundle for the live page: statistics of the columns, and the map of the items."""

import json
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twofold.recipe.rerank import AGE
from twofold.serve.bundle import PAGE
from twofold.serve.live_bundle import LiveBundle
from twofold.serve.page_schemas import ItemColumn, ItemMap, PageFacts, ShownColumns, ValueCount

_MAP: Final = Path("explain") / "map.parquet"  # beside the bundle: it is drawn after it
_STEPS: Final = 41
_MOST_VALUES: Final = 12
_RARE: Final = 0.01  # share of the items below which a value is not offered
_MOST_DISTINCT: Final = 200  # of texts; with more, the values are titles or names
_MOST_COLUMNS: Final = 40


def page_facts(live_bundle: LiveBundle, beside: str | None) -> PageFacts:
    """Returns the columns of the items with their statistics."""
    attributes = live_bundle.bundle.attributes
    names = [name for name in attributes.column_names if name != "item_id"]
    path = live_bundle.folder / "index" / PAGE
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    shown = msgspec.convert({name: column for name, column in written.items() if column in names}, ShownColumns)
    columns = [_column(name, attributes[name], has_age=AGE in names) for name in names[:_MOST_COLUMNS]]
    return PageFacts(shown, columns, has_map=(live_bundle.folder / _MAP).exists(), beside=beside)


def _column(name: str, values: pa.ChunkedArray, *, has_age: bool) -> ItemColumn:
    if name.lower().endswith("id") or (name == "uploaded_at" and has_age):
        return ItemColumn(name, "other", [], [], 0)
    if is_list := pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        items, values = len(values), pc.list_flatten(values)
    else:
        items = len(values)
    if not is_list and (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        numbers = values.drop_null().to_numpy()
        finite = numbers[np.isfinite(numbers)]
        steps = np.unique(np.quantile(finite, np.linspace(0, 1, _STEPS), method="nearest")) if len(finite) else finite
        return ItemColumn(name, "number" if len(steps) > 1 else "other", steps.tolist(), [], len(np.unique(finite)))
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_boolean(values.type):
        counts = sorted(pc.value_counts(values.drop_null()).to_pylist(), key=lambda each: -each["counts"])
        shown = [each for each in counts if each["counts"] >= _RARE * items][:_MOST_VALUES]
        found = [ValueCount(each["values"], each["counts"]) for each in shown]
        is_short = 1 < len(counts) <= _MOST_DISTINCT
        kind: Literal["lists", "values"] = "lists" if is_list else "values"
        return ItemColumn(name, kind if is_short else "other", [], found if is_short else [], len(counts))
    return ItemColumn(name, "other", [], [], 0)


def item_map(live_bundle: LiveBundle) -> ItemMap | None:
    """Returns the map of the items that the stage explain drew; `None` means that there is none."""
    path = live_bundle.folder / _MAP
    if not path.exists():
        return None
    table = pq.read_table(path, columns=["kind", "id", "x", "y", "cluster"])
    table = table.filter(pc.equal(table["kind"], "item"))
    clusters = table["cluster"].combine_chunks().dictionary_encode()
    x, y = (np.round(table[axis].to_numpy().astype(float), 3).tolist() for axis in "xy")
    return ItemMap(table["id"].to_pylist(), x, y, clusters.indices.to_pylist(), clusters.dictionary.to_pylist())
