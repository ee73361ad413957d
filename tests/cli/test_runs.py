"""The verbs over many runs, as they are typed."""

import errno
import json
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import worlds
from tests.evaluate.test_compare_page import a_run
from tests.serve.tiny import ITEMS, write_run
from tests.test_runs import begun, judged
from twofold.cli import main as cli
from twofold.cli import runs as cli_runs
from twofold.cli import serving as cli_serving
from twofold.evaluate.per_user_values import load_values
from twofold.recipe.load import dump_recipe
from twofold.render.numbers import format_decimal, format_signed


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs `twofold ARGUMENTS` in this process → (exit code, stdout, stderr), white space folded."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["twofold", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, " ".join(out.split()), " ".join(err.split())

    return run


def test_the_table_of_runs_is_sorted_by_what_is_asked(call, tmp_path):
    judged(tmp_path / "one", recall=0.25, auc=0.75)
    judged(tmp_path / "two", recall=0.5, auc=0.5)
    begun(tmp_path / "three")
    code, out, _ = call("runs", "--runs", tmp_path)
    assert code == 0
    assert out.index("two") < out.index("one") < out.index("three")
    assert "0.500" in out
    _, out, _ = call("runs", "--runs", tmp_path, "--sort", "auc")
    assert out.index("one") < out.index("two") < out.index("three")
    code, _, err = call("runs", "--runs", tmp_path, "--sort", "mrr")
    assert code == 2
    assert "no run has a metric mrr; choose from: auc, catalogue/recall@100" in err
    assert "nowhere holds no run yet: `twofold run RECIPE` makes one" in call("runs", "--runs", tmp_path / "nowhere")[1]


def test_on_80_columns_every_name_and_number_is_readable(monkeypatch, capsys, tmp_path):
    judged(tmp_path / "kuairand-ranked-day-2022-05-02-0", recall=0.25, dates="2022-05-02", **{"impressions/auc": 0.75})
    judged(tmp_path / "kuairand-ranked-day-2022-05-08-0", recall=0.125, **{"impressions/auc": 0.5})
    judged(tmp_path / "a-run-of-a-very-long-name-that-says-all-that-it-tried", recall=0.5)
    begun(tmp_path / "begun")
    for name in ("kuairand-ranked-day-2022-05-02-0", "kuairand-ranked-day-2022-05-08-0"):
        (tmp_path / name / "base.yaml").write_text("name: kuairand-ranked", encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "80")
    cli_runs.list_all_runs(tmp_path)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for text in ("kuairand-ranked-day-2022-05-02-0", "kuairand-ranked-day-2022-05-08-0", "recall@100", "recipe"):
        assert text in shown
    first, second, last = (
        shown.index(text) for text in ("tested on 2022-05-08", "tested on 2022-05-02", "not evaluated")
    )
    assert first < shown.index("0.125") < second < shown.index("0.250") < last < shown.index("begun ")


def test_runs_are_compared_and_written_to_a_page(call, tmp_path):
    for name, noise, epochs in (("old", 3.0, 1), ("new", 0.0, 4)):
        a_run(tmp_path / name, noise=noise, train={"epochs": epochs})
    page = tmp_path / "compared.html"
    code, out, _ = call("compare", tmp_path / "old", tmp_path / "new", "--html", page)
    assert code == 0
    assert "new − old" in out
    assert "train.epochs 1 4" in out
    assert f"page {page}" in out
    assert "new compared with old" in page.read_text(encoding="utf-8")
    code, _, err = call("compare", tmp_path / "old")
    assert code == 2
    assert "1 run cannot be compared" in err


def test_recipes_are_compared_over_seeds(call, tmp_path):
    folders = {"old": [], "new": []}
    for name, noises in (("old", (3.0, 3.1, 3.2)), ("new", (0.0, 0.1, 0.2))):
        for seed, noise in enumerate(noises):
            folders[name].append(a_run(tmp_path / f"{name}-{seed}", noise=noise, train={"seed": seed}))
    code, out, _ = call("compare", *folders["old"], *folders["new"], "--seeds", 3)
    assert code == 0
    assert "new-0 − old-0, 3 seeds of each" in out
    means = {
        name: [np.nanmean(load_values(each / "evaluate").metrics["catalogue/recall@10"]) for each in runs]
        for name, runs in folders.items()
    }
    by_seed = " ".join(format_decimal(value) for name in ("new", "old") for value in means[name])
    difference = format_signed(np.mean(means["new"]) - np.mean(means["old"]))
    assert re.search(rf"recall@10 {re.escape(difference)} \[\S+ \S+\] {re.escape(by_seed)} yes", out)
    assert "significant: p < 0.05, after Holm but for the headline metrics" in out
    _, out, _ = call("compare", folders["old"][0], folders["new"][0], "--seeds", 1)
    assert "fewer than 3 seeds are too few to claim a difference" in out


