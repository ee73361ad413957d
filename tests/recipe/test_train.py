"""Training settings that cannot work are refused before any data is read, with what to write instead."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.recipe.drafted import ASKED
from twofold.recipe.schema import Recipe


def taught(train: dict[str, Any], retriever: dict[str, Any] | None = None) -> Recipe:
    return Recipe.model_validate(ASKED | {"retriever": {"kind": "two_tower", **(retriever or {})}, "train": train})


def recipe(retriever: dict[str, Any], loss: dict[str, Any], **prepare: Any) -> Recipe:
    return Recipe.model_validate(
        ASKED
        | {"prepare": ASKED["prepare"] | prepare}
        | {"retriever": {"kind": "two_tower", **retriever}, "train": {"loss": loss}}
    )


PER = {"separate_towers_by": "language"}
DISTANCE = {"score": {"kind": "negative_distance"}}
UNIT_DOT = {"score": {"kind": "dot"}, "output_norm": "l2"}
TARGET = {"target": "LEAST(watch_s, 3)"}


@pytest.mark.parametrize(
    ("retriever", "loss", "prepare", "message"),
    [
        ({}, {"kind": "regression"}, {}, r"prepare.target, which the recipe does not define.*or choose kind: bce"),
        (DISTANCE, {"kind": "bce"}, {}, r"never above 0, so train.loss bce cannot predict a positive.*kind: dot"),
        (DISTANCE, {"kind": "regression"}, TARGET, r"never above 0, so train.loss regression"),
        ({"dropout": 0.1}, {"kind": "bce"}, {}, r"dropout acts on hidden layers, and there are none: write hidden: "),
        (
            {"start_from": "ials"},
            {"kind": "bpr"},
            {},
            r"start_from: ials needs the hyperparameters of iALS, which only kind: best chooses\. Write kind: best",
        ),
        (
            DISTANCE | PER,
            {"kind": "bpr"},
            {},
            r"separate_towers_by: language .*negative_distance is not one\. Write score: ",
        ),
        (
            {"kind": "best", "route_users": True} | PER,
            {"kind": "in_batch_softmax"},
            {},
            r"route_users: true needs kind: two_tower, because kind: best may serve .*Write kind: two_tower, or delete",
        ),
        ({"kind": "ials"} | PER, {"kind": "bpr"}, {}, r"retriever\.ials\.separate_towers_by\s+Extra inputs"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    retriever: dict[str, Any], loss: dict[str, Any], prepare: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(retriever, loss, **prepare)


@pytest.mark.parametrize(
    ("retriever", "loss", "prepare"),
    [
        ({}, {"kind": "bce", "gamma": 2}, {}),
        ({"score": {"kind": "dot"}, "output_norm": "batch_norm"}, {"kind": "bce"}, {}),
        ({"score": {"kind": "dot"}}, {"kind": "regression", "error": "mse"}, TARGET),
        (DISTANCE, {"kind": "in_batch_softmax", "log_q": "corrected", "uniform_negatives": 100}, {}),
        (DISTANCE, {"kind": "bpr"}, {}),
        (UNIT_DOT, {"kind": "full_softmax"}, {}),
        ({"hidden": [8], "dropout": 0.1}, {"kind": "sampled_softmax"}, {}),
    ],
)
def test_what_can_be_is_not(retriever: dict[str, Any], loss: dict[str, Any], prepare: dict[str, Any]) -> None:
    assert recipe(retriever, loss, **prepare).train.loss.kind == loss["kind"]


@pytest.mark.parametrize(
    ("retriever", "words"),
    [
        # sigmoid(1) = 1 / (1 + exp(-1)) = .73
        (UNIT_DOT, ("at most 1 in the loss", "probability above 0.73", "temperature: 0.1")),
        ({"score": {"kind": "cosine", "temperature": 2}}, ("at most 0.5 in the loss", "probability above 0.62")),
        ({"score": {"kind": "dot"}}, ()),
        ({"score": {"kind": "cosine", "temperature": 0.1}}, ()),
    ],
)
def test_bce_on_a_bounded_score_is_trained_with_a_warning(retriever: dict[str, Any], words: tuple[str, ...]) -> None:
    found = " ".join(recipe(retriever, {"kind": "bce"}).warnings)
    assert bool(found) == bool(words)
    assert all(word in found for word in words)


@pytest.mark.parametrize(
    ("retriever", "train", "message"),
    [
        ({}, {"batch_size": 1}, "batch_size is 1, and in_batch_softmax compares the items of a batch: write 2 or more"),
        (
            {"output_norm": "batch_norm", "score": {"kind": "dot"}},
            {"batch_size": 1, "loss": {"kind": "bce"}},
            "batch_norm standardizes over a batch, and train.batch_size is 1: write 2 or more, or output_norm: none",
        ),
    ],
)
def test_a_batch_of_one_is_refused_where_its_examples_are_compared(
    retriever: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        taught(train, retriever)
    assert taught({"batch_size": 1, "loss": {"kind": "bce"}, "optimizer": "sgd"}).train.batch_size == 1


@pytest.mark.parametrize(
    ("user", "item", "message"),
    [
        (
            {"kind": "sequence", "num_heads": 3},
            {"kind": "id"},
            "num_heads: 3 needs a retriever.dim that is a multiple of 6",
        ),
        (
            {"kind": "sequence"},
            {"kind": "category", "column": "creator"},
            "positives_sequence shares the embedding of the item tower's id, and that tower reads none: add {kind: id}",
        ),
        (
            {"kind": "history", "events": "positives", "share_item_embedding": True, "vectors": "look"},
            {"kind": "id"},
            "vectors: look is read in place of the embedding table of ids: delete vectors or share_item_embedding",
        ),
    ],
)
def test_a_history_that_cannot_be_read_so_is_refused(user: dict[str, Any], item: dict[str, Any], message: str) -> None:
    features = {"user": [user], "item": [item], "vectors": {"look": {}}}
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(ASKED | {"features": features, "retriever": {"kind": "two_tower", "dim": 64}})


HARD: dict[str, Any] = {"skip": 100, "top": 500}


@pytest.mark.parametrize(
    ("train", "retriever", "message"),
    [
        ({"hard_negatives": {"skip": 500}}, {}, r"skip is 500 and top is 500: no rank is left. Write a top above skip"),
        (
            {"hard_negatives": HARD, "loss": {"kind": "bce"}},
            {},
            r"a loss of kind bce has no drawn negatives: choose kind: ",
        ),
        (
            {"hard_negatives": HARD, "loss": {"kind": "full_softmax"}},
            {},
            r"a loss of kind full_softmax has all items as negatives: choose .* or delete hard_negatives",
        ),
        (
            {"micro_batch_size": 1024},
            {},
            r"micro_batch_size is 1024 and batch_size is 1024: a micro-batch must be smaller",
        ),
        (
            {"micro_batch_size": 64},
            {"output_norm": "batch_norm", "score": {"kind": "dot"}},
            r"batch_norm standardizes over the examples encoded together, so train.micro_batch_size would change",
        ),
    ],
)
def test_what_cannot_be_mined_or_parted_is_refused(
    train: dict[str, Any], retriever: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        taught(train, retriever)


def test_what_can_be_mined_and_parted_is_not() -> None:
    for loss in ({"kind": "in_batch_softmax"}, {"kind": "sampled_softmax"}, {"kind": "bpr"}):
        assert taught({"hard_negatives": {}, "micro_batch_size": 64, "loss": loss}).train.hard_negatives is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [("group_by", ["city"]), ("adversary", {}), ("hard_negatives", {"top": 20, "skip": 5})],
)
def test_towers_apart_are_not_taught_by_what_looks_at_all_rows(field: str, value: Any) -> None:
    with pytest.raises(
        ValidationError,
        match=rf"separate_towers_by: language trains pairs of towers separately, and train\.{field} .*Delete one",
    ):
        taught({field: value}, PER)
