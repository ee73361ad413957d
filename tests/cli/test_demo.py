"""`twofold demo`: what is copied, what is kept, and what is run."""

import pytest

from twofold.cli import demo
from twofold.errors import DataError
from twofold.recipe.load import load_recipe


def test_the_copied_recipe_reads_the_copied_log(tmp_path):
    recipe = load_recipe(demo.copy_shipped(tmp_path / "demo"))
    assert recipe.data.events == tmp_path / "demo" / "data" / "kuairand-pure" / "events.parquet"
    assert recipe.data.events.stat().st_size > 1_000_000
    assert "Attribution" in (tmp_path / "demo" / "data" / "kuairand-pure" / "LICENSE").read_text()


def test_an_edited_recipe_is_kept(tmp_path):
    path = demo.copy_shipped(tmp_path)
    path.write_text("edited")
    (tmp_path / "data" / "kuairand-pure" / "items.parquet").unlink()
    assert demo.copy_shipped(tmp_path).read_text() == "edited"
    assert (tmp_path / "data" / "kuairand-pure" / "items.parquet").exists()
    assert not list(tmp_path.rglob("*.writing"))


def test_it_runs_the_copy_in_its_folder(tmp_path, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(demo, "run", lambda *arguments, **named: given.append((arguments, named)))
    demo.demo(tmp_path)
    assert given == [((tmp_path / "recipes" / "kuairand.yaml", []), {"runs": tmp_path / "runs"})]
    assert str(tmp_path / "recipes" / "kuairand.yaml") in capsys.readouterr().out


def test_an_installation_without_the_log_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"does not hold the shipped recipe and log.*twofold run recipes/kuairand.yaml"):
        demo.copy_shipped(tmp_path / "to", shipped=tmp_path)
    assert not (tmp_path / "to").exists()
