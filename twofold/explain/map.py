"""Vectors → a map in two dimensions, with clusters that have names. It illustrates; the probes decide.

Items alone are laid out: users lie in a cone of their own, and would be an island of any such map. A user stands amid
the items it scores highest, which is where its answers come from.
"""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64
from sklearn.cluster import KMeans
from sklearn.manifold import trustworthiness

from twofold.explain.facets import Facet, facets_of
from twofold.explain.folding import nearest_by_cosine
from twofold.ragged import chunks
from twofold.topk import top_k

MOST_ITEMS: Final = 8000  # a quarter of a minute on one core, and a page that a browser draws at once
MOST_USERS: Final = 2000
NEIGHBOURS: Final = 10
_PERPLEXITY: Final = 15
_WIDTH: Final = 3 * _PERPLEXITY  # neighbours that t-SNE reads (van der Maaten, JMLR 2014, section 4.1)
_FEW: Final = 100  # fewer items than this are laid out by their principal components
_MANY: Final = 2000  # from here on interpolation on a grid is faster than a tree
_MOST_CLUSTERS: Final = 20
_TRUSTED: Final = 2000  # items whose neighbours on the map are compared
_CELLS: Final = 2**21
_LIFT: Final = 1.3  # a value that names a cluster is so much commoner there; not measured


@dataclass(frozen=True)
class Cluster:
    """Items that k-means put together: what is commoner among them, as (facet, value, share, times the base rate)."""

    name: str
    size: int
    traits: tuple[tuple[str, str, float, float], ...]


@dataclass(frozen=True)
class Atlas:
    """Points of a map: items first, then users.

    `xy` are their places, `nearest` the ten items next to each by cosine (of a user: those it scores highest), -1 where
    there are fewer, with cosine distances in `apart` (NaN for users). `trust` is the trustworthiness of the items'
    places (Venna and Kaski, ICANN 2001): 1 where all neighbours on the map are neighbours in truth; None for few items.
    """

    ids: tuple[str, ...]
    num_items: int
    xy: Float32[np.ndarray, "points 2"]
    nearest: Int64[np.ndarray, "points _"]
    apart: Float32[np.ndarray, "points _"]
    cluster: Int64[np.ndarray, "points"]
    clusters: tuple[Cluster, ...]
    facets: tuple[Facet, ...]
    """Attributes of the items, a line each."""
    attributes: pa.Table
    trust: float | None
    drawn: str


@dataclass(frozen=True)
class Askers:
    """Users to be placed: their ids, and vectors whose inner products with the lines of `items` are scores."""

    ids: pa.Array
    queries: Float32[np.ndarray, "users _"]
    items: Float32[np.ndarray, "items _"]


def map_run(
    out: Path, vectors: Float32[np.ndarray, "items dim"], attributes: pa.Table, *, askers: Askers
) -> dict[str, Any]:
    """Draws the map into a folder and returns what the card says of it; without the extra `explain` only that."""
    if find_spec("openTSNE") is None or find_spec("vl_convert") is None:
        return {"missing": "This run has no map: pip install 'twofold[explain]', delete its folder explain, again."}
    from twofold.explain.map_page import write_map

    atlas = draw_atlas(vectors, attributes, askers=askers)
    write_map(atlas, out)
    return {"drawn": atlas.drawn, "trust": atlas.trust, "clusters": [asdict(each) for each in atlas.clusters]}


