"""Columns of any type → few values with a name: what a cluster is named by, and a map coloured by."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

_BANDS: Final = 5
_MOST_NUMBERS: Final = 30  # a number of fewer distinct values is a category


@dataclass(frozen=True)
class Facet:
    """One attribute: line `lines[i]` has the value `values[codes[i]]`; a line has none, one, or several (tags)."""

    name: str
    lines: Int64[np.ndarray, "pairs"]
    codes: Int64[np.ndarray, "pairs"]
    values: tuple[str, ...]
    is_measure: bool = False
    """Values are bands of a number, the lowest first."""

    def first(self, num_lines: int, *, most: int) -> tuple[str, ...]:
        """The first value of each line, bands numbered; those beyond the `most` commonest are "other", none is "–"."""
        place = np.full(num_lines, -1, np.int64)
        place[self.lines[::-1]] = self.codes[::-1]
        counts = np.bincount(place[place >= 0], minlength=len(self.values))
        kept = np.argsort(-counts, kind="stable")[:most].tolist()
        said = {code: f"{code + 1}: {self.values[code]}" if self.is_measure else self.values[code] for code in kept}
        return tuple("–" if code < 0 else said.get(code, "other") for code in place.tolist())


def facets_of(table: pa.Table) -> tuple[Facet, ...]:
    """A facet a column: lists by their elements, many numbers by fifths, all else by its value as text.

    A column `…_id` holds names, even where they are numbers; `…_at` holds moments, shown as days.
    """
    facets = [_facet(name, table[name].combine_chunks()) for name in table.column_names]
    return tuple(facet for facet in facets if facet is not None and facet.values)


def _facet(name: str, column: pa.Array) -> Facet | None:
    lines = np.arange(len(column))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lines = np.asarray(pc.list_parent_indices(column)).astype(np.int64)
        column = pc.list_flatten(column)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        return None  # vectors, images: nothing to name a thing by
    known = np.asarray(column.is_valid())
    if pa.types.is_floating(column.type):
        known &= np.isfinite(np.asarray(column.fill_null(np.nan)))
    lines, column = lines[known].astype(np.int64), column.filter(pa.array(known))
    if _is_measure(name, column):
        codes, values = _bands(np.asarray(column.cast("float64")), in_days=_is_moment(name, column))
        return Facet(name, lines, codes, values, is_measure=True)
    if _is_moment(name, column):
        column = column.cast(pa.timestamp("ms")).cast(pa.date32())
    coded = column.cast(pa.string()).dictionary_encode()
    return Facet(name, lines, np.asarray(coded.indices).astype(np.int64), tuple(coded.dictionary.to_pylist()))


def _is_moment(name: str, column: pa.Array) -> bool:
    return name.endswith("_at") and bool(pa.types.is_integer(column.type))


def _is_measure(name: str, column: pa.Array) -> bool:
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return is_number and not name.endswith("_id") and len(pc.unique(column)) > _MOST_NUMBERS


def _bands(numbers: np.ndarray, *, in_days: bool) -> tuple[Int64[np.ndarray, "lines"], tuple[str, ...]]:
    """Fifths, the lowest first."""
    inner = np.unique(np.quantile(numbers, np.linspace(0, 1, _BANDS + 1)[1:-1]))
    codes = np.searchsorted(inner, numbers, side="right").astype(np.int64)
    edges = [numbers.min(), *inner, numbers.max()]
    said = [str(np.datetime64(int(edge), "ms").astype("datetime64[D]")) if in_days else f"{edge:.4g}" for edge in edges]
    return codes, tuple(f"{low} to {high}" for low, high in pairwise(said))
