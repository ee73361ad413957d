"""Answers are Arrow: pandas and polars read them, and their columns may be asked with."""

import polars
import pytest

import twofold

pytestmark = pytest.mark.slow  # a whole run


@pytest.fixture(scope="module")
def recommender(checkerboard, tmp_path_factory):
    return twofold.load(twofold.run(checkerboard, runs=tmp_path_factory.mktemp("runs")).folder)


def test_pandas_and_polars_read_an_answer(recommender):
    answer = recommender.recommend([3, 7], k=4)
    assert answer.to_pandas()["user_id"].tolist() == [3] * 4 + [7] * 4
    assert polars.from_arrow(answer)["rank"].to_list() == [1, 2, 3, 4] * 2


def test_columns_of_either_may_be_asked_with(recommender):
    answer = recommender.recommend([3, 7], k=4)
    frame = polars.DataFrame({"user_id": [3, 7]})
    assert recommender.recommend(frame["user_id"].to_arrow(), k=4).equals(answer)
    assert recommender.recommend(answer.to_pandas()["user_id"].unique(), k=4).equals(answer)
    few = recommender.recommend([3], k=4, items=answer["item_id"].slice(0, 2))
    assert sorted(few["item_id"].to_pylist()) == sorted(answer["item_id"].to_pylist()[:2])