def draw_atlas(
    vectors: Float32[np.ndarray, "items dim"], attributes: pa.Table, *, askers: Askers, seed: int = 0
) -> Atlas:
    """A map of at most 8,000 items and 2,000 users, drawn by the seed; zero vectors are left out.

    `attributes` has a line an item row; its first column is the id.
    """
    rng = np.random.default_rng(seed)
    lengths = np.linalg.norm(vectors, axis=1)
    items = np.sort(rng.permutation(np.flatnonzero(lengths > 0))[:MOST_ITEMS])
    users = np.sort(rng.permutation(len(askers.ids))[: MOST_USERS if len(items) else 0])
    unit = np.ascontiguousarray(vectors[items] / lengths[items, None])
    nearest, apart = nearest_by_cosine(unit, max(min(_WIDTH, len(unit) - 1), 0))
    places = _places(unit, nearest, apart, seed=seed)
    table = attributes.take(pa.array(items))
    facets = facets_of(table.drop_columns([attributes.column_names[0]]))
    group = _groups(unit, seed=seed)
    asked, stands, of_user = _stand(askers, users, items, places=places, group=group)
    ids = pa.chunked_array(
        [table[0].cast(pa.string()).combine_chunks(), askers.ids.take(pa.array(users)).cast("string")]
    )
    width = max(min(NEIGHBOURS, len(items) - 1), asked.shape[1], 0)
    return Atlas(
        ids=tuple(ids.to_pylist()),
        num_items=len(items),
        xy=np.concatenate([places, stands]),
        nearest=np.concatenate([_as_wide(nearest, width, -1), _as_wide(asked, width, -1)]),
        apart=np.concatenate([_as_wide(apart, width, np.nan), np.full((len(users), width), np.nan, np.float32)]),
        cluster=np.concatenate([group, of_user]),
        clusters=tuple(name_cluster(group == each, facets, each) for each in range(int(group.max(initial=-1)) + 1)),
        facets=facets,
        attributes=table,
        trust=_trust(unit, places, rng),
        drawn=_in_words((len(items), len(vectors)), (len(users), len(askers.ids)), seed),
    )


def _in_words(items: tuple[int, int], users: tuple[int, int], seed: int) -> str:
    parts = [f"{shown:,} of {every:,} {noun}" for (shown, every), noun in ((items, "items"), (users, "users"))]
    return f"{' and '.join(parts)}, drawn by seed {seed}"


def _places(
    unit: Float32[np.ndarray, "items dim"],
    nearest: Int64[np.ndarray, "items k"],
    apart: Float32[np.ndarray, "items k"],
    *,
    seed: int,
) -> Float32[np.ndarray, "items 2"]:
    """t-SNE from the principal components (Kobak and Berens, Nature Communications 2019); of few items, these."""
    start = _principal(unit)
    if len(unit) < _FEW:
        return start.astype(np.float32)
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    known = PrecomputedNeighbors(nearest, np.sqrt(2 * apart.astype(np.float64)))  # Euclidean, of unit vectors
    affinities = PerplexityBasedNN(perplexity=_PERPLEXITY, knn_index=known, n_jobs=1)
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    method = "bh" if len(unit) < _MANY else "fft"
    laid = TSNEEmbedding(start, affinities, negative_gradient_method=method, n_jobs=1, random_state=seed)
    laid = laid.optimize(100, exaggeration=12, momentum=0.5).optimize(300, momentum=0.8)
    return np.asarray(laid, np.float32)


def _principal(unit: Float32[np.ndarray, "items dim"]) -> np.ndarray:
    """The first two principal components, each with a sign of its own choice: the largest loading is positive."""
    if len(unit) == 0:
        return np.zeros((0, 2))
    centred = unit.astype(np.float64) - unit.mean(axis=0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred).eigenvectors
    axes = axes[:, ::-1][:, :2]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    places: np.ndarray = centred @ (axes * signs)
    return _as_wide(places, 2, 0.0)


def _groups(unit: Float32[np.ndarray, "items dim"], *, seed: int) -> Int64[np.ndarray, "items"]:
    """k-means on the vectors, not on the map: what the picture tears apart is not torn apart here."""
    if len(np.unique(unit, axis=0)) < 2:
        return np.zeros(len(unit), np.int64)
    count = int(np.clip(round(np.sqrt(len(unit)) / 4), 2, _MOST_CLUSTERS))
    found = KMeans(count, n_init=3, random_state=seed).fit_predict(unit)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    group: Int64[np.ndarray, " items"] = np.argsort(order)[found].astype(np.int64)
    return group


