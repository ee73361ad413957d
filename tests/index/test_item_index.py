"""The index and its files: built, saved, loaded, and refused where vectors or files do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.index.oracle import language_vectors, unit_vectors
from twofold.errors import RunError
from twofold.index.item_index import FACTS, VECTORS, Index, build_index, load_index, save_index
from twofold.index.item_products import ITEM_PRODUCTS
from twofold.index.ivf import LISTS
from twofold.index.score_kinds import Score
from twofold.index.search import search

QUERIES = unit_vectors(40, 8, seed=1)
ITEM_VECTORS, _ = language_vectors(3000, seed=0)
LANGUAGE_QUERIES, _ = language_vectors(60, seed=1)


@pytest.fixture(scope="module")
def index() -> Index:
    return build_index(unit_vectors(500, 8))


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
def test_a_loaded_index_has_the_results_of_the_saved_one(index: Index, tmp_path: Path, score: Score) -> None:
    scaled = build_index(index.vectors if score == "cosine" else index.vectors * np.float32(3), score=score)
    save_index(scaled, tmp_path)
    loaded = load_index(tmp_path)
    assert loaded.score == score
    before, after = search(scaled, QUERIES, 9), search(loaded, QUERIES, 9)
    assert after.item_rows.tolist() == before.item_rows.tolist()
    assert after.scores.tolist() == before.scores.tolist()


def test_vectors_whose_scores_would_be_infinite_are_refused() -> None:
    vectors = np.full((3, 4), 1e17, np.float32)
    assert len(build_index(vectors, score="dot")) == 3
    vectors[1] = 1e19
    with pytest.raises(RunError, match=r"item row 1 has length .*; scores of vectors longer than 1e\+18 are infinite"):
        build_index(vectors, score="dot")


def test_vectors_of_a_diverged_model_are_refused() -> None:
    vectors = unit_vectors(4, 3)
    vectors[2, 1] = np.nan
    with pytest.raises(RunError, match=r"1 of 4 item vectors hold NaN .*item row 2.*Lower train.learning_rate"):
        build_index(vectors)


def test_a_cosine_index_of_vectors_that_are_not_normalized_is_refused() -> None:
    with pytest.raises(RunError, match=r"must have length 1; that of item row 1 has 2.*score='dot'"):
        build_index(np.float32([[1, 0], [0, 2]]))


def test_an_index_whose_parts_do_not_fit_or_cannot_be_read_is_refused(index: Index, tmp_path: Path) -> None:
    save_index(index, tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps(facts | {"items": 499}))
    with pytest.raises(RunError, match=r"shape \(500, 8\), but index.json states 499 x 8"):
        load_index(tmp_path)
    (tmp_path / VECTORS).write_bytes((tmp_path / VECTORS).read_bytes()[:1000])
    with pytest.raises(RunError, match=r"cannot be read: .*run `twofold run` again"):
        load_index(tmp_path)
    (tmp_path / FACTS).unlink()
    with pytest.raises(RunError, match=r"cannot be read: .*index.json"):
        load_index(tmp_path)


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
def test_lists_are_saved_and_mapped_for_every_score(tmp_path: Path, score: Score) -> None:
    built = build_index(ITEM_VECTORS, score=score, queries=LANGUAGE_QUERIES, max_flat=1000)
    save_index(built, tmp_path)
    loaded = load_index(tmp_path)
    assert loaded.facts == built.facts
    assert (
        search(loaded, LANGUAGE_QUERIES, 20).item_rows.tolist()
        == search(built, LANGUAGE_QUERIES, 20).item_rows.tolist()
    )


def test_lists_of_another_run_are_refused(tmp_path: Path) -> None:
    save_index(build_index(ITEM_VECTORS, max_flat=1000), tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    save_index(build_index(ITEM_VECTORS[:2000], max_flat=1000), tmp_path)
    (tmp_path / FACTS).write_text(json.dumps(facts))
    np.save(tmp_path / VECTORS, ITEM_VECTORS)
    with pytest.raises(RunError, match=r"holds 2000 x 16 vectors in .* states 3000 x 16 .* two runs"):
        load_index(tmp_path)
    (tmp_path / LISTS).unlink()
    with pytest.raises(RunError, match="cannot be read as an IVF index"):
        load_index(tmp_path)


def test_a_loaded_index_is_a_mapped_file_and_not_a_copy(index: Index, tmp_path: Path) -> None:
    save_index(index, tmp_path)
    vectors = load_index(tmp_path).vectors
    assert not vectors.flags.owndata
    assert not vectors.flags.writeable


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
def test_the_packed_product_of_a_loaded_index_changes_no_result(tmp_path: Path, score: Score) -> None:
    vectors = unit_vectors(5000, 24)
    vectors[100:140] = vectors[7]  # ties
    built = build_index(vectors if score == "cosine" else vectors * np.float32(3), score=score)
    save_index(built, tmp_path)
    loaded = load_index(tmp_path)
    assert built.products is None
    assert loaded.products is not None
    queries = np.concatenate([unit_vectors(30, 24, seed=1), vectors[[7]]])
    before, together = search(built, queries, 60), search(loaded, queries, 60)
    assert together.item_rows.tolist() == before.item_rows.tolist()
    assert together.scores.tolist() == before.scores.tolist()
    for number in (0, 30):
        alone = search(loaded, queries[[number]], 60)
        assert alone.item_rows.tolist() == together.item_rows[[number]].tolist()
        assert alone.scores.tolist() == together.scores[[number]].tolist()


def test_a_graph_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    save_index(build_index(unit_vectors(100, 8), score="negative_distance"), tmp_path)
    (tmp_path / ITEM_PRODUCTS).write_bytes(b"no graph")
    with pytest.raises(RunError, match=r"item_products.onnx is not a graph that onnxruntime can run: .*Delete "):
        load_index(tmp_path)
