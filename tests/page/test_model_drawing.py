"""Drawings of models: which part is in which column, above or below which."""

from twofold.page.model_drawing import drawings_of
from twofold.tables import ModelPart


def part(tower, name, parameters):
    return ModelPart(tower, name, "8 → 4", parameters)


def test_a_tower_has_its_inputs_above_its_layers_and_both_meet_in_the_score():
    parts = [part("user", "positives", 5), part("item", "id", 7), part("item", "linear", 11)]
    (drawing,) = drawings_of(parts, retriever_score="cosine")
    user, item = drawing.towers
    assert (user.name, user.inputs, user.layers) == ("user", (parts[0],), ())
    assert (item.name, item.inputs, item.layers) == ("item", (parts[1],), (parts[2],))
    assert (drawing.title, drawing.score, drawing.parameters, drawing.joint) == ("Retriever", "cosine", 23, ())


def test_a_ranker_is_drawn_after_the_retriever():
    towers = [part("user", "id", 1), part("ranker, user", "hour", 2), part("ranker, item", "age", 4)]
    retriever, ranker = drawings_of([*towers, part("ranker", "linear", 8)], retriever_score="cosine")
    assert (retriever.parameters, ranker.title, ranker.parameters) == (1, "Ranker", 14)
    assert [tower.name for tower in ranker.towers] == ["user", "item"]
    assert [each.parameters for each in ranker.joint] == [8]


def test_a_model_without_parts_has_no_drawing():
    assert drawings_of([], retriever_score="cosine") == ()