def _stand(
    askers: Askers,
    users: Int64[np.ndarray, "drawn"],
    items: Int64[np.ndarray, "items"],
    *,
    places: Float32[np.ndarray, "items 2"],
    group: Int64[np.ndarray, "items"],
) -> tuple[Int64[np.ndarray, "drawn k"], Float32[np.ndarray, "drawn 2"], Int64[np.ndarray, "drawn"]]:
    """The items on the map that each user scores highest; the median of their places; the cluster of the first."""
    if len(users) == 0:
        return np.zeros((0, 0), np.int64), np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    table, width = np.ascontiguousarray(askers.items[items]), min(NEIGHBOURS, len(items))
    parts = chunks(len(users), max(1, _CELLS // len(items)))
    best = np.concatenate([top_k(askers.queries[users[part]] @ table.T, width).item_rows for part in parts])
    return best, np.median(places[best], axis=1).astype(np.float32), group[best[:, 0]]


def _trust(
    unit: Float32[np.ndarray, "items dim"], places: Float32[np.ndarray, "items 2"], rng: np.random.Generator
) -> float | None:
    chosen = rng.permutation(len(unit))[:_TRUSTED]
    if len(chosen) <= 2 * NEIGHBOURS:
        return None
    return float(trustworthiness(unit[chosen], places[chosen], n_neighbors=NEIGHBOURS))


def name_cluster(inside: np.ndarray, facets: tuple[Facet, ...], number: int) -> Cluster:
    """Named by the values that are commonest in it and commoner than elsewhere: share × log of the lift, best first."""
    size = int(inside.sum())
    traits = []
    for facet in facets:
        total = np.bincount(facet.codes, minlength=len(facet.values))
        own = np.bincount(facet.codes[inside[facet.lines]], minlength=len(facet.values))
        lift = own / max(size, 1) / np.maximum(total / max(len(inside), 1), 1e-12)
        worth = np.where((lift >= _LIFT) & (own >= max(3, size / 10)), own * np.log(np.maximum(lift, 1)), 0)
        best = int(worth.argmax()) if len(worth) else 0
        if worth.size and worth[best] > 0:
            traits.append(
                (float(worth[best]), (facet.name, facet.values[best], float(own[best] / size), float(lift[best])))
            )
    chosen = tuple(trait for _, trait in sorted(traits, key=lambda each: -each[0])[:3])
    said = ", ".join(f"{facet} {value}" for facet, value, _, _ in chosen[:2]) or "nothing stands out"
    return Cluster(f"{number + 1:02d} · {said}", size, chosen)


def points_table(atlas: Atlas) -> pa.Table:
    """A line a point, as Embedding Atlas opens it: --x x --y y --neighbors neighbors; neighbours are line numbers."""
    users = len(atlas.ids) - atlas.num_items
    given = atlas.nearest >= 0
    offsets = np.concatenate([[0], np.cumsum(given.sum(axis=1))]).astype(np.int32)
    near = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[given], from_pandas=True))
        for values in (atlas.nearest, atlas.apart)
    ]
    columns = {
        "kind": pa.array(["item"] * atlas.num_items + ["user"] * users),
        "id": pa.array(atlas.ids, pa.string()),
        "x": pa.array(atlas.xy[:, 0]),
        "y": pa.array(atlas.xy[:, 1]),
        "cluster": pa.array([atlas.clusters[each].name for each in atlas.cluster], pa.string()),
        "neighbors": pa.StructArray.from_arrays(near, names=["ids", "distances"]),
    }
    for field in list(atlas.attributes.schema)[1:]:
        name = field.name if field.name not in columns else f"{field.name} of the item"
        given_values = atlas.attributes[field.name].combine_chunks()
        columns[name] = pa.concat_arrays([given_values, pa.nulls(users, field.type)])
    return pa.table(columns)


def _as_wide(values: np.ndarray, width: int, fill: float | int) -> np.ndarray:
    """The first `width` columns, filled up where there are fewer."""
    wide: np.ndarray = np.full((len(values), width), fill, values.dtype)
    wide[:, : values.shape[1]] = values[:, :width]
    return wide