def test_what_are_no_seeds_of_one_recipe_is_refused(call, tmp_path):
    one, two, other = (
        a_run(tmp_path / name, train=train)
        for name, train in (("one", {"seed": 1}), ("two", {"seed": 2}), ("other", {"seed": 3, "epochs": 99}))
    )
    for runs, seeds, message in (
        (
            [one, two, one],
            2,
            "3 runs cannot be compared with 2 seeds per recipe: name 2 runs of the base recipe, then 2",
        ),
        ([one, two], 2, "2 runs cannot be compared with 2 seeds"),
        (
            [one, one, one, two],
            2,
            "one and one are not two seeds of one recipe: their recipes are equal. List the runs",
        ),
        ([one, two, two, other], 2, "two and other are not two seeds of one recipe: they differ in train.epochs. List"),
    ):
        code, _, err = call("compare", *runs, "--seeds", seeds)
        assert code == 2
        assert message in err
    page = tmp_path / "page.html"
    _, _, err = call("compare", one, two, "--seeds", 1, "--html", page)
    assert "--html writes a page of single runs: leave out --seeds, or --html" in err
    assert not page.exists()


def test_seeds_of_one_recipe_may_have_names_of_their_own(call, tmp_path):
    for name in ("a-0", "a-1", "b-0", "b-1"):
        folder = a_run(tmp_path / name, train={"seed": int(name[-1]), "epochs": 1 + (name[0] == "b")})
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        (folder / "recipe.yaml").write_text(text.replace("name: ", f"name: {name}-", 1), encoding="utf-8")
    code, out, err = call("compare", *(tmp_path / name for name in ("a-0", "a-1", "b-0", "b-1")), "--seeds", 2)
    assert (code, "b-0 − a-0, 2 seeds of each" in out) == (0, True), err


