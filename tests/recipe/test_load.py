import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recipe.drafted import ASKED, changed, refusal, write
from twofold.errors import RecipeError
from twofold.recipe.diff import Difference, recipe_differences, recipe_digest
from twofold.recipe.load import dump_recipe, load_recipe, recipe_schema
from twofold.recipe.schema import Recipe

# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_file_becomes_a_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "recipes" / "tiny.yaml", ASKED))
    assert (recipe.name, recipe.retriever.dim, recipe.train.epochs) == ("tiny", 32, 2)
    assert recipe.data.events == tmp_path / "data" / "events.parquet"


def test_days_may_be_written_bare_or_quoted(tmp_path: Path) -> None:
    quoted = write(tmp_path / "quoted.yaml", ASKED)
    bare = tmp_path / "bare.yaml"
    bare.write_text(quoted.read_text(encoding="utf-8").replace("'2022-05-07'", "2022-05-07"), encoding="utf-8")
    assert "'2022-05-07'" in quoted.read_text(encoding="utf-8")
    assert load_recipe(bare).prepare == load_recipe(quoted).prepare


def test_a_relative_file_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "recipes" / "tiny.yaml", ASKED)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path("recipes/tiny.yaml"), overrides=["data.events=elsewhere"])
    assert recipe.data.events == tmp_path / "elsewhere"
    assert load_recipe(Path("recipes/tiny.yaml")).data.events == tmp_path / "data" / "events.parquet"


def test_vectors_are_paths_too(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", changed("data.vectors", {"look": "look.npy"})))
    assert recipe.data.vectors == {"look": tmp_path / "look.npy"}
    assert recipe_digest(recipe) == recipe_digest(recipe_of(changed("data.vectors", {"look": "/elsewhere/look.npy"})))


def test_a_missing_file_names_its_neighbors(tmp_path: Path) -> None:
    write(tmp_path / "kuairand.yaml", ASKED)
    write(tmp_path / "world.yaml", ASKED)
    message = refusal(tmp_path / "kuairnd.yaml")
    assert f"Looked in {tmp_path} — nearest: kuairand; recipes there: kuairand.yaml, world.yaml" in message
    assert "is a folder, not a recipe" in refusal(tmp_path)
    assert "no *.yaml file is there" in refusal(tmp_path / "none" / "a.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: a\n  bad: [1,\n", r"r.yaml, line 2, column 6: mapping values are not allowed in this context"),
        (b"name: a\nname: b\n", r"r.yaml, line 2, column 1: the key name appears twice"),
        (b"train: {epochs: 1, epochs: 2}\n", r"line 1, column 20: the key epochs appears twice"),
        (b"1: a\n", r"line 1, column 1: a key must be text"),
        (b"[a]: a\n", r"line 1, column 1: a key must be text"),
        (b"<<: {a: 1}\n", r"a key must be text"),
        (b"a: &x 1\nb: *x\n", r"line 1, column 4: anchors \(&\), aliases \(\*\) and tags \(!\) are not read"),
        (b"b: *x\n", r"aliases"),
        (b"a: !!python/object/apply:os.system ['true']\n", r"line 1, column 4: .*tags"),
        (b"a: !!int x\n", r"tags \(!\) are not read"),
        (b"a: 1\n---\nb: 2\n", r"line 2, column 1: a second document begins"),
        (b"", r"holds nothing"),
        (b"# only\n", r"holds nothing"),
        (b"[1, 2]\n", r"holds no mapping — a recipe begins with name"),
        (b"\xff\xfe", r"is not UTF-8 text: byte 0"),
        (b"a: \x00\n", r"is not YAML: .*control characters"),
        (b"[" * 5000, r"is nested too deeply"),
        (b"{" * 5000, r"line 1, column 2: a key must be text"),
        (b"- " * 5000, r"line 1, column 131: is nested too deeply, in more than 64 levels"),
        (b"a: " + b"9" * 5000, r"line 1, column 4: a number that is too long: it has 5,000 digits"),
        (b"%YAML 1.1\n---\na: 1\n", r"directives \(%\) are not read"),
        (b"a" * 200_001, r"200,001 bytes; a recipe has at most 200,000"),
    ],
)
def test_what_is_not_a_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert "aliases" in refusal(path)  # followed, they would be ten thousand million values


