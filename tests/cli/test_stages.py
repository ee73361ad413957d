"""The command line as a newcomer meets it: what it prints, and that every mistake is one message and exit code 2."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import worlds
from tests.serve.tiny import ITEMS, replace_part, write_run
from twofold.cli import main as cli
from twofold.cli import serving, stages
from twofold.pipeline.job import Job
from twofold.recipe.load import dump_recipe


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs `twofold ARGUMENTS` in this process → (exit code, stdout, stderr), white space folded."""

    def run(*arguments, columns=200):
        monkeypatch.setattr(sys, "argv", ["twofold", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, " ".join(out.split()), " ".join(err.split())

    return run


@pytest.fixture
def shipped(kuairand_folder):
    return kuairand_folder.parents[1] / "recipes" / "kuairand.yaml"


@pytest.fixture
def written(shipped, kuairand_folder, tmp_path):
    """Writes the shipped recipe with one text replaced → its path."""

    def write(old, new):
        text = shipped.read_text().replace("../data/kuairand-pure", str(kuairand_folder))
        assert old in text
        path = tmp_path / "recipe.yaml"
        path.write_text(text.replace(old, new))
        return path

    return write


def test_the_shipped_recipe_is_valid(call, shipped):
    code, out, _ = call("recipe", "check", shipped)
    assert code == 0
    assert "is valid: recipe" in out


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("recommend_k: 50", "recomend_k: 50", ("recomend_k", "recommend_k")),
        ("kind: best", "kind: three_tower", ("retriever", "three_tower", "two_tower")),
        ("{first: 2022-05-08,", "{first: 2022-05-07,", ("overlap", "test.first is 2022-05-07", "2022-05-08")),
        ("long_view OR liked", "long_vew OR liked", ("prepare.positive", "long_vew", "long_view")),
        ("long_view OR liked", "(SELECT TRUE)", ("prepare.positive", "SELECT")),
        ("long_view OR liked", "read_text('/etc/passwd') = ''", ("prepare.positive", "read_text")),
        ("column: author_id", "column: autor_id", ("features.item.1.column", "autor_id", "author_id")),
        ("temperature: 0.1", "temperature: 0", ("retriever.score.temperature", "is 0", "must be above 0")),
        ("kind: temporal", "kind: tempral", ("prepare.split", "tempral", "temporal")),
        ("positive: long_view OR liked", "positive: [", ("line", "column")),
    ],
)
def test_recipe_check_refuses_and_says_why(call, written, old, new, says):
    code, out, err = call("recipe", "check", written(old, new))
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    for part in says:
        assert part in err


def test_a_folder_without_the_log_is_named(call, written, kuairand_folder, tmp_path):
    code, _, err = call("recipe", "check", written(str(kuairand_folder), str(tmp_path / "nothing")))
    assert code == 2
    assert str(tmp_path / "nothing") in err


def test_settings_are_validated_again(call, shipped):
    code, _, err = call("recipe", "check", shipped, "--set", "retriever.dimm=96")
    assert code == 2
    assert "retriever.dimm" in err
    assert "dim" in err
    assert call("recipe", "check", shipped, "--set", "retriever.dim=96")[0] == 0


def test_the_schema_is_json_schema(call):
    code, out, _ = call("recipe", "schema")
    assert code == 0
    assert json.loads(out)["title"] == "A twofold recipe"
    assert "two_tower" in out


def test_check_shows_files_and_columns_when_asked(call, shipped):
    code, out, _ = call("recipe", "check", shipped, "--columns")
    assert code == 0
    assert "events.parquet" in out
    assert "long_view" in out
    assert "user_active_degree" in out


def test_names_in_brackets_are_shown_and_no_markup(call, tmp_path, monkeypatch):
    log = {"user_id": [1, 2] * 300, "item_id": [*range(30)] * 20, "at": [1_709_251_200 + 3600 * n for n in range(600)]}
    log |= {"price [eur]": [0.5] * 599 + [float("nan")], "[/x]": [*range(600)]}
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    monkeypatch.chdir(tmp_path)
    assert call("recipe", "new", "log.parquet", "--out", "a [b].yaml")[1].endswith("next twofold run 'a [b].yaml'")
    code, out, _ = call("recipe", "check", "a [b].yaml", "--columns")
    assert (code, "price [eur]" in out, "[/x]" in out) == (0, True, True)
    code, out, err = call("prepare", "a [b].yaml", "--runs", "[/runs]", "--run", "mine")
    assert "[/runs]/mine/prepare" in err
    assert "note: 1 rows: events: price [eur] is NaN or infinite, read as NULL" in out
    assert out.endswith("next twofold run 'a [b].yaml' --runs '[/runs]' --run mine")
    text = (tmp_path / "a [b].yaml").read_text().replace('positive: "TRUE"', """positive: '"[/x]" > 3'""")
    (tmp_path / "other.yaml").write_text(text)
    assert '[/x]\\" > 3' in call("recipe", "diff", "a [b].yaml", "other.yaml")[1]


