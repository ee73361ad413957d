"""The ranker's network: batch equals single, the served graphs equal the module."""

from copy import deepcopy

import numpy as np
import onnxruntime
import pytest
import torch

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import query_batches
from twofold.dataset.build import build_dataset
from twofold.model.ranker import (
    ABOUT,
    ITEMS,
    PAIR_GRAPH,
    USER_GRAPH,
    EncodedUsers,
    Scales,
    build_ranker,
    describe_ranker,
    encode_items,
    load_ranker_data,
    rank_scores,
    save_ranker,
)
from twofold.model.weights import encode
from twofold.recipe.ranker import Mlp

WIDE = 5


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranker")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_ranker_data(folder / "dataset", FEATURES, FEATURES)


@pytest.fixture(scope="module")
def ranker(arrays):
    torch.manual_seed(0)
    heads = ({"outcome": "long"}, {"outcome": "like"})
    config = Mlp.model_validate({"kind": "mlp", "dim": 8, "hidden": (16, 4), "dropout": 0.3, "heads": heads})
    made = build_ranker(config, arrays.ranker.features, arrays.ranker.vectors, vector_dim=WIDE)
    made.fit_heads([0.3, 0.02])
    for last in (made.layers[-1], made.heads):
        torch.nn.init.normal_(last.weight)
    made.fit_scales(Scales(score_mean=0.5, score_std=2.0, rank_mean=3.0, rank_std=1.5))
    return made.eval()


@pytest.fixture(scope="module")
def asking(arrays, ranker):
    """Users who ask late, their vectors, and candidates at places of their own."""
    draw = np.random.default_rng(0)
    users, items = len(arrays.ranker.users), len(arrays.ranker.items)
    at = np.full(users, int(arrays.ranker.events.at.max()) + 1)
    encoded = encode(ranker.user, query_batches(arrays.ranker, np.arange(users), at))
    vectors, user_vectors = (draw.standard_normal((count, WIDE)).astype(np.float32) for count in (items, users))
    side = encode_items(ranker, arrays.ranker, vectors, int(at[0]))
    item_rows = np.stack([draw.permutation(items)[:7] for _ in range(users)])
    places = np.tile(np.arange(7), (users, 1))[:, :, None]
    return encoded, user_vectors, side, item_rows, places


def test_one_request_is_scored_as_in_a_batch(ranker, asking):
    users, user_vectors, side, item_rows, places = asking
    whole = rank_scores(ranker, side, EncodedUsers(users, user_vectors), item_rows, places)
    for line in range(len(users)):
        one = slice(line, line + 1)
        alone = rank_scores(ranker, side, EncodedUsers(users[one], user_vectors[one]), item_rows[one], places[one])
        np.testing.assert_allclose(alone, whole[one], rtol=1e-4, atol=1e-5)
    turned = (np.ascontiguousarray(each[:, ::-1]) for each in (item_rows, places))
    last_first = rank_scores(ranker, side, EncodedUsers(users, user_vectors), *turned)
    np.testing.assert_allclose(last_first[:, ::-1], whole, rtol=1e-4, atol=1e-5)


def test_scores_read_score_and_place_as_they_were_standardised(ranker, asking):
    users, user_vectors, side, item_rows, places = asking
    further = rank_scores(ranker, side, EncodedUsers(users, user_vectors), item_rows, places + 50)
    assert (
        np.abs(further - rank_scores(ranker, side, EncodedUsers(users, user_vectors), item_rows, places)).max() > 1e-3
    )


def test_the_score_is_a_mean_of_relevance_and_the_retrievers_score(ranker, asking):
    users, user_vectors, side, item_rows, places = asking
    retrieved = (np.einsum("ud,uld->ul", user_vectors, side.vectors[item_rows]) - 0.5) / 2.0
    found = {}
    for share in (0.0, 0.25, 1.0):
        weighted = deepcopy(ranker)
        weighted.set_retriever_share(share)
        found[share] = rank_scores(weighted, side, EncodedUsers(users, user_vectors), item_rows, places)
    np.testing.assert_allclose(found[1.0], retrieved, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0.25], 0.75 * found[0.0] + 0.25 * retrieved, rtol=1e-4, atol=1e-5)
    assert np.abs(found[0.0] - retrieved).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_served_graphs_score_as_the_module_does(arrays, ranker, asking, tmp_path, share):
    ranker = deepcopy(ranker)
    ranker.set_retriever_share(share)
    users, user_vectors, side, item_rows, places = asking
    at = int(arrays.ranker.events.at.max()) + 1
    save_ranker(ranker, arrays, side.vectors, at=at, folder=tmp_path)
    assert (tmp_path / ABOUT).read_text().split() == ["{", '"top":', "100", "}"]
    tower, pairs = (onnxruntime.InferenceSession(tmp_path / name) for name in (USER_GRAPH, PAIR_GRAPH))
    (batch,) = query_batches(arrays.ranker, np.arange(len(users)), np.full(len(users), at))
    inputs = {given.name: batch[given.name].numpy() for given in tower.get_inputs()}
    (encoded,) = tower.run(["vector"], inputs)
    np.testing.assert_allclose(encoded, users, rtol=1e-4, atol=1e-5)
    items = np.load(tmp_path / ITEMS)
    np.testing.assert_array_equal(items, side.encoded)
    for length in (1, 7):
        rows = item_rows[:, :length]
        given = {
            "users": encoded,
            "items": items[rows],
            "user_vectors": user_vectors,
            "item_vectors": side.vectors[rows],
            "places": places[:, :length],
        }
        (scores,) = pairs.run(["scores"], given)
        expected = rank_scores(ranker, side, EncodedUsers(users, user_vectors), rows, places[:, :length])
        np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)


def test_the_drawing_lists_every_parameter(ranker):
    parts = describe_ranker(ranker)
    drawn = sum(part.parameters for part in parts)
    assert (
        drawn == sum(parameter.numel() for parameter in ranker.parameters()) - 1
    )  # retrieval_weight is one number, not drawn
    assert {part.tower for part in parts} == {"ranker, user", "ranker, item", "ranker"}
    assert [part.name for part in parts if part.tower == "ranker"] == [*["linear"] * 3, "long, like"]


def test_a_formula_reads_what_the_heads_say(ranker, asking):
    users, user_vectors, side, item_rows, places = asking

    def said(formula):
        return rank_scores(ranker.with_formula(formula), side, EncodedUsers(users, user_vectors), item_rows, places)

    np.testing.assert_array_equal(
        said("relevance"), rank_scores(ranker, side, EncodedUsers(users, user_vectors), item_rows, places)
    )
    chance = said('"like"')
    assert 0 < chance.min() < chance.max() < 1
    np.testing.assert_allclose(said('relevance - 2 * "like"'), said("relevance") - 2 * chance, rtol=1e-5, atol=1e-6)
    assert ranker.formula is None  # another's formula is its own


def test_heads_begin_as_the_mean_of_what_they_are_to_learn(arrays, asking):
    users, user_vectors, side, item_rows, places = asking
    config = Mlp.model_validate({"kind": "mlp", "dim": 8, "heads": [{"outcome": "long"}], "formula": "long"})
    made = build_ranker(config, arrays.ranker.features, arrays.ranker.vectors, vector_dim=WIDE)
    made.fit_heads([0.3])
    scores = rank_scores(made, side, EncodedUsers(users, user_vectors), item_rows, places)
    np.testing.assert_allclose(scores, 0.3, rtol=1e-5)
