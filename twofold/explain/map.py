"""A map of the items in two dimensions, with named clusters. The map illustrates; the probes measure.

Only items are laid out. User vectors lie in a cone of their own and would be an island on any such map, so a user is
placed among the items that the user's vector scores highest, which is where the recommendations come from.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64
from sklearn.cluster import KMeans
from sklearn.manifold import trustworthiness

from twofold.explain.folding import nearest_by_cosine
from twofold.ragged import chunks
from twofold.render.numbers import format_significant
from twofold.topk import top_k

MAX_ITEMS: Final = 8000  # a quarter of a minute on one core, and a page that a browser draws at once
MAX_USERS: Final = 2000
NEIGHBORS: Final = 10
_PERPLEXITY: Final = 15
_WIDTH: Final = 3 * _PERPLEXITY  # neighbors that t-SNE reads (van der Maaten, JMLR 2014, section 4.1)
_FEW_ITEMS: Final = 100  # fewer items than this are laid out by their principal components
_GRID_ITEMS: Final = 2000  # from here on interpolation on a grid is faster than a tree
_MAX_CLUSTERS: Final = 20
_TRUST_SAMPLE: Final = 2000  # items whose neighbors on the map are compared with the real ones
_CHUNK_SCORES: Final = 2**21  # scores of users and items in memory at once
_MIN_LIFT: Final = 1.3  # a value names a cluster if it is this many times as frequent there; not measured
_BANDS: Final = 5
_BAND_NAMES: Final = ("lowest", "low", "middle", "high", "highest")
_TIME_NAMES: Final = ("earliest", "early", "middle", "late", "latest")
_MAX_CATEGORIES: Final = 30  # a number column with more distinct values is cut into bands


# --- attributes as named values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facet:
    """One attribute as pairs of an item and a value: item `items[i]` has `values[codes[i]]`.

    An item has no value, one, or several (tags).
    """

    name: str
    items: Int64[np.ndarray, "pairs"]
    codes: Int64[np.ndarray, "pairs"]
    values: tuple[str, ...]
    is_band: bool = False
    """True if the values are bands of a number, lowest first."""

    @property
    def label(self) -> str:
        """Name of the column in words.

        >>> nothing = np.zeros(0, np.int64)
        >>> [Facet(name, nothing, nothing, ()).label for name in ("length_s", "uploaded_at", "upload_type")]
        ['length', 'uploaded', 'upload type']
        """
        return self.name.removesuffix("_s").removesuffix("_at").removesuffix("_id").replace("_", " ") or self.name

    def phrase(self, code: int) -> str:
        """Returns a value with the name of its column: "tags 20"; of a number the band in words: "highest length"."""
        if not self.is_band:
            return f"{self.label} {self.values[code]}"
        names = _TIME_NAMES if self.name.endswith("_at") else _BAND_NAMES
        at = round(code * (len(names) - 1) / max(len(self.values) - 1, 1))
        return f"{names[at]} {self.label}"

    def first(self, num_items: int, *, most: int) -> tuple[str, ...]:
        """Returns the first value of each item, with bands numbered: "other" for all but the `most` frequent values,
        "–" for none.
        """
        code_of = np.full(num_items, -1, np.int64)
        code_of[self.items[::-1]] = self.codes[::-1]
        counts = np.bincount(code_of[code_of >= 0], minlength=len(self.values))
        kept = np.argsort(-counts, kind="stable")[:most].tolist()
        labels = {code: f"{code + 1}: {self.values[code]}" if self.is_band else self.values[code] for code in kept}
        return tuple("–" if code < 0 else labels.get(code, "other") for code in code_of.tolist())


def facets_of(table: pa.Table) -> tuple[Facet, ...]:
    """Returns a facet per column: lists by their elements, numbers of many values by fifths, all else as text.

    A column `…_id` holds names, even where they are numbers; a column `…_at` holds timestamps, shown as days.
    """
    facets = [_facet(name, table[name].combine_chunks()) for name in table.column_names]
    return tuple(facet for facet in facets if facet is not None and facet.values)


def _facet(name: str, column: pa.Array) -> Facet | None:
    items = np.arange(len(column))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        items = np.asarray(pc.list_parent_indices(column)).astype(np.int64)
        column = pc.list_flatten(column)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        return None  # vectors and images have no values to name
    known = np.asarray(column.is_valid())
    if pa.types.is_floating(column.type):
        known &= np.isfinite(np.asarray(column.fill_null(np.nan)))
    items, column = items[known].astype(np.int64), column.filter(pa.array(known))
    is_whole = pa.types.is_integer(column.type)
    is_time = name.endswith("_at") and is_whole
    is_number = (is_whole or pa.types.is_floating(column.type)) and not name.endswith("_id")
    if is_number and len(pc.unique(column)) > _MAX_CATEGORIES:
        numbers = np.asarray(column.cast("float64", safe=False))  # 64-bit keys are not exact, nor need they be
        codes, values = _bands(numbers, in_days=is_time)
        return Facet(name, items, codes, values, is_band=True)
    if is_time:
        column = column.cast(pa.timestamp("ms")).cast(pa.date32())
    coded = column.cast(pa.string()).dictionary_encode()
    return Facet(name, items, np.asarray(coded.indices).astype(np.int64), tuple(coded.dictionary.to_pylist()))


def _bands(numbers: np.ndarray, *, in_days: bool) -> tuple[Int64[np.ndarray, "_"], tuple[str, ...]]:
    """Returns the fifth that each number is in, and the names of the fifths, lowest first."""
    inner = np.unique(np.quantile(numbers, np.linspace(0, 1, _BANDS + 1)[1:-1]))
    codes = np.searchsorted(inner, numbers, side="right").astype(np.int64)
    edges = [numbers.min(), *inner, numbers.max()]
    texts = [
        str(np.datetime64(int(edge), "ms").astype("datetime64[D]")) if in_days else format_significant(float(edge))
        for edge in edges
    ]
    return codes, tuple(f"{low} to {high}" for low, high in pairwise(texts))


# --- the map ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Items that k-means put together, with typical values: (facet, value, share, times the share of all items)."""

    name: str
    size: int
    traits: tuple[tuple[str, str, float, float], ...]


