"""Typical mistakes of the first hour, typed as a newcomer types them: each is answered by one message with the fix."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twofold.cli import main as cli

PAST = (
    "{kind: temporal, train: {first: 2023-01-01, end: 2023-03-01}, validation: {first: 2023-03-01, end: 2023-03-02}, "
    "test: {first: 2023-03-02, end: 2023-03-03}}"
)
DRAFT = "recipe new log.csv --out shop.yaml --yes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, a table of items, a recipe, and files in which something is wrong."""
    folder, draw = tmp_path_factory.mktemp("mistakes"), np.random.default_rng(0)
    days = [f"2024-03-{1 + each % 28:02}T{each % 24:02}:00:00" for each in range(600)]
    who, what = draw.integers(30, size=600).tolist(), draw.integers(20, size=600).tolist()
    kind = ["purchase" if each % 7 == 0 else "view" for each in range(600)]
    rows = [f"{u},{i},{at},{k}" for u, i, at, k in zip(who, what, days, kind, strict=True)]
    write = {
        "log.csv": ["user_id,item_id,time,event", *rows],
        "items.csv": ["item_id,title,price", *(f"{item},T{item},{item}.5" for item in range(20))],
        "no-key.csv": ["code,title", *(f"x{item},T{item}" for item in range(20))],
        "twice.csv": ["item_id,title", *(f"{item % 10},T{item}" for item in range(20))],
        "strange.csv": ["a,b,c", *(f"{u}.5,{i}.25,{k}" for u, i, k in zip(who, what, kind, strict=True))],
        "header.csv": ["user_id,item_id,time,event"],
        "empty.csv": [],
        "one.csv": ["user_id,item_id,time", *(f"1,{i},{at}" for i, at in zip(what, days, strict=True))],
        "mixed/a.csv": ["user_id,item_id,time", "1,2,2024-03-01"],
        "mixed/b.json": ["{}"],
        "broken.parquet": ["this is no parquet"],
        "log.xlsx": ["PK"],
        "log.dat": ["1::2::3"],
        "tabs.yaml": ["name: x", "data:\t{kind: table}"],
    }
    for name, lines in write.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "runs" / "empty").mkdir(parents=True)
    return folder


@pytest.fixture
def typed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    """Runs a command line in the folder, in this process; its exit code and stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["twofold", *shlex.split(line)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err

    if not (folder / "shop.yaml").exists():
        monkeypatch.setattr(sys, "argv", ["twofold", *DRAFT.split()])
        with pytest.raises(SystemExit):
            cli.main()
        capsys.readouterr()
    return run


MISTAKES = {
    "recipe new": "no log is named. Write: twofold recipe new events.csv",
    "recipe new lgo.csv": "there is no file lgo.csv (nearest: log.csv",
    "recipe new log.dat": "If it is delimited text, rename it to log.csv.",
    "recipe new log.xlsx": "holds no file that is read: .parquet, .pq, .csv",
    "recipe new mixed": "mixed holds csv and json files together. Name one file, or a folder of files of one kind.",
    "recipe new empty.csv": "empty.csv has no rows. Check that the export finished.",
    "recipe new header.csv": "header.csv has no rows. Check that the export finished.",
    "recipe new broken.parquet": "It is damaged, cut short or of another kind: copy or export it again.",
    "recipe new strange.csv": "could not find the user column",
    "recipe new one.csv": "user_id holds one user alone, and a model needs several users.",
    "recipe new log.csv --user customer": "log.csv has no such column (its columns: user_id, item_id, time, event)",
    "recipe new log.csv --items no-key.csv": "as log.csv calls the item. One name must serve both: rename it there.",
    "recipe new log.csv --positive event=purchase": "write it in single quotes: event = 'purchase'",
    "recipe new log.csv --time-zone Berlin --out z.yaml": "is not an IANA time zone; nearest: Europe/Berlin",
    "recipe new log.csv --weights view:1 --out z.yaml": "Write KIND=NUMBER,…, such as view=1,cart=4.",
    "recipe new log.csv --test-days 40 --out z.yaml": "Write at most 13.",
    "recipe new log.csv --out shop.yaml": "shop.yaml exists. Overwrite it with --overwrite",
    "recipe check shop.yml": "shop.yml does not exist.",
    "recipe check tabs.yaml": "tabs.yaml: data.events: is missing",
    "recipe check shop.yaml --set train.epoch=3": "train.epoch: does not exist — nearest: epochs",
    "recipe check shop.yaml --set retriever.dim=wide": "retriever.dim: is 'wide' — must be a whole number",
    "recipe check shop.yaml --set prepare.positive=evnt": "`evnt`, which does not exist (nearest: `event`)",
    "recipe check shop.yaml --set prepare.positive=event": "such as purchase, view. Compare it: event = 'purchase'.",
    "recipe check shop.yaml --set prepare.weight=event": "CASE WHEN event = 'purchase' THEN 2 ELSE 1 END.",
    "recipe check shop.yaml --set data.items=items.csv --set index.where=title": "index.where reads title as true or",
    "recipe check shop.yaml --set \"prepare.where=at >= '2024-03-09'\"": "2024-03-09 is 1709942400000. Rule: at >=",
    f"recipe check shop.yaml --set prepare.split='{PAST}'": "The log goes from 2024-03-01 to 2024-03-28: move the",
    "recipe check shop.yaml --set page.title=caption": "page.title: the items have no column caption",
    "recipe check shop.yaml --set data.items=twice.csv --set data.item_columns=[title]": "Delete one",
    "prepare shop.yaml --set data.items=twice.csv": "each id must occur in exactly one row",
    "recipe new log.csv --out log.csv/shop.yaml": "Name a path that can be read or written",
    "prepare shop.yaml --runs /proc/nowhere": "PathError /proc/nowhere: No such file or directory. Name a path that",
    "data world --rows 100 --to log.csv/world": "log.csv/world/events: Not a directory",
    "demo --to log.csv": "log.csv/recipes: Not a directory",
    "serve runs/empty": "run runs/empty has no complete index/ stage. Run `twofold run`",
    "recommend runs/nothing --user 1": "Make one with `twofold run RECIPE`, or list them with `twofold runs`.",
    "compare runs/empty runs/nothing": "run runs/empty has no complete evaluate/ stage. Run `twofold run`",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_message_that_names_the_fix(typed: Callable[[str], tuple[int, str]], line: str) -> None:
    code, said = typed(line)
    assert code == 2
    assert "Traceback" not in said
    assert MISTAKES[line] in said
