"""Writes the tables of benchmarks/README.md from the JSON files beside it; with `--check`, reports if it is current.

A table stands between the comments `<!-- table: NAME -->` and `<!-- end -->`.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from twofold.render.numbers import format_significant

FOLDER = Path(__file__).parents[1] / "benchmarks"
PAGE = FOLDER / "README.md"
Cell = str | float | None
_BOUND: Final = re.compile(r" ?\((at most|at least) ([\d.]+)([^)]*)\)")


def page_with_tables(page: str) -> str:
    """Returns the page with every table computed anew; KeyError for a name without a function."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w ]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def saved(name: str) -> dict[str, Any]:
    """Returns what a benchmark has saved."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def markdown(header: Iterable[str], rows: Iterable[Iterable[Cell]]) -> str:
    """Returns a table; numbers have three significant digits, and `None` is an empty cell."""
    lines = [list(header), *([_text(cell) for cell in row] for row in rows)]
    lines.insert(1, ["--"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(cell: Cell) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    return f"{cell:,}" if isinstance(cell, int) else format_significant(cell)


def claims(name: str) -> Callable[[], str]:
    """Returns the function of a table of a benchmark's claims, whose names state the bound in brackets."""

    def table() -> str:
        rows = []
        for claim, value in saved(name)["claims"].items():
            bound, missed = "", False
            if match := _BOUND.search(claim):
                most = match[1] == "at most"
                missed = value > float(match[2]) if most else value < float(match[2])
                bound = f"{'≤' if most else '≥'} {match[2]}{match[3]}"
            rows.append([_BOUND.sub("", claim), _marked(value, is_missed=missed), bound])
        return markdown(["figure", "value", "wanted"], rows)

    return table


# --- size of the log --------------------------------------------------------------------------------------------------


def stages() -> str:
    """Returns the cost of each stage of the largest run."""
    run = _runs()[-1]
    fields = ("seconds", "processor_s", "peak_gb", "anonymous_gb")
    rows = []
    for stage in ("world", "prepare", "dataset", "train", "index", "serve"):
        disk = run[stage]["disk"] / 1e9 if "disk" in run[stage] else None
        rows.append([stage, *(run[stage].get(field) for field in fields), disk])
    rows_of_log = f"{run['rows'] // 10**6} M rows"
    return markdown(
        [rows_of_log, "seconds", "processor seconds", "peak memory, GB", "without pages of files, GB", "on disk, GB"],
        rows,
    )


def a_row() -> str:
    """Returns the processor time of preparation and arrays for each size of the log."""
    runs = _runs()
    rows = []
    for run in runs:
        us = [run[stage]["processor_s"] / run["rows"] * 1e6 for stage in ("prepare", "dataset")]
        peaks = [run[stage]["peak_gb"] for stage in ("prepare", "train")]
        rows.append([f"{run['rows'] // 10**6} M", *us, *peaks, run["train"]["anonymous_gb"]])
    ten, most = (run["prepare"]["processor_s"] / run["rows"] for run in (_run_of(10), runs[-1]))
    header = [
        "rows",
        "prepare, µs a row",
        "dataset, µs a row",
        "prepare, GB",
        "train, GB",
        "without pages of files, GB",
    ]
    ratio = f"Preparation of a row of {runs[-1]['rows'] // 10**6} M over one of 10 M: {most / ten:.2f}, wanted ≤ 1.2."
    return f"{markdown(header, rows)}\n\n{ratio}"


def served() -> str:
    """Returns how fast the service of the largest run was ready and answered."""
    serve = _runs()[-1]["serve"]
    fields = {"ready_s": "ready, s", "first_ms": "first answer, ms", "median_ms": "median, ms", "p99_ms": "99 %, ms"}
    return markdown(fields.values(), [[serve[field] for field in fields]])


def predicted() -> str:
    """Returns what `twofold plan` predicts for the largest run, beside what was measured."""
    sys.path.insert(0, str(FOLDER))
    from scale import predictions

    run = _runs()[-1]
    found = predictions(run).items()
    rows: list[list[Cell]] = [[name, guess, measured, measured / guess] for name, (guess, measured) in found]
    return markdown([f"{run['rows'] // 10**6} M rows", "predicted", "measured", "measured over predicted"], rows)


