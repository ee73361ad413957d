import copy
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from tests.recipe.drafted import ASKED, changed, refusal, write
from twofold.recipe.load import load_recipe
from twofold.recipe.messages import REMOVED, RENAMED, problems_of
from twofold.recipe.schema import Recipe


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("retriever.dimm", 3, "retriever.dimm: does not exist — nearest: dim; what may stand here: kind, dim, hidden"),
        (
            "features.user.0.max_lenght",
            3,
            "features.user.0.max_lenght: does not exist — nearest: max_length; what may stand here: kind, events",
        ),
        ("trian", {}, "trian: does not exist — nearest: train; what may stand here: name, about, data"),
        ("data.kind", "tables", "data.kind: 'tables' does not exist — nearest: table; choose from: table"),
        ("prepare.split.kind", "tempral", "prepare.split.kind: tempral does not exist — nearest: temporal"),
        ("prepare.split", {"test": 1}, "prepare.split.kind: is missing — kinds: temporal, last_days, last_n"),
        (
            "retriever.kind",
            "wals",
            "retriever.kind: wals does not exist — nearest: ials; choose from: two_tower, best, ials",
        ),
        ("prepare.filters.1.kind", "user", "prepare.filters.1.kind: user does not exist — nearest: users"),
        ("prepare.filters.0", {"kind": "items"}, "prepare.filters.0.min_events: is missing"),
        (
            "features.user.0",
            {"kind": "history"},
            "features.user.0.events: is missing — choose from: positives, negatives",
        ),
        (
            "features.user.0.events",
            "positive",
            "'positive' does not exist — nearest: positives; choose from: positives,",
        ),
        ("features.user.0.max_length", 0, "features.user.0.max_length: is 0 — must be at least 1"),
        ("retriever.score", {"kind": "cosine", "temperature": 0}, "score.temperature: is 0 — must be above 0"),
        ("recommend_k", 1001, "recommend_k: is 1001 — must be at most 1000"),
        ("retriever.dim", "wide", "retriever.dim: is 'wide' — must be a whole number"),
        ("retriever.dim", 1.5, "retriever.dim: is 1.5 — must be a whole number"),
        ("retriever.hidden", 64, "retriever.hidden: is 64 — must be a list"),
        ("retriever.hidden", [64, 0], "retriever.hidden.1: is 0 — must be at least 1"),
        ("train.learning_rate", ".inf", "must be a"),
        ("train", None, "train: is None — must be a mapping"),
        ("train.loss", "bce", "train.loss: is 'bce' — write {kind: …}; kinds: in_batch_softmax, sampled_softmax,"),
        ("data.columns", ["user_id"], "data.columns: is ['user_id'] — must be a mapping"),
        (
            "prepare.labels",
            {"wtg": {"kind": "wgt"}},
            "prepare.labels.wtg.kind: wgt does not exist — nearest: wtg; choose from: wtg, pcc, quantile",
        ),
        ("prepare.labels", {"wtg": {"kind": "quantile", "n": 0}}, "prepare.labels.wtg.n: is 0 — must be at least 1"),
        (
            "prepare.labels",
            {"below": {"kind": "below_mean", "of": "x"}},
            "below.of: is now prepare.labels.below.column",
        ),
        (
            "index",
            {"recent_counts": {"likes": {"events": "positive", "days": 2}}},
            "likes.events: 'positive' does not exist — nearest: positives; choose from: events, positives, negatives",
        ),
        (
            "features.item.1",
            {"kind": "bag", "column": "tags", "sep": ""},
            "features.item.1.sep: is '' — its number of characters must be at least 1",
        ),
        (
            "rerank",
            {"rules": [{"kind": "pin", "item": 1.5, "place": 1}]},
            "rerank.rules.0.item: is 1.5 — must be text; put it in quotation marks, or must be a whole number",
        ),
        ("features.item", [], "features.item: is [] — must hold at least 1"),
        ("features.item.1", {"kind": "id"}, "features: the item tower reads 'id' twice; delete one"),
        (
            "features.item.1",
            {"kind": "category", "column": "id"},
            "features: the item tower has two features called 'id', of kind: id and of kind: category; delete one, or "
            "rename the column, as data.columns: {id_of_log: id}",
        ),
        ("name", "No Good", "name: is 'No Good' — Name of the run's folder: lower-case letters"),
        ("name", 5, "name: is 5 — must be text; put it in quotation marks"),
        ("data.events", 5, "data.events: is 5 — must be a path"),
        ("prepare.split.train.first", "2022-02-30", "train.first: is '2022-02-30' — must be a day such as 2022-05-08"),
        (
            "prepare.split.train.end",
            "2022-04-09",
            "prepare.split.train: the window is empty: first 2022-04-09 must lie",
        ),
        ("prepare.split.test.first", "2022-05-07", "prepare.split: windows overlap: test.first is 2022-05-07, but"),
        ("prepare.positive", "(SELECT 1)", "prepare.positive: A query cannot be part of a rule. Allowed are"),
        ("prepare.positive", "liked OR read_text('x')", "Rule: liked OR read_text('x')"),
        ("prepare.negative", "watch_s", None),
        ("prepare.negative", "watch_s + 1", "prepare.negative: It has a number where a condition is needed. Rule:"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(
    tmp_path: Path, field: str, value: Any, message: str | None
) -> None:
    path = write(tmp_path / "r.yaml", changed(field, value))
    if message is None:
        load_recipe(path)
    else:
        said = refusal(path)
        assert said.startswith(f"{path}: ")
        assert message in said


def test_a_missing_field_says_what_it_is_for(tmp_path: Path) -> None:
    tree = copy.deepcopy(ASKED)
    del tree["prepare"]["positive"], tree["data"]["events"]
    said = refusal(write(tmp_path / "r.yaml", tree))
    assert "prepare.positive: is missing — " in said
    assert "data.events: is missing — Path of the events: a file (.parquet, .pq, .csv" in said


def test_every_problem_has_its_own_line(tmp_path: Path) -> None:
    tree = changed("retriever.dimm", 3, changed("train.epochs", 0, changed("features.user.0.max_length", "x")))
    lines = refusal(write(tmp_path / "r.yaml", tree)).splitlines()
    fields = [line.removeprefix(f"{tmp_path / 'r.yaml'}: ").split(":")[0] for line in lines]
    assert fields == ["features.user.0.max_length", "retriever.dimm", "train.epochs"]


def sections() -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Recipe]
    while waiting:
        section = waiting.pop()
        if section.__name__ not in found:
            found[section.__name__] = section
            for field in section.model_fields.values():
                waiting += [part for part in nested(field.annotation) if issubclass(part, BaseModel)]
    return found


