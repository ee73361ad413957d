"""The notebook, run from its first cell to its last, as a reader would."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "from_a_dataframe.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_and_its_model_knows_the_genres(tmp_path, monkeypatch, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    scope = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
    matplotlib.pyplot.close("all")
    metrics, rows = scope["result"].metrics, {row.name: row for row in scope["result"].report.catalogue.rows}
    metric = scope["result"].report.primary_metric
    assert metrics[metric] > 1.2 * rows["popularity"].metrics[metric].value
    answers, favorites = scope["answers"], scope["favorites"]
    assert list(answers["user_id"]) == [3] * 5 + [7] * 5
    is_favorite = [row.genre in favorites[row.user_id] for row in answers.itertuples()]
    assert sum(is_favorite) >= 7
    assert len(scope["stranger"]) == 5
    assert scope["vectors"].shape[0] == 400
    assert "positive" in capsys.readouterr().out