@dataclass(frozen=True)
class ItemMap:
    """Points of a map: items first, then users."""

    ids: tuple[str, ...]
    num_items: int
    xy: Float32[np.ndarray, "_ 2"]
    nearest: Int64[np.ndarray, "_ k"]
    """Ten nearest items of an item by cosine, or the items that a user's vector scores highest; -1 fills up."""
    distances: Float32[np.ndarray, "_ k"]
    """Cosine distances of `nearest`; NaN for users."""
    cluster: Int64[np.ndarray, "_"]
    clusters: tuple[Cluster, ...]
    facets: tuple[Facet, ...]
    attributes: pa.Table
    """One row per item; the first column is the id."""
    trustworthiness: float | None
    """Venna and Kaski, ICANN 2001: 1 where all neighbors on the map are real; `None` means too few items to measure."""
    summary: str


@dataclass(frozen=True)
class MapUsers:
    """Users to place on a map: their ids, and vectors whose inner products with the rows of `items` are scores."""

    ids: pa.Array
    queries: Float32[np.ndarray, "users _"]
    items: Float32[np.ndarray, "items _"]


def draw_map(
    vectors: Float32[np.ndarray, "items dim"], attributes: pa.Table, *, users: MapUsers, seed: int = 0
) -> ItemMap:
    """Returns a map of at most 8,000 items and 2,000 users, drawn by the seed; items with a zero vector are left out.

    `attributes` has one row per item; its first column is the id.
    """
    rng = np.random.default_rng(seed)
    lengths = np.linalg.norm(vectors, axis=1)
    items = np.sort(rng.permutation(np.flatnonzero(lengths > 0))[:MAX_ITEMS])
    drawn = np.sort(rng.permutation(len(users.ids))[: MAX_USERS if len(items) else 0])
    unit = np.ascontiguousarray(vectors[items] / lengths[items, None])
    nearest, distances = nearest_by_cosine(unit, max(min(_WIDTH, len(unit) - 1), 0))
    positions = _lay_out(unit, nearest, distances, seed=seed)
    table = attributes.take(pa.array(items))
    facets = facets_of(table.drop_columns([attributes.column_names[0]]))
    group = _find_clusters(unit, seed=seed)
    best = _best_items(users, drawn, items)
    users_xy = np.median(positions[best], axis=1).astype(np.float32) if len(drawn) else np.zeros((0, 2), np.float32)
    item_ids, user_ids = table[0].cast(pa.string()).combine_chunks(), users.ids.take(pa.array(drawn)).cast("string")
    width = max(min(NEIGHBORS, len(items) - 1), best.shape[1], 0)
    no_distances = np.full((len(drawn), width), np.nan, np.float32)
    return ItemMap(
        ids=tuple(pa.chunked_array([item_ids, user_ids]).to_pylist()),
        num_items=len(items),
        xy=np.concatenate([positions, users_xy]),
        nearest=np.concatenate([_to_width(nearest, width, -1), _to_width(best, width, -1)]),
        distances=np.concatenate([_to_width(distances, width, np.nan), no_distances]),
        cluster=np.concatenate([group, group[best[:, 0]] if len(drawn) else np.zeros(0, np.int64)]),
        clusters=tuple(name_cluster(group == each, facets, each) for each in range(int(group.max(initial=-1)) + 1)),
        facets=facets,
        attributes=table,
        trustworthiness=_trustworthiness(unit, positions, rng),
        summary=f"{len(items):,} of {len(vectors):,} items and {len(drawn):,} of {len(users.ids):,} users, "
        f"drawn by seed {seed}",
    )


