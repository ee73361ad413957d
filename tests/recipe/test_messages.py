import copy
from pathlib import Path
from typing import Any

import pytest

from tests.recipe.drafted import ASKED, changed, refusal, write
from twofold.recipe.load import load_recipe


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("retriever.dimm", 3, "retriever.dimm: does not exist — nearest: dim; what may stand here: kind, dim, hidden"),
        (
            "features.user.0.lst",
            3,
            "features.user.0.lst: does not exist — nearest: last; what may stand here: kind, of",
        ),
        ("trian", {}, "trian: does not exist — nearest: train; what may stand here: name, about, data"),
        ("data.kind", "tables", "data.kind: 'tables' does not exist — nearest: table; choose from: table"),
        ("prepare.split.kind", "tempral", "prepare.split.kind: tempral does not exist — nearest: temporal"),
        ("prepare.split", {"test": 1}, "prepare.split.kind: is missing — kinds: temporal, last_n"),
        ("retriever.kind", "wals", "retriever.kind: wals does not exist — nearest: ials; choose from: two_tower, ials"),
        ("prepare.filters.1.kind", "user", "prepare.filters.1.kind: user does not exist — nearest: users"),
        ("prepare.filters.0", {"kind": "items"}, "prepare.filters.0.min_events: is missing"),
        ("features.user.0", {"kind": "history"}, "features.user.0.of: is missing — choose from: positives, negatives"),
        ("features.user.0.of", "positive", "'positive' does not exist — nearest: positives; choose from: positives,"),
        ("features.user.0.last", 0, "features.user.0.last: is 0 — must be at least 1"),
        ("retriever.score", {"kind": "cosine", "temperature": 0}, "score.temperature: is 0 — must be above 0"),
        ("recommend_k", 1001, "recommend_k: is 1001 — must be at most 1000"),
        ("retriever.dim", "wide", "retriever.dim: is 'wide' — must be a whole number"),
        ("retriever.dim", 1.5, "retriever.dim: is 1.5 — must be a whole number"),
        ("retriever.hidden", 64, "retriever.hidden: is 64 — must be a list"),
        ("retriever.hidden", [64, 0], "retriever.hidden.1: is 0 — must be at least 1"),
        ("train.learning_rate", ".inf", "must be a"),
        ("train", None, "train: is None — must be a mapping"),
        ("features.item", [], "features.item: is [] — must hold at least 1"),
        ("features.item.1", {"kind": "id"}, "features: the item tower reads 'id' twice; delete one"),
        ("name", "No Good", "name: is 'No Good' — Names the run's folder: lower-case letters"),
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
    asked = copy.deepcopy(ASKED)
    del asked["prepare"]["positive"], asked["data"]["events"]
    said = refusal(write(tmp_path / "r.yaml", asked))
    assert "prepare.positive: is missing — " in said
    assert "data.events: is missing — A file, or a folder of files of one kind." in said


def test_every_problem_has_its_own_line(tmp_path: Path) -> None:
    asked = changed("retriever.dimm", 3, changed("train.epochs", 0, changed("features.user.0.last", "x")))
    lines = refusal(write(tmp_path / "r.yaml", asked)).splitlines()
    fields = [line.removeprefix(f"{tmp_path / 'r.yaml'}: ").split(":")[0] for line in lines]
    assert fields == ["features.user.0.last", "retriever.dimm", "train.epochs"]
