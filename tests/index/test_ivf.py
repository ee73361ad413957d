"""IVF index: for every score and depth, as many lists are probed as calibration found to be enough."""

import numpy as np
import pytest

from twofold.errors import RunError
from twofold.index import ivf as module
from twofold.index.ivf import LISTS, TARGET_RECALL, CalibrationPoint, IvfIndex, build_ivf, load_ivf, scan
from twofold.index.score_kinds import Score, pair_scores


def clusters(items: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 to 1.3 around 60 places."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(99).standard_normal((60, dim))
    vectors = places[rng.integers(0, 60, items)] + 0.2 * rng.standard_normal((items, dim))
    vectors *= rng.uniform(1, 1.3, (items, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


VECTORS, CALIBRATION, QUERIES = clusters(6000), clusters(128, seed=1), clusters(64, seed=2)


@pytest.fixture(scope="module", params=["dot", "negative_distance"])
def built(request: pytest.FixtureRequest) -> tuple[Score, IvfIndex]:
    return request.param, build_ivf(VECTORS, [CALIBRATION], score=request.param)


def test_recall_measured_on_some_queries_holds_for_others(built: tuple[Score, IvfIndex]) -> None:
    score, ivf = built
    assert len(ivf.calibration) >= 3
    assert ivf.num_queries == len(CALIBRATION)
    for each in ivf.calibration:
        _, truth = scan(VECTORS, QUERIES, each.depth, score=score)
        _, rows = ivf.search(QUERIES, each.depth, each.probes)
        recall = np.mean([len(np.intersect1d(*pair)) / each.depth for pair in zip(rows, truth, strict=True)])
        assert each.recall >= TARGET_RECALL
        assert recall >= TARGET_RECALL - 0.01  # 64 other queries


def test_deeper_searches_need_more_lists(built: tuple[Score, IvfIndex]) -> None:
    _, ivf = built
    depths, probes = [each.depth for each in ivf.calibration], [each.probes for each in ivf.calibration]
    assert depths == sorted(depths)
    assert probes == sorted(probes)
    assert ivf.probes(1) == ivf.probes(128) == probes[0]
    assert ivf.probes(129) == probes[1]
    assert ivf.probes(10**6) is None
    assert max(probes) <= ivf.faiss_index.nlist / 4


def test_scores_are_those_of_a_scan_best_first_and_no_item_comes_twice(built: tuple[Score, IvfIndex]) -> None:
    score, ivf = built
    found, rows = ivf.search(QUERIES, 5, ivf.faiss_index.nlist)  # all lists: an exact scan
    expected, expected_rows = scan(VECTORS, QUERIES, 5, score=score)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert (rows == expected_rows).mean() > 0.99  # rounding may swap two
    assert all(len(set(row)) == 5 for row in rows.tolist())


def test_a_result_does_not_depend_on_the_other_queries(built: tuple[Score, IvfIndex]) -> None:
    _, ivf = built
    together = ivf.search(QUERIES, 20, 4)
    for query in range(0, 64, 9):
        alone = ivf.search(QUERIES[[query]], 20, 4)
        assert alone[1].tolist() == together[1][[query]].tolist()
        assert alone[0].tolist() == together[0][[query]].tolist()


def test_where_the_lists_hold_fewer_items_the_rest_is_minus_one(built: tuple[Score, IvfIndex]) -> None:
    _, ivf = built
    found, rows = ivf.search(QUERIES, 1000, 1)
    assert (rows[:, -1] == -1).all()
    assert np.isneginf(found[rows < 0]).all()


def test_every_item_is_in_one_list(built: tuple[Score, IvfIndex]) -> None:
    _, ivf = built
    _, rows = ivf.search(QUERIES[:1], len(VECTORS), ivf.faiss_index.nlist)
    assert sorted(rows[0].tolist()) == list(range(len(VECTORS)))


def test_the_recall_of_a_depth_is_that_of_the_worst_group() -> None:
    lost = np.random.default_rng(3).standard_normal((64, 16), np.float32)  # queries far from all items
    easy, hard = (build_ivf(VECTORS, groups, score="dot") for groups in ([CALIBRATION], [CALIBRATION, lost]))
    depth = easy.calibration[0].depth
    needed = hard.probes(depth)
    assert needed is None or needed > (easy.probes(depth) or 0)
    assert hard.num_queries == len(CALIBRATION) + len(lost)


def test_a_depth_that_many_lists_miss_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROBED", 0.0)
    noise = np.random.default_rng(0).standard_normal((3000, 32), np.float32)
    ivf = build_ivf(noise, [noise[:50]], score="dot")
    assert ivf.calibration == ()
    assert ivf.probes(1) is None


def test_a_saved_index_is_mapped_and_a_file_that_is_no_index_is_refused(
    built: tuple[Score, IvfIndex], tmp_path
) -> None:
    _, ivf = built
    ivf.save(tmp_path / LISTS)
    points = [CalibrationPoint(128, 2, 1.0)]
    loaded = load_ivf(tmp_path / LISTS, points, 3)
    assert loaded.calibration == tuple(points)
    assert loaded.search(QUERIES, 9, 3)[1].tolist() == ivf.search(QUERIES, 9, 3)[1].tolist()
    (tmp_path / LISTS).write_bytes(b"no index of FAISS at all")
    with pytest.raises(
        RunError, match=r"item_lists.faiss cannot be read as an IVF index.*Delete .* run `twofold run` again"
    ):
        load_ivf(tmp_path / LISTS, points, 3)
    with pytest.raises(RunError, match="cannot be read as an IVF index"):
        load_ivf(tmp_path / "missing.faiss", points, 3)


# --- the exact scan ---------------------------------------------------------------------------------------------------

FEW = VECTORS[:300]


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_a_scan_finds_what_sorting_all_scores_finds(score: Score, num_queries: int) -> None:
    scores, best = scan(FEW, QUERIES[:num_queries], 5, score=score)
    for query in range(num_queries):
        expected = pair_scores(FEW, QUERIES[query], score)
        order = np.argsort(-expected)[:5]
        assert best[query].tolist() == order.tolist()
        np.testing.assert_allclose(scores[query], expected[order], rtol=1e-5, atol=1e-5)


def test_a_scan_of_few_items_ends_in_minus_one() -> None:
    scores, best = scan(FEW[8:9], QUERIES[:1], 3, score="negative_distance")
    assert best.tolist() == [[0, -1, -1]]
    assert np.isneginf(scores[0, 1:]).all()
    scores, best = scan(FEW[:0], QUERIES[:1], 2, score="dot")
    assert best.tolist() == [[-1, -1]]
    assert np.isneginf(scores).all()


def test_a_mapped_file_is_searched_in_place(tmp_path) -> None:
    np.save(tmp_path / "vectors.npy", FEW)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert scan(np.asarray(mapped), QUERIES, 4, score="dot")[1].tolist() == (
        scan(FEW, QUERIES, 4, score="dot")[1].tolist()
    )
