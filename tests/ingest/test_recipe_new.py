"""The command `twofold recipe new`."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.ingest.test_inspect_log import ROWS, keys, write
from twofold.cli import main as cli
from twofold.prepare.last_days import with_dates
from twofold.recipe.load import load_recipe

FIRST_S = 1_704_067_200  # 1 January 2024, 00:00 UTC


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `twofold recipe new ARGUMENTS` in this process → exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["twofold", "recipe", "new", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_the_command_shows_what_it_saw_and_what_to_do_next(
    tmp_path: Path, short_video: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "mine" / "recipe.yaml"
    code, said, _ = call("--log", short_video, "--out", out)
    assert code == 0
    for words in ("play_time_ms", "watch time (ms)", "1,202 rows", "20; half have 60 events", f"twofold run {out}"):
        assert words in said
    assert load_recipe(out).name == "log"
    code, _, error = call("--log", short_video, "--out", out)
    assert (code, "exists. Overwrite it with --overwrite, or name another file with --out FILE" in error) == (2, True)
    assert call("--log", short_video, "--out", out, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("option", "rule", "message"),
    [
        ("--positive", "lked = 1", "--positive reads `lked`, which does not exist"),
        ("--relevant", "event = 'bought'", "--relevant reads `event`, which does not exist"),
        ("--relevant", '"what happened" = bought', "write it in single quotes: \"what happened\" = 'bought'. "),
        ("--positive", "watch_s > 1e9", "--positive: watch_s > 1e9 is true for none of the 1,200 events. Compare its"),
        ("--relevant", "\"what happened\" = 'bouht'", "'bouht' is true for none of the 1,200 events. Compare its"),
    ],
)
def test_a_rule_that_reads_no_column_or_finds_nothing_is_refused_before_a_recipe_is_written(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]], option: str, rule: str, message: str
) -> None:
    key = keys()
    happened = np.where(np.arange(len(key["user"])) % 3, "looked", "bought")
    columns = {"user_id": key["user"], "item_id": key["item"], "ts": key["seconds"], "what happened": happened}
    log = write(tmp_path / "log.parquet", columns | {"watch_s": key["seconds"] % 50})
    code, _, error = call("--log", log, "--out", tmp_path / "r.yaml", option, rule)
    assert (code, message in " ".join(error.split())) == (2, True), error
    assert not (tmp_path / "r.yaml").exists()


def small_log(path: Path) -> Path:
    """Writes a log of user, item and time; its ending names the format."""
    key = keys()
    return write(path, {"user_id": key["user"], "item_id": key["item"], "ts": key["seconds"]})


def test_a_misspelt_file_is_answered_with_the_nearest_name(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    log = small_log(tmp_path / "events.csv")
    for given, message in (
        (tmp_path / "event.csv", "nearest: events.csv; a path is relative to "),
        (tmp_path / "x.csv", "its folder holds events.csv; a path is relative to "),
        (tmp_path / "mine" / "events.csv", f"there is no folder {tmp_path / 'mine'} either; "),
    ):
        for arguments in (("--log", given), ("--log", log, "--items", given)):
            code, _, error = call(*arguments, "--out", tmp_path / "r.yaml")
            assert (code, f"{arguments[-2]}: there is no file {given} ({message}" in error) == (2, True), error


def test_more_days_to_test_than_the_log_has_are_refused(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    log = small_log(tmp_path / "log.parquet")
    code, _, error = call("--log", log, "--out", tmp_path / "r.yaml", "--test-days", 500)
    message = "and 500 to test and as many to validate leave none to train on. Write at most "
    assert (code, message in error) == (2, True), error
    most = int(error.partition("Write at most ")[2].partition(".")[0])
    assert call("--log", log, "--out", tmp_path / "r.yaml", "--test-days", most + 1)[0] == 2
    assert not (tmp_path / "r.yaml").exists()
    assert call("--log", log, "--out", tmp_path / "r.yaml", "--test-days", most)[0] == 0


@pytest.mark.parametrize("delimiter", ["~", "::"])
def test_a_delimiter_that_is_not_recognized_is_named_with_a_statement_that_works(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, delimiter: str
) -> None:
    monkeypatch.chdir(tmp_path)
    log = small_log(tmp_path / "log.csv")
    log.write_text(log.read_text().replace(",", delimiter))
    code, _, error = call("--log", log)
    assert (code, f"separated by {delimiter!r}; commas, semicolons, tabs and | are recognized" in error) == (2, True)
    exec(next(line.strip() for line in error.splitlines() if "import duckdb" in line), {})
    assert call("--log", "log.parquet")[0] == 0


def test_drafts_of_one_log_have_names_of_their_own(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    log = small_log(tmp_path / "events.csv")
    for out in ("recipe.yaml", "purchases.yaml"):
        assert call("--log", log, "--out", tmp_path / out)[0] == 0
    assert load_recipe(tmp_path / "recipe.yaml").name == "events"
    assert load_recipe(tmp_path / "purchases.yaml").name == "purchases"


def test_a_folder_is_no_recipe(tmp_path: Path, short_video: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = call("--log", short_video, "--out", tmp_path, "--overwrite")
    assert (code, f"--out {tmp_path} is a folder. Name a file in it, such as {tmp_path}/recipe.yaml." in error) == (
        2,
        True,
    )


def test_days_are_those_of_the_given_time_zone(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    key = keys()
    log = write(tmp_path / "log.parquet", {"user_id": key["user"], "item_id": key["item"], "ts": key["seconds"]})
    first = {}
    for zone in ("UTC", "Pacific/Honolulu"):
        out = tmp_path / f"{zone.replace('/', '-')}.yaml"
        assert call("--log", log, "--out", out, "--time-zone", zone)[0] == 0
        prepare = with_dates(load_recipe(out)).prepare
        assert (prepare.time_zone, f"({zone})" in out.read_text()) == (zone, True)
        first[zone] = prepare.split.train.first
    assert (first["UTC"] - first["Pacific/Honolulu"]).days == 1  # the log begins at midnight UTC
    code, _, error = call("--log", log, "--out", tmp_path / "r.yaml", "--time-zone", "Asia/Calcuta")
    assert (code, "--time-zone: 'Asia/Calcuta' is not an IANA time zone; nearest: Asia/Calcutta" in error) == (2, True)


def test_a_recipe_can_be_printed_alone(
    tmp_path: Path, short_video: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, printed, said = call("--log", short_video, "--out", "-")
    assert (code, printed.startswith("# Drafted by"), "watch time (ms)" in said) == (0, True, True)
    (tmp_path / "elsewhere.yaml").write_text(printed)
    assert load_recipe(tmp_path / "elsewhere.yaml").data.events == short_video


def test_names_of_a_log_are_no_markup(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    key = keys()
    columns = {"user_id": key["user"], "item_id": key["item"], "ts": key["seconds"], "[/red]\x1b[31m": key["item"]}
    code, said, _ = call("--log", write(tmp_path / "log.parquet", columns), "--out", tmp_path / "r.yaml")
    assert (code, "[/red]·[31m" in said) == (0, True)


def test_what_cannot_be_told_is_one_message(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    key = keys()
    columns = {"user_id": key["user"], "userId": key["user"], "item_id": key["item"], "ts": key["seconds"]}
    log = write(tmp_path / "log.csv", columns)
    code, _, error = call("--log", log, "--out", tmp_path / "r.yaml")
    assert (code, "Choose one: --user user_id" in error) == (2, True)
    assert call("--log", log, "--out", tmp_path / "r.yaml", "--user", "userId")[0] == 0
    assert call("--log", tmp_path / "nosuch.csv")[0] == 2


def test_watch_s_in_another_case_is_the_watch_time(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """SQL does not tell Watch_s from watch_s, so that a derived watch_s would read itself."""
    columns = keys() | {"Watch_s": [float(row % 40) for row in range(ROWS)], "play_time_ms": list(range(ROWS))}
    log = write(tmp_path / "log.parquet", columns)
    code, _, error = call("--log", log, "--out", tmp_path / "recipe.yaml")
    assert (code, error) == (0, "")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    keys_of_log = {"user_id": "user", "item_id": "item", "at": "seconds"}
    assert recipe.data.columns == keys_of_log | {"watch_s": "Watch_s"}
    assert (recipe.prepare.positive, recipe.prepare.derive) == ("watch_s >= 18", {})


def test_watch_s_that_holds_no_numbers_gets_another_name(
    tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    lines = [f"{row % 7},{row % 11},{1_704_067_200 + row * 900},{row % 2},{row % 60}m {row % 9}s" for row in range(900)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,liked,watch_s", *lines]))
    code, out, err = call("--log", tmp_path / "log.csv", "--out", "-")
    assert code == 0, err
    assert "watch_s_of_log: watch_s" in out