def cold() -> str:
    """Returns training from a cold disk beside training from memory."""
    found = saved("cold_training")
    rows: list[list[Cell]] = []
    for run in (*found["runs"], *({**each, "is_before": True} for each in found["before"])):
        cold, warm = (_median([each["examples_per_s"] for each in run[side]]) for side in ("cold", "warm"))
        name = f"{run['rows'] // 10**6} M{', before' if 'is_before' in run else ''}"
        memory = run["memory_gb"] or "all"
        own = max(each["anonymous_gb"] for each in run["cold"])
        read = _median([each["read_mb"] for each in run["cold"]]) / 1000
        rows.append([name, memory, run["dataset_gb"], read, cold, warm, cold / warm, own])
    columns = ["rows", "memory, GB", "data set, GB", "read, GB", "cold, examples/s", "warm, examples/s"]
    return markdown([*columns, "cold over warm", "no pages of files, GB"], rows)


def _runs() -> list[dict[str, Any]]:
    return sorted(saved("scale")["runs"], key=lambda run: int(run["rows"]))


def _run_of(millions: int) -> dict[str, Any]:
    return next(run for run in _runs() if run["rows"] == millions * 10**6)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


# --- training ---------------------------------------------------------------------------------------------------------


def losses() -> str:
    """Returns the time of each loss beside the classic one."""
    rows = [[name, each["ms"], each["over_classic"]] for name, each in saved("losses")["losses"].items()]
    return markdown(["loss", "ms", "over the classic softmax"], rows)


def catalogue() -> str:
    """Returns the time of a step for each number of items."""
    sizes = (100_000, 1_000_000, 10_000_000)
    runs = {
        tuple(run[key] for key in ("tower", "events", "tables", "items")): run for run in saved("catalogue")["runs"]
    }
    names = {"means": "means of 100", "sequence": "sequence of 50"}
    rows = []
    for tower, events in dict.fromkeys((run["tower"], run["events"]) for run in saved("catalogue")["runs"]):
        steps = {each: [runs[tower, events, each, items]["step"] for items in sizes] for each in ("dense", "lazy")}
        rows.append([names[tower], events, *steps["dense"], *steps["lazy"], steps["dense"][2] / steps["lazy"][2]])
    columns = ["user tower", "events", "dense: 100 k", "1 M", "10 M", "lazy: 100 k", "1 M", "10 M"]
    return markdown([*columns, "dense over lazy, 10 M"], rows)


def threshold() -> str:
    """Returns a dense and a lazy step around the size from which tables are lazy."""
    rows = [
        [each["dim"], each["items"], each["dense"], each["lazy"], each["lazy_over_dense"]]
        for each in saved("catalogue")["threshold"]
    ]
    return markdown(["width", "items", "dense", "lazy", "lazy over dense"], rows)


def peers() -> str:
    """Returns our speed and that of other packages."""
    unit = "examples a processor second"
    rows = [
        [f"{each['peer']}, {each['part']}", each.get(f"ours, {unit}"), each[f"theirs, {unit}"],
         each.get("ours over theirs, processor")]
        for each in saved("train_peers")["lines"]
    ]  # fmt: skip
    return markdown(["what", "ours, per second", "theirs", "ours over theirs"], rows)


def ranks() -> str:
    """Returns the step and memory of one process and of several."""
    rows = [[run["kind"], run["processes"], run["ms"], run["mb"]] for run in saved("ranks")["runs"]]
    return markdown(["what", "processes", "ms a step", "MB each"], rows)


# --- the service ------------------------------------------------------------------------------------------------------


def service() -> str:
    """Returns the speed of the service for each bundle, beside what is wanted."""
    found = saved("serve")
    wanted, names, median = found["claim"], list(found["figures"]), found["figures"]
    rows: list[list[Cell]] = [["requests per second wanted", *(wanted["per_s"].get(name) for name in names)]]
    rounds = (("median of the rounds", median), ("quietest round", found["quietest_round"]))
    for title, figures in rounds:
        speed = [(figures[name]["per_s"], wanted["per_s"].get(name)) for name in names]
        cells = [_marked(value, is_missed=least is not None and value < least) for value, least in speed]
        rows.append([f"requests per second, {title}", *cells])
    for share, field in (("median", "p50_ms"), ("99 %", "p99_ms")):
        for title, figures in rounds:
            times = [(figures[name][field], wanted[field].get(name)) for name in names]
            cells = [_marked(value, is_missed=most is not None and value > most) for value, most in times]
            rows.append([f"ms of an answer, {share}, {title}", *cells])
    rows.append(["processor µs per request", *(median[name]["cpu_us"] for name in names)])
    over = [median[name]["cpu_us"] / found["floor_us"] for name in names]
    rows.append(["over FAISS's search of one query", *over])
    for stage in found["stages_us"]["mean"]:
        if stage != "request":
            rows.append([f"µs of {stage}", *(found["stages_us"].get(name, {}).get(stage) for name in names)])
    return markdown(["figure", *(name.replace("_", " ") for name in names)], rows)


