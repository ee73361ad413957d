"""Search: equal to scoring everything, whatever is filtered, excluded, tied or asked together; or nearly, and said."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.errors import RequestError, RunError
from twofold.index.item_mask import Filters, from_mask
from twofold.index.ivf import LISTS
from twofold.index.score_kinds import Score, pair_scores
from twofold.index.search import FACTS, VECTORS, Index, build_index, load_index, save_index, search
from twofold.ragged import Ragged
from twofold.topk import TopK, exclude, tie_order, top_k


def unit_vectors(lines: int, dim: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((lines, dim), np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def score_everything(index: Index, queries: np.ndarray, k: int, **restrict: object) -> TopK:
    """The definition: all scores, pair by pair; then the one rule of ties."""
    scores = np.stack([pair_scores(index.vectors, query, index.score) for query in queries])
    excluded = restrict.get("excluded")
    if excluded is not None:
        exclude(scores, excluded)
    allowed = restrict.get("allowed")
    return top_k(scores, k, allowed=None if allowed is None else allowed[None])


def ragged(lists: list[list[int]]) -> Ragged:
    values = np.array([row for line in lists for row in line], np.int64)
    return Ragged(values, np.cumsum([0, *(len(line) for line in lists)]))


@pytest.fixture(scope="module")
def index() -> Index:
    return build_index(unit_vectors(500, 8))


queries = unit_vectors(40, 8, seed=1)


@pytest.mark.parametrize("k", [1, 20, 484, 485, 500, 600])
def test_answers_are_those_of_scoring_everything(index: Index, k: int) -> None:
    found, expected = search(index, queries, k), score_everything(index, queries, k)
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.counts.tolist() == [min(k, 500)] * 40
    assert found.is_exact


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 200),
    lines=st.integers(1, 6),
    k=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    levels=st.sampled_from([1, 2, 50]),
    score=st.sampled_from(["dot", "negative_distance"]),
)
def test_filter_and_exclusions_hold_and_nothing_eligible_is_missed(
    seed: int, items: int, lines: int, k: int, share: float, levels: int, score: Score
) -> None:
    rng = np.random.default_rng(seed)
    # Few levels: many equal vectors, so that ties reach far beyond k.
    index = build_index(rng.integers(-levels, levels + 1, (items, 3)).astype(np.float32), score=score)
    asked = rng.integers(-1, 2, (lines, 3)).astype(np.float32)
    allowed = rng.random(items) < share
    excluded = ragged([rng.integers(0, items, rng.integers(0, 30)).tolist() for _ in range(lines)])
    found = search(index, asked, k, allowed=allowed, excluded=excluded)
    expected = score_everything(index, asked, k, allowed=allowed, excluded=excluded)
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    eligible = [len(set(np.flatnonzero(allowed)) - set(excluded.of(np.array([line])).values)) for line in range(lines)]
    assert found.counts.tolist() == [min(k, count) for count in eligible]


def test_where_all_items_are_equal_the_fixed_shuffle_decides_and_not_the_catalogues_order() -> None:
    index = build_index(np.tile(np.float32([1, 0]), (300, 1)))
    _, row_of_rank = tie_order(300)
    expected = row_of_rank[::-1][:5].tolist()
    assert search(index, np.float32([[1, 0]]), 5).item_rows.tolist() == [expected]
    assert search(index, np.float32([[1, 0]] * 3), 5).item_rows.tolist() == [expected] * 3


@pytest.mark.parametrize("score", ["cosine", "negative_distance"])
def test_a_batch_answers_as_its_lines_do_alone(index: Index, score: Score) -> None:
    index = build_index(index.vectors, score=score)
    many = unit_vectors(3000, 8, seed=2)  # more than one block
    allowed = np.arange(500) % 3 > 0
    excluded = ragged([[line % 500] for line in range(3000)])
    together = search(index, many, 10, allowed=allowed, excluded=excluded)
    for line in range(0, 3000, 97):
        alone = search(index, many[[line]], 10, allowed=allowed, excluded=ragged([[line % 500]]))
        assert alone.item_rows.tolist() == together.item_rows[[line]].tolist()
        assert alone.scores.tolist() == together.scores[[line]].tolist()


def test_a_line_that_excludes_very_much_is_answered_too() -> None:
    index = build_index(unit_vectors(350, 4))
    lists = [[], list(range(340)), [3]]
    found = search(index, unit_vectors(3, 4, seed=3), 20, excluded=ragged(lists))
    assert found.counts.tolist() == [20, 10, 20]
    assert sorted(found.item_rows[1][:10].tolist()) == list(range(340, 350))


def test_a_short_list_is_counted_and_ends_in_minus_one(index: Index) -> None:
    allowed = np.zeros(500, bool)
    allowed[[7, 9]] = True
    for lines in (1, 3):
        found = search(index, queries[:lines], 4, allowed=allowed, excluded=ragged([[9]] * lines))
        assert found.item_rows.tolist() == [[7, -1, -1, -1]] * lines
        assert found.counts.tolist() == [1] * lines
        assert np.isneginf(found.scores[:, 1:]).all()
        nothing = search(index, queries[:lines], 4, allowed=np.zeros(500, bool))
        assert nothing.counts.tolist() == [0] * lines


def test_no_query_has_no_answer(index: Index) -> None:
    assert search(index, queries[:0], 5).item_rows.shape == (0, 5)


def test_the_nearest_are_not_the_longest() -> None:
    index = build_index(np.float32([[1, 0], [9, 0], [2, 2]]), score="negative_distance")
    found = search(index, np.float32([[1, 1]]), 3)
    assert found.item_rows.tolist() == [[0, 2, 1]]
    assert found.scores.tolist() == [[-1, -2, -(8**2) - 1]]
    assert search(build_index(index.vectors, score="dot"), np.float32([[1, 1]]), 1).item_rows.tolist() == [[1]]


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
def test_saved_and_loaded_answer_equally(index: Index, tmp_path: Path, score: Score) -> None:
    scaled = build_index(index.vectors if score == "cosine" else index.vectors * np.float32(3), score=score)
    save_index(scaled, tmp_path)
    loaded = load_index(tmp_path)
    assert loaded.score == score
    before, after = search(scaled, queries, 9), search(loaded, queries, 9)
    assert after.item_rows.tolist() == before.item_rows.tolist()
    assert after.scores.tolist() == before.scores.tolist()


def test_vectors_of_a_diverged_model_are_refused() -> None:
    vectors = unit_vectors(4, 3)
    vectors[2, 1] = np.nan
    with pytest.raises(RunError, match=r"1 of 4 item vectors hold NaN .*item row 2.*Lower train.learning_rate"):
        build_index(vectors)


def test_a_cosine_index_of_vectors_that_are_not_normalised_is_refused() -> None:
    with pytest.raises(RunError, match=r"must have length 1; that of item row 1 has 2.*score='dot'"):
        build_index(np.float32([[1, 0], [0, 2]]))


@pytest.mark.parametrize(
    ("asked", "k", "message"),
    [
        (np.zeros((1, 8), np.float32), 0, "k must be at least 1, not 0"),
        (np.zeros((1, 5), np.float32), 3, "5 dimensions, the index has 8"),
        (np.full((2, 8), np.nan, np.float32), 3, "query vector 0 holds NaN"),
    ],
)
def test_a_question_without_an_answer_is_refused(index: Index, asked: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        search(index, asked, k)


def test_an_index_whose_parts_do_not_fit_or_cannot_be_read_is_refused(index: Index, tmp_path: Path) -> None:
    save_index(index, tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps(facts | {"items": 499}))
    with pytest.raises(RunError, match=r"shape \(500, 8\), but index.json speaks of 499 x 8"):
        load_index(tmp_path)
    (tmp_path / VECTORS).write_bytes((tmp_path / VECTORS).read_bytes()[:1000])
    with pytest.raises(RunError, match=r"cannot be read: .*run `twofold run` again"):
        load_index(tmp_path)
    (tmp_path / FACTS).unlink()
    with pytest.raises(RunError, match=r"cannot be read: .*index.json"):
        load_index(tmp_path)


# --- above `flat_most`: lists -----------------------------------------------------------------------------------------

ITEMS, LANGUAGES = 8000, 16


def spoken(lines: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around 16 languages with 5 places each, and whose they are: a filter by language is correlated."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((LANGUAGES, 1, 16))
    places = centres + 0.6 * np.random.default_rng(8).standard_normal((LANGUAGES, 5, 16))
    language = rng.integers(0, LANGUAGES, lines)
    vectors = places[language, rng.integers(0, 5, lines)] + 0.4 * rng.standard_normal((lines, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), language


ITEM_VECTORS, ITEM_LANGUAGE = spoken(ITEMS, 0)
ASKED, _ = spoken(60, 1)


@pytest.fixture(scope="module")
def listed() -> Index:
    return build_index(ITEM_VECTORS, queries=spoken(100, 2)[0], flat_most=1000)


def recall(index: Index, k: int, mask: np.ndarray | None = None) -> tuple[float, bool]:
    found = search(index, ASKED, k, allowed=mask)
    expected = score_everything(index, ASKED, k, allowed=mask)
    assert found.counts.tolist() == expected.counts.tolist()  # never short
    right = (found.item_rows[:, :, None] == expected.item_rows[:, None]) & (found.item_rows >= 0)[:, :, None]
    return float(right.any(axis=1).sum() / max(found.counts.sum(), 1)), found.is_exact


def test_up_to_a_size_every_answer_is_exact_and_above_it_says_that_it_is_not(listed: Index) -> None:
    assert build_index(ITEM_VECTORS[:1000], flat_most=1000).lists is None
    found, is_exact = recall(listed, 50)
    assert found >= 0.99
    assert not is_exact
    assert all(each["recall"] >= 0.99 for each in listed.facts["lists"]["measured"])
    assert listed.facts["lists"]["queries"] == 100 + 512


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2, 0.05, 0.005, 0.0])
def test_a_filter_of_any_share_gets_its_answers(listed: Index, share: float) -> None:
    mask = np.random.default_rng(3).random(ITEMS) < share
    found, is_exact = recall(listed, 30, mask)
    assert found >= 0.99 or share == 0
    assert is_exact or share > 1 / 8


@pytest.mark.parametrize("number", [1, 3, 8])
def test_a_filter_that_is_correlated_with_the_query_gets_its_answers(listed: Index, number: int) -> None:
    mask = np.isin(ITEM_LANGUAGE, np.arange(number))
    found, _ = recall(listed, 30, mask)
    assert found >= 0.99


def test_a_filter_made_against_the_query_gets_its_answers(listed: Index) -> None:
    # Half of all items, but none of the query's nearest 2,000: lists that look full would be wrong.
    far = np.argsort(-(ITEM_VECTORS @ ASKED[0]))[2000:6000]
    mask = np.isin(np.arange(ITEMS), far)
    found = search(listed, ASKED[:1], 30, allowed=mask)
    expected = score_everything(listed, ASKED[:1], 30, allowed=mask)
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    assert found.is_exact


def test_longer_lists_than_were_measured_are_exact(listed: Index) -> None:
    found = search(listed, ASKED, 3000)
    assert found.is_exact
    assert found.item_rows.tolist() == score_everything(listed, ASKED, 3000).item_rows.tolist()


def test_exclusions_hold_in_lists_too_and_the_next_best_follow(listed: Index) -> None:
    best = score_everything(listed, ASKED, 60).item_rows
    excluded = ragged([line[:30].tolist() for line in best])
    found = search(listed, ASKED, 30, excluded=excluded)
    assert np.mean([len(np.intersect1d(*pair)) / 30 for pair in zip(found.item_rows, best[:, 30:], strict=True)]) > 0.99
    alone = search(listed, ASKED[:1], 30, excluded=ragged([best[0, :30].tolist()]))
    assert alone.item_rows.tolist() == found.item_rows[:1].tolist()


def test_where_all_items_are_equal_lists_do_not_answer_in_their_order() -> None:
    index = build_index(np.tile(np.float32([1, 0]), (3000, 1)), flat_most=100)
    _, row_of_rank = tie_order(3000)
    found = search(index, np.float32([[1, 0]]), 5)
    assert found.item_rows.tolist() == [row_of_rank[::-1][:5].tolist()]
    assert found.is_exact


def test_a_batch_from_lists_answers_as_its_lines_do_alone(listed: Index) -> None:
    mask = ITEM_LANGUAGE != 3
    together = search(listed, ASKED, 20, allowed=mask)
    for line in range(0, 60, 7):
        alone = search(listed, ASKED[[line]], 20, allowed=mask)
        assert alone.item_rows.tolist() == together.item_rows[[line]].tolist()
        assert alone.scores.tolist() == together.scores[[line]].tolist()


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
def test_lists_are_saved_and_mapped_for_every_score(tmp_path: Path, score: Score) -> None:
    built = build_index(ITEM_VECTORS[:3000], score=score, queries=ASKED, flat_most=1000)
    save_index(built, tmp_path)
    loaded = load_index(tmp_path)
    assert loaded.facts == built.facts
    assert search(loaded, ASKED, 20).item_rows.tolist() == search(built, ASKED, 20).item_rows.tolist()
    assert recall(loaded, 20)[0] >= 0.99


def test_lists_of_another_run_are_refused(tmp_path: Path) -> None:
    save_index(build_index(ITEM_VECTORS[:3000], flat_most=1000), tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    save_index(build_index(ITEM_VECTORS[:2000], flat_most=1000), tmp_path)
    (tmp_path / FACTS).write_text(json.dumps(facts))
    np.save(tmp_path / VECTORS, ITEM_VECTORS[:3000])
    with pytest.raises(RunError, match=r"holds 2000 x 16 vectors in .* speaks of 3000 x 16 .* two runs"):
        load_index(tmp_path)
    (tmp_path / LISTS).unlink()
    with pytest.raises(RunError, match="cannot be read as lists"):
        load_index(tmp_path)


def test_a_loaded_index_is_a_mapped_file_and_no_copy(listed: Index, tmp_path: Path) -> None:
    save_index(listed, tmp_path)
    vectors = load_index(tmp_path).vectors
    assert not vectors.flags.owndata
    assert not vectors.flags.writeable


# --- filters that are kept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [1, 5, 60])
def test_a_filter_that_is_kept_answers_as_its_mask_does(listed: Index, lines: int) -> None:
    filters = Filters(pa.table({"language": ITEM_LANGUAGE}), listed.vectors)
    for text, mask in (("language = 3", ITEM_LANGUAGE == 3), ("language < 5", ITEM_LANGUAGE < 5)):
        kept = search(listed, ASKED[:lines], 20, allowed=filters.eligible(text))
        assert kept.item_rows.tolist() == search(listed, ASKED[:lines], 20, allowed=mask).item_rows.tolist()
        fewer = filters.eligible(text).without(kept.item_rows[0, :10])
        mask = mask & ~np.isin(np.arange(ITEMS), kept.item_rows[0, :10])
        assert search(listed, ASKED[:lines], 20, allowed=fewer).item_rows.tolist() == (
            search(listed, ASKED[:lines], 20, allowed=from_mask(mask)).item_rows.tolist()
        )