# --- base -------------------------------------------------------------------------------------------------------------


def test_a_base_is_merged_under_the_file(tmp_path: Path) -> None:
    write(tmp_path / "bases" / "base.yaml", ASKED)
    child = write(
        tmp_path / "child.yaml",
        {
            "base": "bases/base.yaml",
            "name": "child",
            "retriever": {"dim": 96},
            "prepare": {"filters": []},
            "features": {"user": [{"kind": "time", "part": "hour"}]},
        },
    )
    recipe, base = load_recipe(child), load_recipe(tmp_path / "bases" / "base.yaml")
    assert recipe.name == "child"
    assert (recipe.retriever.dim, recipe.retriever.hidden) == (96, base.retriever.hidden)
    assert recipe.prepare.filters == ()
    assert [feature.kind for feature in recipe.features.user] == ["time"]
    assert recipe.features.item == base.features.item
    assert recipe.data == base.data, "a path of the base stays relative to the base"


def test_another_kind_starts_afresh(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", ASKED)
    table = {"kind": "table", "events": "log.parquet"}
    recipe = load_recipe(write(tmp_path / "child.yaml", {"base": "base.yaml", "data": table}))
    assert recipe.data.kind == "table"
    assert recipe.data.events == tmp_path / "log.parquet"


def test_a_base_of_a_base_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", ASKED)
    write(tmp_path / "b.yaml", {"base": "a.yaml"})
    said = refusal(write(tmp_path / "c.yaml", {"base": "b.yaml"}))
    assert "b.yaml has a base of its own, a.yaml — only one level is read" in said
    assert "base: is 5 — must be the path of another recipe" in refusal(write(tmp_path / "d.yaml", {"base": 5}))
    assert "gone.yaml does not exist" in refusal(write(tmp_path / "e.yaml", {"base": "gone.yaml"}))
    assert "self.yaml has a base of its own" in refusal(write(tmp_path / "self.yaml", {"base": "self.yaml"}))


def test_a_problem_is_laid_to_the_file_that_wrote_it(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", changed("retriever.dim", -1))
    child = write(tmp_path / "child.yaml", {"base": "base.yaml", "train": {"epochs": -1}})
    said = refusal(child, "features.user.0.max_length=-1").splitlines()
    assert said == [
        "--set features.user.0.max_length=-1: features.user.0.max_length: is -1 — must be at least 1",
        f"{base}: retriever.dim: is -1 — must be at least 1",
        f"{child}: train.epochs: is -1 — must be at least 1",
    ]


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml_and_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", ASKED)
    recipe = load_recipe(
        path,
        overrides=[
            "retriever.dim=96",
            "retriever.hidden=[128, 64]",
            "features.user.1.max_length=7",
            "prepare.positive=is_like = 1 OR x > 0.8",
            "train.learning_rate=1e-3",
            "retriever.dim=97",
            "features.item.0={kind: age}",
        ],
    )
    assert recipe.retriever.dim == 97
    assert recipe.retriever.hidden == (128, 64)
    assert [feature.model_dump().get("max_length") for feature in recipe.features.user] == [100, 7]
    assert recipe.prepare.positive == "is_like = 1 OR x > 0.8"
    assert recipe.train.learning_rate == 1e-3
    assert recipe.features.item[0].kind == "age"
    assert load_recipe(path).retriever.dim == 32


@pytest.mark.parametrize("rule", ["\"x\" = 'buy'", "'buy' = x", "x = 'a: b'", "x = 'buy' OR \"y z\" > 1", "x = 'a #1'"])
def test_a_rule_with_quotation_marks_needs_no_others(tmp_path: Path, rule: str) -> None:
    path = write(tmp_path / "r.yaml", ASKED)
    assert load_recipe(path, overrides=[f"prepare.positive={rule}"]).prepare.positive == rule


@pytest.mark.parametrize("text", ["#", "|", ">", "-", "| x", "C# shop #2", "#1 of all"])
def test_an_override_has_no_comments_and_no_blocks(tmp_path: Path, text: str) -> None:
    assert load_recipe(write(tmp_path / "r.yaml", ASKED), overrides=[f"about={text}"]).about == text


def test_a_log_in_place_of_a_recipe_is_answered_with_how_to_draft_one(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,2\n", encoding="utf-8")
    (tmp_path / "log.json").write_text(" " * 200_001, encoding="utf-8")
    for name, what in (("log.csv", "is a table, not a recipe"), ("log.json", "a recipe has at most 200,000")):
        said = refusal(tmp_path / name)
        assert what in said
        assert f"twofold recipe new --log {tmp_path / name}" in said


def test_a_rule_that_yaml_cannot_read_is_shown_in_quotation_marks(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for value in ("'buy' = event", "event: buy"):
        path.write_text(f"name: x\nprepare:\n  positive: {value}\n", encoding="utf-8")
        said = refusal(path)
        assert "line 3" in said
        assert "write it in quotation marks, its own ones doubled: positive: " in said
        mended = said.partition("doubled: ")[2]
        assert yaml.safe_load(mended) == {"positive": value}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("retriever.dimm=96", r"--set retriever.dimm=96: retriever.dimm: does not exist — nearest: dim"),
        ("retreiver.dim=96", r"retreiver: does not exist — nearest: retriever"),
        ("retriever.dim=wide", r"retriever.dim: is 'wide' — must be a whole number"),
        ("retriever.dim", r"cannot be read — write field=value"),
        ("=3", r"cannot be read"),
        ("a..b=3", r"cannot be read"),
        ("features.user.2.max_length=3", r"features.user has no element 2 — it has 2, counted from 0"),
        ("features.user.max_length=3", r"features.user has no element max_length"),
        ("name.x=3", r"name is 'tiny', which has no field x"),
        ("retriever.hidden=[1", r"--set retriever.hidden=\[1: its value begins as a list or mapping .* every bracket"),
        ("prepare.positive=EXISTS (SELECT 1)", r"prepare.positive: A query cannot be part"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    path = write(tmp_path / "r.yaml", ASKED)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, overrides=[override])


# --- digest, difference, text, schema ---------------------------------------------------------------------------------


def recipe_of(tree: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(tree)


def test_the_digest_is_of_what_is_asked_not_of_where_it_lies(tmp_path: Path) -> None:
    here = load_recipe(write(tmp_path / "here" / "recipes" / "r.yaml", ASKED))
    there = load_recipe(write(tmp_path / "there" / "recipes" / "r.yaml", changed("about", "other words")))
    assert here.data != there.data
    assert recipe_digest(here) == recipe_digest(there)
    assert recipe_digest(here) != recipe_digest(recipe_of(changed("retriever.dim", 33)))
    assert recipe_digest(here) != recipe_digest(recipe_of(changed("data.events", "../data/another.parquet")))


def differences(new: dict[str, Any], old: dict[str, Any] = ASKED) -> list[Difference]:
    before, after = recipe_of(old), recipe_of(new)
    found = recipe_differences(before, after)
    assert (not found) == (recipe_digest(before) == recipe_digest(after))
    return found


def test_differences_name_the_field() -> None:
    assert differences(changed("about", "other words")) == []
    assert differences(changed("data.events", "/elsewhere/events.parquet")) == []
    assert differences(changed("retriever.dim", 64)) == [Difference("retriever.dim", 32, 64, "changed")]
    assert differences(changed("retriever.hidden", [])) == [Difference("retriever.hidden", [64], [], "changed")]
    assert differences(changed("prepare.split.test.end", "2022-05-10")) == [
        Difference("prepare.split.test.end", "2022-05-09", "2022-05-10", "changed")
    ]
    assert differences(changed("prepare.negative", "NOT long_view")) == [
        Difference("prepare.negative", None, "NOT long_view", "changed")
    ]
    assert differences(changed("prepare.filters.0.min_events", 6)) == [
        Difference("prepare.filters.0.min_events", 5, 6, "changed")
    ]


def test_a_feature_is_known_by_its_name_not_by_its_place() -> None:
    first, second = ASKED["features"]["item"]
    age = {"kind": "age", "hidden_dim": 0}
    added = Difference("features.item.age", None, age, "added")
    assert differences(changed("features.item", [age, first, second])) == [added]
    (removed,) = differences(changed("features.item", [second]))
    assert (removed.field, removed.new, removed.kind) == ("features.item.id", None, "removed")
    assert differences(changed("features.user.1.max_length", 9)) == [
        Difference("features.user.negatives.max_length", 50, 9, "changed")
    ]
    assert differences(changed("features.item", [second, first])) == [
        Difference("features.item (order)", ["id", "author_id"], ["author_id", "id"], "changed")
    ]
    bag = {"kind": "bag", "column": "author_id", "sep": None, "dim": 16}
    (difference,) = differences(changed("features.item.1", bag))
    assert (difference.field, difference.new, difference.kind) == ("features.item.author_id", bag, "changed")


def test_filters_are_known_by_their_place() -> None:
    (difference,) = differences(changed("prepare.filters", ASKED["prepare"]["filters"][:1]))
    assert (difference.field, difference.kind) == ("prepare.filters.1", "removed")
    found = differences(changed("prepare.filters", []))
    assert [(d.field, d.kind) for d in found] == [("prepare.filters.0", "removed"), ("prepare.filters.1", "removed")]


@settings(max_examples=50, deadline=None)
@given(about=st.text(st.characters(exclude_categories=["Cs"]), max_size=40), dim=st.integers(1, 4096))
def test_a_dumped_recipe_loads_equal(tmp_path_factory: pytest.TempPathFactory, about: str, dim: int) -> None:
    tree = changed("about", about, changed("retriever.dim", dim, changed("data.events", "/data/events.parquet")))
    recipe = recipe_of(changed("train.learning_rate", 1e-5, tree))
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_line_ends_of_yaml_in_any_field_are_restored(tmp_path: Path) -> None:
    columns = {"user_id": "a\u2028b", "item_id": "c\x85d"}
    recipe = recipe_of(changed("data.columns", columns, changed("data.events", "/data/events.parquet")))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").data.columns == columns


def test_a_dumped_table_recipe_loads_equal(tmp_path: Path) -> None:
    table = {"kind": "table", "events": "/data/log.parquet"}
    recipe = recipe_of(changed("data", table))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_the_schema_for_editors_requires_nothing_since_a_base_may_supply_it() -> None:
    schema = recipe_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert list(schema["properties"])[:2] == ["base", "name"]
    assert schema["additionalProperties"] is schema["$defs"]["Prepare"]["additionalProperties"] is False
    assert "required" not in schema
    assert not [name for name, part in schema["$defs"].items() if "required" in part]


def test_the_schema_names_only_what_it_holds() -> None:
    schema = recipe_schema()

    def references(part: Any) -> list[str]:
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        own = [part["$ref"]] if isinstance(part, dict) and "$ref" in part else []
        return own + [found for inner in parts for found in references(inner)]

    assert {name.removeprefix("#/$defs/") for name in references(schema)} <= set(schema["$defs"])


def test_reading_a_recipe_touches_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", ASKED)
    before = sorted(os.listdir(tmp_path))
    assert recipe_of(changed("data.events", "/nowhere")).data.events == Path("/nowhere")
    load_recipe(path)  # its data folder does not exist: that is for preparation to say
    assert sorted(os.listdir(tmp_path)) == before
