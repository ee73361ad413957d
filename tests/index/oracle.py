"""Searches by definition, and vectors to search: for the tests of exact and of approximate search."""

import numpy as np

from twofold.index.item_index import Index
from twofold.index.score_kinds import pair_scores
from twofold.ragged import Ragged
from twofold.topk import TopK, exclude, top_k

LANGUAGES = 16


def unit_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, dim), np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def score_everything(index: Index, queries: np.ndarray, k: int, **restrict: object) -> TopK:
    """The definition of a search: all scores, pair by pair, then the one tie rule."""
    scores = np.stack([pair_scores(index.vectors, query, index.score) for query in queries])
    excluded = restrict.get("excluded")
    if excluded is not None:
        exclude(scores, excluded)
    allowed = restrict.get("allowed")
    return top_k(scores, k, allowed=None if allowed is None else allowed[None])


def ragged(lists: list[list[int]]) -> Ragged:
    values = np.array([item for each in lists for item in each], np.int64)
    return Ragged(values, np.cumsum([0, *(len(each) for each in lists)]))


def language_vectors(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around five centres in each of 16 languages, and the languages: a filter by language is correlated
    with the query.
    """
    rng = np.random.default_rng(seed)
    of_language = np.random.default_rng(7).standard_normal((LANGUAGES, 1, 16))
    centres = of_language + 0.6 * np.random.default_rng(8).standard_normal((LANGUAGES, 5, 16))
    language = rng.integers(0, LANGUAGES, count)
    vectors = centres[language, rng.integers(0, 5, count)] + 0.4 * rng.standard_normal((count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), language
