"""Recommendations are Arrow tables: pandas and polars read them, and their columns can be passed as ids."""

import polars
import pytest

import twofold

pytestmark = pytest.mark.slow  # a whole run


@pytest.fixture(scope="module")
def recommender(solved):
    return twofold.load(solved.folder)


def test_pandas_and_polars_read_recommendations(recommender):
    table = recommender.recommend([3, 7], k=4)
    assert table.to_pandas()["user_id"].tolist() == [3] * 4 + [7] * 4
    assert polars.from_arrow(table)["rank"].to_list() == [1, 2, 3, 4] * 2


def test_their_columns_can_be_passed_as_ids(recommender):
    table = recommender.recommend([3, 7], k=4)
    frame = polars.DataFrame({"user_id": [3, 7]})
    assert recommender.recommend(frame["user_id"].to_arrow(), k=4).equals(table)
    assert recommender.recommend(table.to_pandas()["user_id"].unique(), k=4).equals(table)
    few = recommender.recommend([3], k=4, items=table["item_id"].slice(0, 2))
    assert sorted(few["item_id"].to_pylist()) == sorted(table["item_id"].to_pylist()[:2])
