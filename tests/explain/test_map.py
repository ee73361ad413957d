"""Maps: positions, neighbors and named clusters of islands whose truth is known; columns as named values."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twofold.explain import map as module
from twofold.explain.map import MapUsers, draw_map, facets_of, points_table
from twofold.tables import DAY_MS

ISLANDS, EACH, DIM = 4, 40, 8


def islands(seed=0):
    """Four groups of items around four axes; each has a language of its own."""
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


def users_of(vectors, users=6):
    return MapUsers(pa.array(range(users)), vectors[: users * EACH // 2 : EACH // 2], vectors)


@pytest.fixture(scope="module")
def item_map():
    vectors = islands()
    return draw_map(vectors, attributes(len(vectors)), users=users_of(vectors))


def test_islands_stay_islands(item_map):
    language = np.arange(ISLANDS).repeat(EACH)
    items = slice(0, item_map.num_items)
    assert item_map.num_items == ISLANDS * EACH
    assert (language[item_map.nearest[items]] == language[:, None]).all()
    distance = np.linalg.norm(item_map.xy[items, None] - item_map.xy[None, items], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (language[distance.argmin(axis=1)] == language).all()
    assert item_map.trustworthiness > 0.8


def test_a_user_is_placed_among_the_items_that_its_vector_scores_highest(item_map):
    for user in range(6):
        row = item_map.num_items + user
        best = item_map.nearest[row]
        assert best[0] == user * EACH // 2  # its vector is that item's
        assert item_map.xy[row] == pytest.approx(np.median(item_map.xy[best], axis=0), abs=1e-5)
        assert item_map.cluster[row] == item_map.cluster[best[0]]
    assert item_map.ids[-6:] == tuple("012345")


def test_clusters_are_named_by_their_typical_values(item_map):
    assert sum(cluster.size for cluster in item_map.clusters) == item_map.num_items
    for cluster in item_map.clusters:
        facet, value, share, lift = cluster.traits[0]
        assert (facet, value[:8]) == ("language", "language")
        assert lift == pytest.approx(share * ISLANDS)  # a quarter of all items has it
        assert f"language {value}" in cluster.name
    assert module.name_cluster(np.ones(8, bool), (), 0).name == "01 · no typical value"


def test_one_seed_draws_one_map(item_map):
    vectors = islands()
    again = draw_map(vectors, attributes(len(vectors)), users=users_of(vectors))
    assert (again.xy == item_map.xy).all()
    assert (again.cluster == item_map.cluster).all()


def test_more_items_than_a_page_holds_are_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(module, "MAX_ITEMS", 30)
    monkeypatch.setattr(module, "MAX_USERS", 2)
    vectors = islands()
    vectors[0] = 0  # no direction, so no position
    drawn = [draw_map(vectors, attributes(len(vectors)), users=users_of(vectors), seed=seed) for seed in (0, 0, 1)]
    assert drawn[0].ids == drawn[1].ids != drawn[2].ids
    assert drawn[0].summary == "30 of 160 items and 2 of 6 users, drawn by seed 0"
    assert "item 0" not in drawn[0].ids


@pytest.mark.parametrize("count", [0, 1, 2, 3, 12])
def test_few_items_have_a_map_too(count):
    vectors = islands()[:: len(islands()) // 12][:count]
    drawn = draw_map(vectors, attributes(160).slice(0, count), users=MapUsers(pa.array([7]), vectors[:1], vectors))
    table = points_table(drawn)
    assert table["kind"].to_pylist() == ["item"] * count + ["user"] * (count > 0)
    assert np.isfinite(drawn.xy).all()
    assert drawn.trustworthiness is None


def test_the_file_has_the_columns_that_embedding_atlas_reads(item_map, tmp_path):
    pq.write_table(points_table(item_map), tmp_path / "map.parquet")
    table = pq.read_table(tmp_path / "map.parquet")
    assert table.column_names[:6] == ["kind", "id", "x", "y", "cluster", "neighbors"]
    assert table.column_names[6:] == ["language", "x of the item"]  # an attribute may be called as a column is
    first = table["neighbors"][0].as_py()
    assert first["ids"] == item_map.nearest[0].tolist()
    assert first["distances"] == sorted(first["distances"])
    assert table["neighbors"][len(table) - 1].as_py()["ids"] == item_map.nearest[-1].tolist()
    assert table["language"].null_count == 6  # users


# --- attributes as named values ---------------------------------------------------------------------------------------


def test_every_type_of_column_has_its_values():
    table = pa.table(
        {
            "creator": ["a", None, "b", "a"],
            "tags": [["x", "y"], [], None, ["y"]],
            "is_new": [True, False, None, True],
            "parts": [1, 2, 2, None],
            "vector": pa.array([[[1.0]], [[2.0]], None, []], pa.list_(pa.list_(pa.float64()))),
            "nothing": pa.nulls(4, pa.string()),
            "uploaded_at": [0, DAY_MS, DAY_MS, None],
        }
    )
    found = {facet.name: facet for facet in facets_of(table)}
    assert set(found) == {"creator", "tags", "is_new", "parts", "uploaded_at"}
    pairs = {name: [(int(item), each.values[code]) for item, code in zip(each.items, each.codes, strict=True)]
             for name, each in found.items()}  # fmt: skip
    assert pairs["creator"] == [(0, "a"), (2, "b"), (3, "a")]
    assert pairs["tags"] == [(0, "x"), (0, "y"), (3, "y")]
    assert pairs["is_new"] == [(0, "true"), (1, "false"), (3, "true")]
    assert pairs["parts"] == [(0, "1"), (1, "2"), (2, "2")]
    assert pairs["uploaded_at"] == [(0, "1970-01-01"), (1, "1970-01-02"), (2, "1970-01-02")]
    assert found["tags"].first(4, most=9) == ("x", "–", "–", "y")


def test_many_numbers_are_fifths_and_ids_are_names():
    numbers = np.arange(100)
    bands, names, days = facets_of(pa.table({"plays": numbers, "author_id": numbers, "made_at": numbers * DAY_MS}))
    assert np.bincount(bands.codes).tolist() == [20] * 5
    assert bands.values[0] == "0 to 19.8"  # a fifth of the way from 0 to 99
    assert bands.first(100, most=9)[0] == "1: 0 to 19.8"
    assert len(names.values) == 100
    assert days.values[0] == "1970-01-01 to 1970-01-20"
    assert names.first(100, most=2).count("other") == 98


def test_keys_of_64_bits_are_bands_too():
    (facet,) = facets_of(pa.table({"seller_key": np.arange(40) * 2**57 - 1}))  # most are above 2^53
    assert np.bincount(facet.codes).tolist() == [8] * 5


def test_not_a_number_is_no_value():
    (facet,) = facets_of(pa.table({"plays": [1.0, float("nan"), None, float("inf")]}))
    assert facet.items.tolist() == [0]


def test_a_cluster_is_named_in_words_not_by_columns_and_intervals():
    seconds = np.arange(1.0, 101.0)
    facets = facets_of(pa.table({"length_s": seconds, "made_at": (seconds * DAY_MS).astype(np.int64)}))
    longest = module.name_cluster(seconds > 80, facets, 0)
    assert longest.name == "01 · highest length, latest made"
    assert longest.traits[0][:2] == ("length", "80.2 to 100")
    few = facets_of(pa.table({"plays": [0.0] * 60 + [float(each) for each in range(40)]}))[0]
    assert len(few.values) == 3
    assert [few.phrase(code) for code in range(3)] == ["lowest plays", "middle plays", "highest plays"]
