"""Five logs of different trades are drafted, checked and, in the slow suite, run without an edit."""

from collections.abc import Callable
from pathlib import Path

import pytest

import twofold
from tests.logs.music import write_music
from tests.logs.news import write_news
from tests.logs.ratings import write_ratings
from tests.logs.shop import write_shop
from tests.logs.video import write_video
from twofold.ingest.column_roles import GivenColumns
from twofold.ingest.draft_questions import questions
from twofold.ingest.draft_recipe import draft_recipe
from twofold.ingest.inspect_log import Answers, LogProfile, check_draft, profile_log
from twofold.prepare.last_days import with_dates
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.recipe.split import LastDays, LastEvents

Writer = Callable[..., list[str]]


def look(arguments: list[str], answers: Answers | None = None) -> LogProfile:
    """The profile of a log, by the arguments of `twofold recipe new`."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    items, users = (Path(given[name]) if name in given else None for name in ("--items", "--users"))
    columns = GivenColumns(user=given.get("--user"))
    return profile_log(
        Path(given["--log"]), items=items, users=users, given_columns=columns, answers=answers or Answers()
    )


def drafted(seen: LogProfile, folder: Path) -> Recipe:
    text = draft_recipe(seen, name="drafted", folder=folder)
    check_draft(text, folder)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "recipe.yaml")


def kinds(recipe: Recipe, tower: str) -> dict[str, str]:
    """Feature kinds of a tower by column, without counters."""
    side = [each for each in getattr(recipe.features, tower) if each.kind != "counter"]
    return {getattr(each, "column", getattr(each, "part", each.kind)): each.kind for each in side}


def test_a_shop_learns_from_views_and_is_asked_for_purchases(tmp_path: Path) -> None:
    seen = look(write_shop(tmp_path))
    recipe = drafted(seen, tmp_path)
    prepare = recipe.prepare
    assert prepare.positive == "event IN ('transaction', 'addtocart', 'view')"
    assert prepare.weight == "CASE WHEN event = 'transaction' THEN 10 WHEN event = 'addtocart' THEN 4 ELSE 1 END"
    assert prepare.relevant in ("event = 'transaction'", "event IN ('transaction', 'addtocart')")
    assert prepare.negative == "FALSE"
    assert (prepare.time_zone, recipe.data.decimal_comma) == ("Europe/Berlin", ("items",))
    assert recipe.data.columns["uploaded_at"] == "added"
    assert kinds(recipe, "item") == {"id": "id", "age": "age", "price": "number", "category": "bag"}
    assert "negatives" not in {getattr(each, "events", "") for each in recipe.features.user}
    assert recipe.index.include_seen
    options = [question.option for question in questions(seen)]
    assert '--weights "transaction=10,addtocart=4,view=1"' in options
    assert "--no-repeats" in options


def test_songs_are_heard_to_the_end_and_again(tmp_path: Path) -> None:
    seen = look(write_music(tmp_path))
    recipe = drafted(seen, tmp_path)
    assert recipe.prepare.derive == {"watch_s": "seconds_played"}
    assert recipe.prepare.positive == "watch_s >= 0.8 * length_s AND length_s > 0"
    assert recipe.index.include_seen
    assert kinds(recipe, "item") == {"id": "id", "length_s": "number", "genres": "bag", "artist": "category"}
    said = " ".join(question.text for question in questions(seen))
    assert "of the events really positive? watch_s >= 0.8 * length_s" in said
    assert "your users live at about UTC-5" in said


def test_short_videos_have_lengths_ages_tags_and_vectors(tmp_path: Path) -> None:
    recipe = drafted(look(write_video(tmp_path)), tmp_path)
    assert recipe.prepare.derive == {"watch_s": "watch_ms / 1000", "length_s": "video_ms / 1000"}
    assert recipe.prepare.positive == '"like" OR share OR watch_s >= LEAST(length_s, 18) AND length_s > 0'
    assert recipe.data.columns["uploaded_at"] == "upload_ts"
    assert list(recipe.features.vectors) == ["embedding"]
    assert {"vector", "age", "bag"} <= set(kinds(recipe, "item").values())
    assert not recipe.index.include_seen


def test_ratings_have_a_threshold_that_fits_and_users_without_a_common_day(tmp_path: Path) -> None:
    seen = look(write_ratings(tmp_path))
    recipe = drafted(seen, tmp_path)
    assert recipe.prepare.positive == "rating >= 5"
    assert isinstance(recipe.prepare.split, LastEvents)
    assert kinds(recipe, "item") == {"id": "id", "genres": "bag"}
    assert "Are users to be tested by their last event?" in questions(seen)[-1].text


def test_news_are_judged_by_days(tmp_path: Path) -> None:
    recipe = drafted(look(write_news(tmp_path)), tmp_path)
    assert recipe.prepare.positive == "clicked"
    assert recipe.prepare.split == LastDays(kind="last_days", test=1, validation=1)
    assert kinds(recipe, "item") == {"id": "id", "age": "age", "category": "category"}
    split = with_dates(recipe).prepare.split
    assert (str(split.test.first), str(split.test.end)) == ("2024-03-14", "2024-03-15")


def test_answers_are_not_guessed_and_not_asked_again(tmp_path: Path) -> None:
    arguments = write_shop(tmp_path)
    given = Answers("event = 'transaction'", None, False, 3, "UTC")
    seen = look(arguments, given)
    recipe = drafted(seen, tmp_path)
    assert recipe.prepare.positive == "event = 'transaction'"
    assert (recipe.prepare.weight, recipe.prepare.relevant, recipe.prepare.time_zone) == (None, None, "UTC")
    assert not recipe.index.include_seen
    assert (recipe.prepare.split.test, recipe.prepare.split.validation) == (3, 3)
    assert questions(seen) == []


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_shop, write_music, write_video, write_ratings, write_news])
def test_a_log_goes_from_files_to_answers_without_an_edit(tmp_path: Path, write: Writer) -> None:
    recipe = drafted(look(write(tmp_path, users=200, items=90, events=9_000)), tmp_path)
    quick = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 2})})
    result = twofold.run(quick, runs=tmp_path / "runs")
    metrics = result.report.catalogue.rows
    recall = {row.name: row.metrics[result.report.primary_metric].value for row in metrics}
    assert recall["model"] > recall["random"]
    assert ("own items again" in recall) == recipe.index.include_seen
    assert len(result.recommendations) > 0
    user = result.recommendations["user_id"][0].as_py()
    assert result.explain(user, k=3).column_names == ["user_id", "item_id", "score", "rank", "because", "similarity"]
