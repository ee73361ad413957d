"""Vectors → places, neighbours and clusters with names, on islands whose truth is known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twofold.explain import map as module
from twofold.explain.map import Askers, draw_atlas, points_table

ISLANDS, EACH, DIM = 4, 40, 8


def islands(seed=0):
    """Four groups of items around four axes; each speaks a language of its own."""
    rng = np.random.default_rng(seed)
    centres = np.eye(ISLANDS, DIM, dtype=np.float32).repeat(EACH, axis=0)
    vectors = centres + rng.normal(scale=0.05, size=centres.shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def attributes(count):
    return pa.table(
        {
            "item_id": [f"item {row}" for row in range(count)],
            "language": [f"language {row // EACH}" for row in range(count)],
            "x": [float(row % 7) for row in range(count)],
        }
    )


def askers(vectors, users=6):
    return Askers(pa.array(range(users)), vectors[: users * EACH // 2 : EACH // 2], vectors)


@pytest.fixture(scope="module")
def atlas():
    vectors = islands()
    return draw_atlas(vectors, attributes(len(vectors)), askers=askers(vectors))


def test_islands_stay_islands(atlas):
    language = np.arange(ISLANDS).repeat(EACH)
    items = slice(0, atlas.num_items)
    assert atlas.num_items == ISLANDS * EACH
    assert (language[atlas.nearest[items]] == language[:, None]).all()
    distance = np.linalg.norm(atlas.xy[items, None] - atlas.xy[None, items], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (language[distance.argmin(axis=1)] == language).all()
    assert atlas.trust > 0.8


def test_a_user_stands_amid_the_items_it_scores_highest(atlas):
    for user in range(6):
        place = atlas.num_items + user
        best = atlas.nearest[place]
        assert best[0] == user * EACH // 2  # its vector is that item's
        assert atlas.xy[place] == pytest.approx(np.median(atlas.xy[best], axis=0), abs=1e-5)
        assert atlas.cluster[place] == atlas.cluster[best[0]]
    assert atlas.ids[-6:] == tuple("012345")


def test_clusters_are_named_by_what_is_commoner_in_them(atlas):
    assert sum(cluster.size for cluster in atlas.clusters) == atlas.num_items
    for cluster in atlas.clusters:
        facet, value, share, lift = cluster.traits[0]
        assert (facet, value[:8]) == ("language", "language")
        assert lift == pytest.approx(share * ISLANDS)  # a quarter of all items speaks it
        assert f"language {value}" in cluster.name
    assert module.name_cluster(np.ones(8, bool), (), 0).name == "01 · nothing stands out"


def test_one_seed_draws_one_map(atlas):
    vectors = islands()
    again = draw_atlas(vectors, attributes(len(vectors)), askers=askers(vectors))
    assert (again.xy == atlas.xy).all()
    assert (again.cluster == atlas.cluster).all()


def test_more_items_than_a_page_holds_are_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(module, "MOST_ITEMS", 30)
    monkeypatch.setattr(module, "MOST_USERS", 2)
    vectors = islands()
    vectors[0] = 0  # no direction, so no place
    drawn = [draw_atlas(vectors, attributes(len(vectors)), askers=askers(vectors), seed=seed) for seed in (0, 0, 1)]
    assert drawn[0].ids == drawn[1].ids != drawn[2].ids
    assert drawn[0].drawn == "30 of 160 items and 2 of 6 users, drawn by seed 0"
    assert "item 0" not in drawn[0].ids


@pytest.mark.parametrize("count", [0, 1, 2, 3, 12])
def test_however_few_items_there_is_a_map(count):
    vectors = islands()[:: len(islands()) // 12][:count]
    drawn = draw_atlas(vectors, attributes(160).slice(0, count), askers=Askers(pa.array([7]), vectors[:1], vectors))
    table = points_table(drawn)
    assert table["kind"].to_pylist() == ["item"] * count + ["user"] * (count > 0)
    assert np.isfinite(drawn.xy).all()
    assert drawn.trust is None


def test_the_file_has_the_columns_that_embedding_atlas_reads(atlas, tmp_path):
    pq.write_table(points_table(atlas), tmp_path / "map.parquet")
    table = pq.read_table(tmp_path / "map.parquet")
    assert table.column_names[:6] == ["kind", "id", "x", "y", "cluster", "neighbors"]
    assert table.column_names[6:] == ["language", "x of the item"]  # an attribute may be called as a column is
    first = table["neighbors"][0].as_py()
    assert first["ids"] == atlas.nearest[0].tolist()
    assert first["distances"] == sorted(first["distances"])
    assert table["neighbors"][len(table) - 1].as_py()["ids"] == atlas.nearest[-1].tolist()
    assert table["language"].null_count == 6  # users