def test_data_lists_the_sets_with_their_terms(call):
    code, out, _ = call("data")
    assert code == 0
    for word in ("kuairand-27k", "9.9 GB", "CC BY-SA 4.0", "ml-20m", "no redistribution", "sequences", "ncf", "world"):
        assert word in out


def test_data_makes_tables_and_says_how_to_read_them(call, tmp_path):
    (tmp_path / "mine.txt").write_text("1 7\n1 3\n")
    code, out, _ = call("data", "sequences", "--from", tmp_path / "mine.txt", "--to", tmp_path / "out")
    assert code == 0
    assert "events 2 rows" in out
    assert f"data: kind: table events: {tmp_path}/out/events.parquet" in out
    assert "terms those of the original data" in out
    code, _, err = call("data", "sequences", "--from", tmp_path / "mine.txt", "--to", tmp_path / "out")
    assert code == 2
    assert "--overwrite" in err


def test_data_makes_a_world(call, tmp_path):
    code, out, _ = call("data", "world", "--rows", 2_000, "--seed", 1, "--to", tmp_path / "world")
    assert code == 0
    assert "events 2,000 rows" in out
    assert f"items: {tmp_path}/world/items.parquet" in out
    (tmp_path / "world" / "recipe.yaml").write_text("name: mine")
    again = ("data", "world", "--rows", 1_000, "--to", tmp_path / "world")
    code, _, err = call(*again)
    assert code == 2
    assert "holds a synthetic log already. Replace it with --overwrite, or name another folder with --to" in err
    code, out, _ = call(*again, "--overwrite")
    assert code == 0
    assert "events 1,000 rows" in out
    assert (tmp_path / "world" / "recipe.yaml").read_text() == "name: mine"


def test_a_world_replaces_no_other_log_and_is_read_from_nowhere(call, tmp_path):
    (tmp_path / "items.parquet").write_bytes(b"mine")
    code, _, err = call("data", "world", "--rows", 1_000, "--to", tmp_path, "--overwrite")
    assert code == 2
    assert "holds items.parquet of a log that is no synthetic one. Name another folder with --to" in err
    assert [path.name for path in tmp_path.iterdir()] == ["items.parquet"]
    code, _, err = call("data", "world", "--from", tmp_path, "--to", tmp_path / "world")
    assert code == 2
    assert f"world is generated, not read: leave out --from {tmp_path}" in err
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ml-20",), ("there is no data set ml-20", "nearest: ml-20m")),
        (("recipes/kuairand.yaml",), ("twofold recipe check RECIPE --columns",)),
        (("ml-20m", "--rows", "10"), ("ml-20m has a fixed size", "twofold data world")),
        (("ncf",), ("ncf is not published as an archive", "--from PATH")),
    ],
)
def test_data_refuses_and_says_why(call, arguments, says):
    code, out, err = call("data", *arguments)
    assert (code, out) == (2, "")
    for part in says:
        assert part in err


def test_runs_of_an_empty_place_says_how_one_is_made(call, tmp_path):
    code, out, _ = call("runs", "--runs", tmp_path)
    assert code == 0
    assert "holds no run yet: `twofold run RECIPE` makes one, and --runs names another folder" in out


def test_prepare_names_the_next_command_and_a_failed_one_is_no_run(call, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(worlds.checkerboard(tmp_path / "log")), encoding="utf-8")
    runs = tmp_path / "runs"
    code, _, err = call("prepare", path, "--runs", runs, "--set", "prepare.positive='a' = 'b'")
    assert (code, "Error" in err) == (2, True), err
    assert "holds no run yet" in call("runs", "--runs", runs)[1]
    code, out, _ = call("prepare", path, "--runs", runs, "--run", "mine", "--set", "train.epochs=2")
    assert (code, f"next twofold run {path} --set train.epochs=2 --runs {runs} --run mine" in out) == (0, True), out
    assert "mine" in call("runs", "--runs", runs)[1]


def test_titles_of_a_log_stand_beside_the_ids_and_are_text(call, tmp_path, monkeypatch):
    run = write_run(tmp_path / "tiny")
    monkeypatch.setattr(serving, "_titles_of", lambda folder: dict.fromkeys(ITEMS, "[red]Blue\x1b[31m"))
    code, out, _ = call("recommend", run, "--history", "a", "-k", 2)
    assert (code, out.count("[red]Blue·[31m"), "│ – │" in out) == (0, 2, True), out


def test_no_id_and_no_value_is_cut_in_a_narrow_table(call, tmp_path, monkeypatch, written):
    run, long = write_run(tmp_path / "tiny"), "-".join(str(number) for number in range(60))
    monkeypatch.setattr(serving, "_titles_of", lambda folder: dict.fromkeys(ITEMS, long))
    whole = "".join(re.sub(r"[ │]", "", call("recommend", run, "--history", "a", "-k", 1, columns=50)[1]))
    assert "…" not in whole
    assert "58-59" in whole
    old, new = written("name: kuairand", f"name: {'a' * 50}"), tmp_path / "new.yaml"
    new.write_text(old.read_text().replace("a\n", "ab\n", 1))
    assert "…" not in call("recipe", "diff", old, new, columns=50)[1]


