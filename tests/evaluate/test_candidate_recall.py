"""Recall of the candidates of several sources: what they bring, and that a loss is said."""

import numpy as np
import pytest

from tests.evaluate.windows import window
from twofold.candidate_sources import merge_sources
from twofold.evaluate.candidate_recall import evaluate_sources

USERS, TOP, QUOTA = 40, 10, 4
NAMES = ("retriever", "popularity of 2 days")


def section_where(positive_of, *, source):
    """Returns the section for users to whom the retriever lists the items 0 to 9; each likes one, `positive_of` it."""
    judged = window(seen=[[]] * USERS, relevant=[[positive_of(user)] for user in range(USERS)], num_items=30)
    retrieved, listed = (np.tile(np.asarray(rows), (USERS, 1)) for rows in (np.arange(TOP), source))
    return evaluate_sources(judged, merge_sources(retrieved, [listed], (QUOTA,), top=TOP), NAMES)


def test_a_source_that_pushes_out_what_users_like_is_said_to_lose_recall():
    section = section_where(lambda user: 9 if user % 2 else 0, source=np.arange(20, 30))
    assert section.retriever.value == 1.0
    assert section.union.value == 0.5
    assert section.minus.high < 0
    assert "−0.500 [" in section.sentence
    assert section.sentence.endswith("brought 0.000. The sources lose recall: lower their quotas.")


def test_a_loss_that_may_be_chance_is_shown_without_advice():
    section = section_where(lambda user: 9 if user == 0 else 0, source=np.arange(20, 30))
    assert section.minus.value == pytest.approx(-1 / USERS)
    assert "−0.025 [" in section.sentence
    assert "lose recall" not in section.sentence


def test_a_source_that_finds_what_the_retriever_misses_gains():
    section = section_where(lambda user: 20 if user % 2 else 0, source=np.arange(20, 30))
    assert (section.retriever.value, section.union.value) == (0.5, 1.0)
    assert [line.recall.value for line in section.lines] == [0.5, 0.5]
    assert [line.places for line in section.lines] == [TOP - QUOTA, QUOTA]
    assert "+0.500 [" in section.sentence