def _lay_out(
    unit: Float32[np.ndarray, "items dim"],
    nearest: Int64[np.ndarray, "items k"],
    distances: Float32[np.ndarray, "items k"],
    *,
    seed: int,
) -> Float32[np.ndarray, "items 2"]:
    """Runs t-SNE from the principal components (Kobak and Berens, Nature Communications 2019); returns these for few
    items.
    """
    start = _principal_components(unit)
    if len(unit) < _FEW_ITEMS:
        return start.astype(np.float32)
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    known = PrecomputedNeighbors(nearest, np.sqrt(2 * distances.astype(np.float64)))  # Euclidean, of unit vectors
    affinities = PerplexityBasedNN(perplexity=_PERPLEXITY, knn_index=known, n_jobs=1)
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    method = "bh" if len(unit) < _GRID_ITEMS else "fft"
    embedding = TSNEEmbedding(start, affinities, negative_gradient_method=method, n_jobs=1, random_state=seed)
    embedding = embedding.optimize(100, exaggeration=12, momentum=0.5).optimize(300, momentum=0.8)
    return np.asarray(embedding, np.float32)


def _principal_components(unit: Float32[np.ndarray, "items dim"]) -> np.ndarray:
    """Returns the first two principal components, with signs fixed so that the largest loading is positive."""
    if len(unit) == 0:
        return np.zeros((0, 2))
    centred = unit.astype(np.float64) - unit.mean(axis=0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred).eigenvectors
    axes = axes[:, ::-1][:, :2]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    positions: np.ndarray = centred @ (axes * signs)
    return _to_width(positions, 2, 0.0)


def _find_clusters(unit: Float32[np.ndarray, "items dim"], *, seed: int) -> Int64[np.ndarray, "items"]:
    """Runs k-means on the vectors, not on the map: items that the map tears apart stay together; largest first."""
    if len(np.unique(unit, axis=0)) < 2:
        return np.zeros(len(unit), np.int64)
    count = int(np.clip(round(np.sqrt(len(unit)) / 4), 2, _MAX_CLUSTERS))
    group = KMeans(count, n_init=3, random_state=seed).fit_predict(unit)
    order = np.argsort(-np.bincount(group, minlength=count), kind="stable")
    return np.argsort(order)[group].astype(np.int64)


