"""A run as MLflow shows it: in a local SQLite store, with what was logged read back."""

import json

import pyarrow.parquet as pq
import pytest

import twofold
from twofold.errors import RunError

pytest.importorskip("mlflow", reason="pip install 'twofold[mlflow]'")
pytestmark = [
    pytest.mark.slow,  # a store is made, which takes ten seconds
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*:sqlalchemy.exc.SADeprecationWarning"),
]

from mlflow import MlflowClient  # noqa: E402

from tests import worlds  # noqa: E402
from twofold.mlflow_export import log_run  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    recipe = worlds.checkerboard(folder / "log", num_users=48, num_items=32)
    return twofold.run(recipe, runs=folder / "runs").folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts of a local store
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_what_was_logged_is_what_the_run_says(made, store, tmp_path):
    run = log_run(made, uri=store)
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    found = client.get_run(run)
    assert (found.info.run_name, found.info.status) == ("world", "FINISHED")
    assert found.data.params["train.batch_size"] == "128"
    assert found.data.params["features.item.0.kind"] == "id"
    report = json.loads((made / "evaluate" / "report.json").read_text())
    row = report["catalogue"]["rows"][0]["metrics"]
    assert found.data.metrics["catalogue/hit_rate_at_1"] == row["catalogue/hit_rate@1"]["value"]
    (headline, *_) = report["headlines"]
    name = headline["metric"].replace("@", "_at_")
    assert found.data.tags[f"twofold.baseline.{name}"] == headline["baseline"]
    assert found.data.tags["twofold.window"] == report["question"]["dates"] == "2024-01-06"
    for suffix, key in (("", "model"), ("_baseline", "best"), ("_minus_baseline", "minus")):
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high")):
            assert found.data.metrics[f"{name}{suffix}{end}"] == headline[key][field]
    assert [point.step for point in client.get_metric_history(run, "train/validation")] == list(range(10))
    log = pq.read_table(made / "train" / "training_steps.parquet").to_pydict()
    for name in ("loss", "learning_rate", "gradient_norm", "examples_per_s"):
        points = client.get_metric_history(run, f"train/step/{name}")
        assert [(point.step, point.value) for point in points] == list(zip(log["step"], log[name], strict=True))
    rows = [point.value for point in client.get_metric_history(run, "funnel/rows")]
    assert rows == [line["rows"] for line in report["facts"]["funnel"]]
    assert found.data.tags["twofold.recipe_digest"] == report["facts"]["recipe_digest"]
    assert "evaluate/report.json" in {file.path for file in client.list_artifacts(run, "evaluate")}
    assert {"run.html", "recipe.yaml", "funnel.json"} <= {file.path for file in client.list_artifacts(run)}


def test_the_registered_model_is_the_bundle_and_a_run_is_copied_once(made, store):
    run = log_run(made, uri=store)
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    (version,) = client.search_model_versions("name = 'world'")
    assert version.run_id == run
    bundle = client.download_artifacts(run, "bundle")
    assert twofold.load(bundle).recommend([0], k=3).equals(twofold.load(made).recommend([0], k=3))
    assert log_run(made, uri=store) == run
    assert len(client.search_model_versions("name = 'world'")) == 1


def test_a_run_that_is_not_finished_and_a_store_that_is_none_are_refused(made, store, tmp_path):
    with pytest.raises(RunError, match="there is no run folder"):
        log_run(tmp_path / "nowhere", uri=store)
    with pytest.raises(RunError, match=r"MLflow at ftps://nowhere refused the run .* The run itself is complete"):
        log_run(made, uri="ftps://nowhere")