def _marked(value: float, *, is_missed: bool) -> str:
    return f"{_text(value)}{': missed' if is_missed else ''}"


def search() -> str:
    """Returns the time of a whole search by each of three first looks."""
    looks, rows = ("numpy", "floats", "integers"), []
    for size, found in saved("serve_search")["figures"].items():
        candidates = ", ".join(_text(float(round(found["candidates"][each]))) for each in looks[1:])
        times = [found[f"{count} at once"]["search"] for count in (1, 4, 16)]
        cells = [", ".join(_text(float(each[look]["median"])) for look in looks) for each in times]
        rows.append([size.replace("x", "×"), candidates, *cells])
    header = ["items × dimensions", "candidates: floats, integers", "1 query: NumPy, floats, integers"]
    return markdown([*header, "4 at once", "16 at once"], rows)


def rules() -> str:
    """Returns what rules after ranking and repeats add to a request."""
    found = saved("serve_rules")
    rows = [
        [name, added["16 at once"], added["1 at once"]]
        for name, added in found["more_than_plain_us"].items()
        if name != "plain"
    ]
    plain = found["cpu_us"]["plain"]
    return markdown(
        ["rule", "µs more, 16 at once", "µs more, alone"],
        [["a plain request", plain["16 at once"], plain["1 at once"]], *rows],
    )


def faults() -> str:
    """Returns the faults and what clients saw."""
    stores = saved("faults")["stores"]
    kinds = dict.fromkeys(kind for store in stores.values() for kind in store["faults"])
    rows: list[list[Cell]] = [[kind, *(each["faults"].get(kind) for each in stores.values()), ""] for kind in kinds]
    rows.append(["answers", *(sum(each["replies"].values()) for each in stores.values()), ""])
    titles = {
        "wrong": "**wrong answers**", "events_acknowledged": "acknowledged events",
        "events_lost": "**acknowledged events that were lost**", "unclean": "**failures without a clean status**",
        "hung": "**requests that hang**", "cut_by_a_kill": "connections cut when a worker was killed",
        "cut_far_from_a_kill": "connections cut later than 3 s after a kill",
        "lists_of_the_log_alone": "lists made from the log alone, marked as such",
    }  # fmt: skip
    for key, title in titles.items():
        is_bar = key in ("wrong", "events_lost", "unclean", "hung", "cut_far_from_a_kill")
        found = [each[key] for each in stores.values()]
        rows.append([title, *(_marked(count, is_missed=is_bar and count > 0) for count in found), "0" * is_bar])
    for part, title in (("p50", "median"), ("p99", "99 %"), ("p100", "slowest")):
        rows.append([f"ms of an answer, {title}", *(each["ms"][part] for each in stores.values()), ""])
    return markdown(["in all", *({"sqlite": "SQLite", "redis": "Redis"}[each] for each in stores), "wanted"], rows)


# --- the index --------------------------------------------------------------------------------------------------------


def filters() -> str:
    """Returns speed and recall under each filter, and the recall of FAISS's lists with the filter as a bitmap."""
    rows = []
    for name, found in saved("index")["parts"]["filters"].items():
        told = found.get("told_lists", {})
        rows.append([name, found["p50_ms"], found["p10_ms"], found["recall"], told.get("p50_ms"), told.get("recall")])
    return markdown(["filter", "p50, ms", "p10, ms", "recall@100", "FAISS: p50, ms", "FAISS: recall@100"], rows)


TABLES: dict[str, Callable[[], str]] = {
    **{name: claims(name) for name in ("prepare", "train", "evaluate", "index")},
    "speed of several": claims("ranks"),
    "stages": stages, "a row": a_row, "served": served, "predicted": predicted, "cold": cold,
    "losses": losses, "catalogue": catalogue, "threshold": threshold, "peers": peers, "ranks": ranks,
    "service": service, "search": search, "rules": rules, "faults": faults, "filters": filters,
}  # fmt: skip


def update_page() -> int:
    """Writes or checks the page; returns the exit code."""
    page = PAGE.read_text(encoding="utf-8")
    current = page_with_tables(page)
    if "--check" not in sys.argv:
        PAGE.write_text(current, encoding="utf-8")
    elif page != current:
        print("benchmarks/README.md does not match benchmarks/*.json: run `make docs` and commit it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(update_page())
