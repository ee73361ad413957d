"""New towers whose embeddings of items begin as the vectors of another model."""

import numpy as np
import pytest
import torch

from twofold.dataset.features import FeatureState
from twofold.model.encoder import INITIAL_STD
from twofold.model.two_tower import TwoTower, build_two_tower
from twofold.model.warm_start import start_from
from twofold.recipe import retriever as retriever_recipe
from twofold.recipe.features import Features

ITEMS, DIM = 10, 8
VECTORS = np.random.default_rng(0).normal(2, 5, (ITEMS + 2, DIM)).astype(np.float32)
VECTORS[[3, ITEMS, ITEMS + 1]] = 0  # an item without likes, and two that the training window does not have


def state(*, share: bool = False, buckets: int | None = None) -> FeatureState:
    user = [
        {"kind": "history", "events": "positives", "share_item_embedding": share},
        {"kind": "history", "events": "negatives"},
    ]
    features = Features.model_validate({"user": user, "item": [{"kind": "id", "num_buckets": buckets}]})
    return FeatureState(features, "UTC", ITEMS, {}, {})


def started(of: FeatureState, *, dim: int = DIM) -> tuple[TwoTower, TwoTower]:
    """Returns a new model, and the same one after the start."""
    recipe = retriever_recipe.TwoTower(kind="two_tower", dim=dim)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_two_tower(recipe, of, {}))
    start_from(models[1], of, VECTORS)
    return models[0], models[1]


def tables(model: TwoTower) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def test_ids_and_positives_begin_as_the_vectors_and_all_else_as_it_was() -> None:
    new, warm = (tables(model) for model in started(state()))
    changed = {name for name in new if not torch.equal(new[name], warm[name])}
    assert changed == {"item.tables.id.weight", "user.tables.positives.weight"}
    known = [row for row in range(ITEMS) if row != 3]
    for name in changed:
        rows = warm[name][[1 + row for row in known]]
        assert rows.std(correction=0).item() == pytest.approx(INITIAL_STD, rel=1e-5)
        ratio = rows.numpy() / VECTORS[known]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
        assert torch.equal(warm[name][[0, 4]], new[name][[0, 4]])


def test_a_shared_table_begins_once_and_another_width_not_at_all() -> None:
    new, warm = (tables(model) for model in started(state(share=True)))
    assert {name for name in new if not torch.equal(new[name], warm[name])} == {"item.tables.id.weight"}
    new, warm = (tables(model) for model in started(state(), dim=DIM // 2))
    assert all(torch.equal(new[name], warm[name]) for name in new)


def test_of_items_that_share_a_row_the_first_gives_its_vector() -> None:
    _, warm = started(state(buckets=4))
    rows = warm.item.tables["id"].weight.detach()[1:].numpy()
    ratio = rows / VECTORS[[0, 1, 2, 7]]  # item 3 has no vector, so item 7 gives that of the row of both
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)


def test_a_model_that_knows_no_item_changes_nothing() -> None:
    new, same = started(state())
    before = tables(new)
    start_from(new, state(), np.zeros_like(VECTORS))
    assert all(torch.equal(before[name], weight) for name, weight in tables(new).items())
    assert not torch.equal(before["item.tables.id.weight"], tables(same)["item.tables.id.weight"])