def nested(annotation: Any) -> list[type]:
    parts = [each for member in get_args(annotation) for each in nested(member)]
    return parts + ([annotation] if isinstance(annotation, type) and not get_args(annotation) else [])


@pytest.mark.parametrize(
    ("section", "old", "new"), [(section, old, new) for section, keys in RENAMED.items() for old, new in keys.items()]
)
def test_a_renamed_key_is_answered_by_its_new_name(section: str, old: str, new: str) -> None:
    part = sections()[section]
    assert old not in part.model_fields
    assert new in part.model_fields
    with pytest.raises(ValidationError) as refused:
        part.model_validate({old: 1})
    assert f"{old}: is now {new}" in map(str, problems_of(refused.value, part))


def test_a_renamed_key_is_named_with_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", changed("features.user.0.last", 3, changed("retriever.per", "language")))
    assert refusal(path).splitlines() == [
        f"{path}: features.user.0.last: is now features.user.0.max_length",
        f"{path}: retriever.per: is now retriever.separate_towers_by",
    ]


def test_a_removed_key_is_answered_by_what_to_write(tmp_path: Path) -> None:
    assert all(key not in sections()[section].model_fields for section, keys in REMOVED.items() for key in keys)
    kind = {"kind": "sequence", "events": "negatives"}
    path = write(tmp_path / "r.yaml", changed("features.user.0", kind))
    assert refusal(path).splitlines() == [
        f"{path}: features.user.0.events: was removed — a sequence holds positives: delete the key; negatives are "
        f"read by {{kind: history, events: negatives}}"
    ]