def _best_items(
    users: MapUsers, drawn: Int64[np.ndarray, "users"], items: Int64[np.ndarray, "_"]
) -> Int64[np.ndarray, "users k"]:
    """Returns the items of the map that each drawn user's vector scores highest, as positions in `items`."""
    if len(drawn) == 0:
        return np.zeros((0, 0), np.int64)
    table, width = np.ascontiguousarray(users.items[items]), min(NEIGHBORS, len(items))
    parts = chunks(len(drawn), max(1, _CHUNK_SCORES // len(items)))
    return np.concatenate([top_k(users.queries[drawn[part]] @ table.T, width).item_rows for part in parts])


def _trustworthiness(
    unit: Float32[np.ndarray, "items dim"], positions: Float32[np.ndarray, "items 2"], rng: np.random.Generator
) -> float | None:
    chosen = rng.permutation(len(unit))[:_TRUST_SAMPLE]
    if len(chosen) <= 2 * NEIGHBORS:
        return None
    return float(trustworthiness(unit[chosen], positions[chosen], n_neighbors=NEIGHBORS))


def name_cluster(inside: Bool[np.ndarray, "items"], facets: tuple[Facet, ...], number: int) -> Cluster:
    """Names a cluster by values that are frequent in it and rarer elsewhere: largest share × log of the lift first."""
    size = int(inside.sum())
    traits = []
    for facet in facets:
        total = np.bincount(facet.codes, minlength=len(facet.values))
        own = np.bincount(facet.codes[inside[facet.items]], minlength=len(facet.values))
        lift = own / max(size, 1) / np.maximum(total / max(len(inside), 1), 1e-12)
        weight = np.where((lift >= _MIN_LIFT) & (own >= max(3, size / 10)), own * np.log(np.maximum(lift, 1)), 0)
        best = int(weight.argmax()) if len(weight) else 0
        if weight.size and weight[best] > 0:
            trait = (facet.label, facet.values[best], float(own[best] / size), float(lift[best]))
            traits.append((float(weight[best]), trait, facet.phrase(best)))
    chosen = sorted(traits, key=lambda each: -each[0])[:3]
    text = ", ".join(phrase for _, _, phrase in chosen[:2]) or "no typical value"
    return Cluster(f"{number + 1:02d} · {text}", size, tuple(trait for _, trait, _ in chosen))


def points_table(item_map: ItemMap) -> pa.Table:
    """Returns one row per point, as Embedding Atlas opens it: --x x --y y --neighbors neighbors (row numbers)."""
    users = len(item_map.ids) - item_map.num_items
    is_real = item_map.nearest >= 0
    offsets = np.concatenate([[0], np.cumsum(is_real.sum(axis=1))]).astype(np.int32)
    near = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[is_real], from_pandas=True))
        for values in (item_map.nearest, item_map.distances)
    ]
    columns = {
        "kind": pa.array(["item"] * item_map.num_items + ["user"] * users),
        "id": pa.array(item_map.ids, pa.string()),
        "x": pa.array(item_map.xy[:, 0]),
        "y": pa.array(item_map.xy[:, 1]),
        "cluster": pa.array([item_map.clusters[each].name for each in item_map.cluster], pa.string()),
        "neighbors": pa.StructArray.from_arrays(near, names=["ids", "distances"]),
    }
    for field in list(item_map.attributes.schema)[1:]:
        name = field.name if field.name not in columns else f"{field.name} of the item"
        values = item_map.attributes[field.name].combine_chunks()
        columns[name] = pa.concat_arrays([values, pa.nulls(users, field.type)])
    return pa.table(columns)


def _to_width(values: np.ndarray, width: int, fill: float | int) -> np.ndarray:
    """Returns the first `width` columns, filled up where there are fewer."""
    filled: np.ndarray = np.full((len(values), width), fill, values.dtype)
    filled[:, : values.shape[1]] = values[:, :width]
    return filled
