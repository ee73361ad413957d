"""Lists around centres: as many are searched as were measured to be enough, for every score and depth."""

import numpy as np
import pytest

from twofold.errors import RunError
from twofold.index import ivf as module
from twofold.index.ivf import LISTS, WANTED, IvfIndex, Measured, build_ivf, load_ivf
from twofold.index.scan import scan
from twofold.index.score_kinds import Score


def clusters(items: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 to 1.3 around 60 places."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(99).standard_normal((60, dim))
    vectors = places[rng.integers(0, 60, items)] + 0.2 * rng.standard_normal((items, dim))
    vectors *= rng.uniform(1, 1.3, (items, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


VECTORS, HELD, QUERIES = clusters(6000), clusters(128, seed=1), clusters(64, seed=2)


@pytest.fixture(scope="module", params=["dot", "negative_distance"])
def built(request: pytest.FixtureRequest) -> tuple[Score, IvfIndex]:
    return request.param, build_ivf(VECTORS, [HELD], score=request.param)


def test_recall_measured_on_some_queries_holds_for_others(built: tuple[Score, IvfIndex]) -> None:
    score, lists = built
    assert len(lists.measured) >= 3
    assert lists.num_queries == len(HELD)
    for each in lists.measured:
        _, truth = scan(VECTORS, QUERIES, each.depth, score=score)
        _, rows = lists.search(QUERIES, each.depth, each.probes)
        recall = np.mean([len(np.intersect1d(*pair)) / each.depth for pair in zip(rows, truth, strict=True)])
        assert each.recall >= WANTED
        assert recall >= WANTED - 0.01  # 64 other queries


def test_deeper_answers_need_more_lists(built: tuple[Score, IvfIndex]) -> None:
    _, lists = built
    depths, probes = [each.depth for each in lists.measured], [each.probes for each in lists.measured]
    assert depths == sorted(depths)
    assert probes == sorted(probes)
    assert lists.probes(1) == lists.probes(128) == probes[0]
    assert lists.probes(129) == probes[1]
    assert lists.probes(10**6) is None
    assert max(probes) <= lists.ivf.nlist / 4


def test_scores_are_those_of_a_scan_best_first_and_nobody_comes_twice(built: tuple[Score, IvfIndex]) -> None:
    score, lists = built
    found, rows = lists.search(QUERIES, 5, lists.ivf.nlist)  # all lists: an exact scan
    expected, expected_rows = scan(VECTORS, QUERIES, 5, score=score)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert (rows == expected_rows).mean() > 0.99  # rounding may swap two
    assert all(len(set(line)) == 5 for line in rows.tolist())


def test_an_answer_does_not_depend_on_who_asks_beside(built: tuple[Score, IvfIndex]) -> None:
    _, lists = built
    together = lists.search(QUERIES, 20, 4)
    for line in range(0, 64, 9):
        alone = lists.search(QUERIES[[line]], 20, 4)
        assert alone[1].tolist() == together[1][[line]].tolist()
        assert alone[0].tolist() == together[0][[line]].tolist()


def test_where_the_lists_hold_fewer_the_rest_is_nobody(built: tuple[Score, IvfIndex]) -> None:
    _, lists = built
    found, rows = lists.search(QUERIES, 1000, 1)
    assert (rows[:, -1] == -1).all()
    assert np.isneginf(found[rows < 0]).all()


def test_every_item_is_in_one_list(built: tuple[Score, IvfIndex]) -> None:
    _, lists = built
    _, rows = lists.search(QUERIES[:1], len(VECTORS), lists.ivf.nlist)
    assert sorted(rows[0].tolist()) == list(range(len(VECTORS)))


def test_what_is_said_of_all_is_said_of_the_worst_group() -> None:
    lost = np.random.default_rng(3).standard_normal((64, 16), np.float32)  # who asks from nowhere near the items
    easy, hard = (build_ivf(VECTORS, held, score="dot") for held in ([HELD], [HELD, lost]))
    depth = easy.measured[0].depth
    needed = hard.probes(depth)
    assert needed is None or needed > (easy.probes(depth) or 0)
    assert hard.num_queries == len(HELD) + len(lost)


def test_a_depth_that_many_lists_miss_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PROBED", 0.0)
    noise = np.random.default_rng(0).standard_normal((3000, 32), np.float32)
    lists = build_ivf(noise, [noise[:50]], score="dot")
    assert lists.measured == ()
    assert lists.probes(1) is None


def test_what_was_saved_is_mapped_and_what_is_no_index_is_refused(built: tuple[Score, IvfIndex], tmp_path) -> None:
    _, lists = built
    lists.save(tmp_path / LISTS)
    measured = [Measured(128, 2, 1.0)]
    loaded = load_ivf(tmp_path / LISTS, measured, 3)
    assert loaded.measured == tuple(measured)
    assert loaded.search(QUERIES, 9, 3)[1].tolist() == lists.search(QUERIES, 9, 3)[1].tolist()
    (tmp_path / LISTS).write_bytes(b"no index of FAISS at all")
    with pytest.raises(RunError, match=r"item_lists.faiss cannot be read as lists.*Delete .* run `twofold run` again"):
        load_ivf(tmp_path / LISTS, measured, 3)
    with pytest.raises(RunError, match="cannot be read as lists"):
        load_ivf(tmp_path / "missing.faiss", measured, 3)