def test_a_bundle_of_an_earlier_version_is_one_message(call, tmp_path):
    run = write_run(tmp_path / "tiny")

    def write(path):
        saved = json.loads(path.read_text())
        del saved["own_ids"]
        path.write_text(json.dumps(saved))

    replace_part(run, "features/features.json", write)
    code, _, err = call("recommend", run, "--history", "a")
    assert (code, "was written by another version of twofold: it has no own_ids. Delete" in err) == (2, True), err
    assert f"Delete {run / 'index'} and run `twofold run` with its recipe again: it makes index/ anew." in err


@pytest.mark.parametrize(("column", "found"), [("title", {7: "A"}), ("name", {7: "A"}), ("colour", {})])
def test_titles_are_those_of_the_bundle(tmp_path, column, found):
    (tmp_path / "index").mkdir()
    pq.write_table(pa.table({"item_id": [7, 8], column: ["A", None]}), tmp_path / "index" / "item_attributes.parquet")
    assert serving._titles_of(tmp_path) == found


@pytest.mark.parametrize("k", [0, 1001])
def test_the_length_of_a_list_has_bounds_in_words(call, tmp_path, k):
    code, _, err = call("recommend", tmp_path, "--user", 1, "-k", k)
    assert (code, f"-k {k}: a list has 1 to 1000 items. Write a number between them." in err) == (2, True), err


def test_recommend_wants_to_know_for_whom(call, tmp_path):
    code, _, err = call("recommend", tmp_path)
    assert code == 2
    assert "no user given: pass --user ID (repeatable) or --history ID,ID,ID" in err


def test_a_missing_extra_is_one_message(call, monkeypatch, shipped):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    for name in [name for name in sys.modules if name.startswith("twofold.prepare.")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = call("recipe", "check", shipped)
    assert code == 2
    assert "duckdb is not installed" in err
    assert "pip install 'twofold[train]'" in err


def test_spark_without_its_extra_is_one_message(call, monkeypatch, shipped, tmp_path):
    monkeypatch.setitem(sys.modules, "pyspark", None)
    code, _, err = call("prepare", shipped, "--engine", "spark", "--runs", tmp_path)
    assert code == 2
    assert "pyspark is not installed" in err
    assert "pip install 'twofold[spark]'" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--memory", "2 elephants"), "--memory 2 elephants cannot be read"),
        (("--spark-master", "local[2]"), "--spark-master local[2] is an option of Spark: add --engine spark"),
        (
            ("--engine", "spark", "--memory", "2GB"),
            "--memory 2GB is an option of DuckDB; Spark reads spark.driver",
        ),
        (("--engine", "dask"), "'dask' is not one of 'duckdb', 'spark'"),
    ],
)
def test_options_of_the_engine_that_do_not_fit_are_refused(call, shipped, tmp_path, options, says):
    code, _, err = call("prepare", shipped, "--runs", tmp_path, *options)
    assert code == 2
    assert says in err


def test_a_run_ends_with_what_is_served_and_what_to_type_next(solved, monkeypatch, capsys):
    report = replace(solved.report, beats_all=False, facts=replace(solved.report.facts, served="two towers + iALS"))
    monkeypatch.setattr("twofold.pipeline.job.report_of", lambda folder: report)
    best = solved.recipe.model_copy(update={"retriever": solved.recipe.retriever.model_copy(update={"kind": "best"})})
    stages._print_end(Job(best, solved.folder), better=["shop.yaml", "--set", "retriever.ensemble=2"])
    said = capsys.readouterr().out
    assert "served           two towers + iALS: the best on the validation window" in said
    assert f"next             twofold recommend {solved.folder} --user 0 -k 20" in said
    assert f"                 twofold serve {solved.folder}" in said
    assert "to improve it    twofold run shop.yaml --set retriever.ensemble=2" in said


def test_train_draws_the_towers_before_it_trains(call, checkerboard, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(checkerboard))
    code, out, _ = call("train", recipe, "--runs", tmp_path, "--set", "train.epochs=1")
    assert code == 0
    assert "user tower 1,312 parameters" in out  # 65 rows of 16, and a layer of 16 by 16 and 16
    assert "positives 65 rows, mean → 16 1,040" in out
    assert "linear 16 → 16 272" in out
    assert re.search(r"│ 1 │ \d\.\d{4} │ [\d.]+ ← │", out), "epochs are counted from 1, as while it trains"
    assert out.index("item tower") < out.index("training of the retriever") < out.index("validation")


@pytest.mark.slow
def test_waiting_threads_do_not_spin_for_long():
    """OpenMP states its setting once PyTorch has loaded it."""
    program = "import sys; sys.argv = ['twofold', '--help']\n"
    program += "from twofold.cli.main import main\ntry: main()\nfinally: import torch"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this PyTorch brings another OpenMP than GNU's")
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr


def test_a_user_may_let_threads_wait_otherwise(call, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    call("--help")
    assert os.environ["GOMP_SPINCOUNT"] == "77"