def test_a_metric_that_no_user_has_is_a_dash_over_seeds(call, tmp_path):
    folders = [a_run(tmp_path / f"{name}", train={"seed": name % 2, "epochs": 1 + name // 2}) for name in range(4)]
    for folder in folders:
        users = pq.read_table(folder / "evaluate" / "users.parquet")
        place = users.column_names.index("impressions/auc")
        unknown = pa.array(np.full(len(users), np.nan))
        pq.write_table(users.set_column(place, "impressions/auc", unknown), folder / "evaluate" / "users.parquet")
        manifest = folder / "evaluate" / "manifest.json"
        files = json.loads(manifest.read_text()) | {"files": {}}
        manifest.write_text(json.dumps(files))
    code, out, err = call("compare", *folders, "--seeds", 2)
    assert (code, "impressions auc – – – – – –" in out, "nan" in out) == (0, True, False), (out, err)


def test_an_interrupted_command_says_how_it_continues(call, tmp_path, monkeypatch):
    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_runs, "list_runs", interrupt)
    assert call("runs", "--runs", tmp_path) == (130, "", "interrupted; the same command continues")


def test_a_full_disk_is_one_message(call, tmp_path, monkeypatch):
    def fill(folder):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a failed write does, without a file

    monkeypatch.setattr(cli_runs, "list_runs", fill)
    code, out, err = call("runs", "--runs", tmp_path)
    assert (code, out) == (2, "")
    assert err == (
        "DiskError the disk is full: [Errno 28] No space left on device. Free some space, and give the same command "
        "again."
    )


def test_a_base_that_is_no_run_is_said_before_the_evaluation(call, tmp_path):
    code, _, err = call("evaluate", tmp_path / "run", "--base", tmp_path / "base")
    assert (code, f"there is no run folder {tmp_path / 'base'}" in err) == (2, True)


ENSEMBLE = {"retriever": {"kind": "two_tower", "dim": 8, "ensemble": 3}}
RANKER = {
    "kind": "mlp",
    "features": {
        "user": [{"kind": "number", "column": "age", "scale": "standard"}],
        "item": [{"kind": "number", "column": "shine", "scale": "standard"}],
    },
}


def seeds_of(folder, *parts):
    """Two seeds of a base recipe, then the run folders of recipes with these parts, named by their place."""
    base = [a_run(folder / f"base-{seed}", train={"seed": seed}) for seed in range(2)]
    return [*base, *(a_run(folder / f"run-{place}", **each) for place, each in enumerate(parts))]


def test_seeds_of_an_ensemble_that_overlap_are_refused(call, tmp_path):
    runs = seeds_of(tmp_path / "near", ENSEMBLE | {"train": {"seed": 7}}, ENSEMBLE | {"train": {"seed": 5}})
    code, _, err = call("compare", *runs, "--seeds", 2)
    assert code == 2
    assert (
        "run-0 and run-1 are not independent seeds: retriever.ensemble is 3, so train.seed 7 trains the towers of "
        "seeds 7 to 9, and train.seed 5 those of 5 to 7. Train the 2 runs of each recipe with train.seed 0, 3." in err
    )
    runs = seeds_of(tmp_path / "far", ENSEMBLE | {"train": {"seed": 8}}, ENSEMBLE | {"train": {"seed": 5}})
    assert call("compare", *runs, "--seeds", 2)[0] == 0


@pytest.mark.parametrize("field", ["ranker.seed", "evaluate.sampled.0.seed"])
def test_runs_with_one_training_are_no_seeds(call, tmp_path, field):
    def parts(seed, train):
        draw = {"kind": "drawn", "draw": "popularity", "count": 10, "seed": seed}
        own = {"ranker": RANKER | {"seed": seed}} if field == "ranker.seed" else {"evaluate": {"sampled": [draw]}}
        return own | {"train": {"seed": train}}

    code, _, err = call("compare", *seeds_of(tmp_path / "one", parts(0, 4), parts(1, 4)), "--seeds", 2)
    assert code == 2
    assert (
        f"run-0 and run-1 are not independent seeds: both have train.seed 4, and only {field} differs. Train the 2 "
        "runs of each recipe with train.seed 0, 1." in err
    )
    assert call("compare", *seeds_of(tmp_path / "two", parts(0, 4), parts(1, 5)), "--seeds", 2)[0] == 0


@pytest.mark.slow
def test_a_search_ends_with_the_command_that_judges_the_best(call, tmp_path):
    pytest.importorskip("optuna")
    world = worlds.checkerboard(tmp_path / "log", num_users=48, num_items=32)
    tree = yaml.safe_load(dump_recipe(world))
    tree["tune"] = {"ranges": {"retriever.dim": {"choices": [2, 4]}}, "trials": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = ("tune", tmp_path / "recipe.yaml", "--set", "train.epochs=1", "--runs", tmp_path / "runs")
    code, out, err = call(*command)
    assert code == 0
    assert "the best of 2 trials, by recall on the validation window" in out
    assert "The test window was not used" in out
    assert f"twofold run {tmp_path}/recipe.yaml --set train.epochs=1 --set retriever.dim=" in out
    assert "trial-000 0." in err
    assert "no run yet" in call("runs", "--runs", tmp_path / "runs")[1]  # a search is none
    again = call(*command)
    assert again[1:] == (out, "")


@pytest.mark.parametrize("says", ["the environment", "the recipe"])
def test_a_tracker_that_is_not_installed_is_said_before_the_run(call, checkerboard, tmp_path, monkeypatch, says):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(checkerboard), encoding="utf-8")
    command = ["run", tmp_path / "recipe.yaml", "--runs", tmp_path / "runs"]
    if says == "the recipe":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        command += ["--set", "mlflow={}"]
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setattr(cli_runs, "find_spec", lambda name: None)
    code, _, err = call(*command)
    assert code == 2
    assert "the run is to be copied to sqlite:///mlflow.db, and mlflow is not installed" in err
    assert "pip install 'twofold[mlflow]', or unset MLFLOW_TRACKING_URI and delete the recipe's mlflow" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
# Qdrant 1.20 leaves a connection to SQLite, with which it asks for its abilities, to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
def test_an_index_is_copied_into_a_database(call, tmp_path):
    pytest.importorskip("qdrant_client")
    command = ("export", write_run(tmp_path / "tiny"), "--to", "qdrant", "--url", tmp_path / "there", "--name", "tiny")
    code, out, err = call(*command)
    assert (code, err) == (0, "")
    assert out == f"{len(ITEMS)} items qdrant {tmp_path}/there tiny"
    code, _, err = call(*command)
    assert code == 2
    assert "'tiny' already; nothing was written. Name another" in err
    code, _, err = call(*command[:4], "--url", "nonsense://there")
    assert code == 2
    assert "nonsense://there cannot be opened as Qdrant: Unknown scheme: nonsense. Give http://HOST:6333." in err
    code, _, err = call(*command[:4], "--url", "http://127.0.0.1:1")
    assert code == 2
    assert "RequestError --url http://127.0.0.1:1: the index cannot be copied there:" in err
    assert "If the copy had begun, delete the incomplete collection or choose another --name." in err


def test_a_database_whose_client_is_not_installed_is_said_before_anything_is_read(call, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_serving, "find_spec", lambda name: None)
    code, _, err = call("export", tmp_path / "no run", "--to", "qdrant", "--url", "http://127.0.0.1:6333")
    assert code == 2
    assert "--to qdrant needs qdrant_client, which is not installed: pip install 'twofold[qdrant]'" in err
