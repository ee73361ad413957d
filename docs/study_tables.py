"""Tables of docs/studies.md, from the results that study_runs.py saved."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from study_cells import difference, head, line
from study_length_tables import length_tables
from study_rows import NEUCF, SHOWN, Saved

from twofold.evaluate.results import MODEL
from twofold.evaluate.scores import FIRST_STAGE
from twofold.explain.gap import APPROXIMATE, BY_POPULARITY, CANDIDATES, OTHERS, SEEN
from twofold.render.numbers import format_decimal, format_interval, format_signed

WALK: Final[Mapping[str, str]] = {
    "in a batch": "in a batch",
    BY_POPULARITY: "as many uniform items",
    CANDIDATES: "the catalogue, at the same share",
    SEEN: "without seen items",
    OTHERS: "other positives compete",
    APPROXIMATE: "served",
}
"""Columns of the table that takes the gap apart, by the cause of the step that leads there."""
STAGES: Final[Mapping[str, str]] = {
    "popularity": "popularity",
    NEUCF: "NeuCF",
    FIRST_STAGE: "retriever",
    MODEL: "ranker",
}
"""Tables of two stages: rows of the report, and what the notes call them."""
KS: Final = (10, 20, 50, 100)


def tables_of(saved: Saved) -> list[str]:
    """Returns the lines of a study's tables, with an empty line between two."""
    if saved["study"] == "two-stages":
        stages = [stage for stage in STAGES if _rows_with(stage, saved["rows"])]
        return [line for stage in stages for line in (*_stage_table(saved, stage), "")] + _sampled_table(saved)
    parts = _main_table(saved)
    parts += ["", *_ideas_table(saved), "", *_walk_table(saved)] if saved["study"] == "gap" else []
    parts += ["", *length_tables(saved)] if "length" in saved["rows"][0] else []
    return [*parts, "", *_folding_table(saved)] if "folding" in saved else parts


def mean_of(row: Saved, metric: str) -> float | None:
    """Returns the mean of a metric over the seeds; `None` means that no run has it."""
    values = [value for value in row["metrics"][metric]["per_seed"] if value is not None]
    return sum(values) / len(values) if values else None


def _main_table(saved: Saved) -> list[str]:
    rows = saved["rows"]
    metrics = [metric for metric in SHOWN[saved["study"]] if any(mean_of(row, metric) is not None for row in rows)]
    lines = head("positives", metrics)
    for row in rows:
        share = "–" if row["positive_share"] is None else format_decimal(row["positive_share"])
        lines.append(line(row, row["name"], share, [_cell(row, metric) for metric in metrics]))
    for name, values in rows[0].get("beside", {}).items():
        cells = [format_decimal(values.get(metric)) for metric in metrics]
        lines.append(line(rows[0], f"{rows[0]['name']}: {name}", "", cells))
    return lines


def _cell(row: Saved, metric: str) -> str:
    found = row["metrics"][metric]
    parts = [format_decimal(mean_of(row, metric))]
    if found["chance"] is not None:
        parts.append(f"chance {format_decimal(found['chance'])}")
    return "<br>".join([*parts, *difference(row, found["minus"])])


def _ideas_table(saved: Saved) -> list[str]:
    """Returns what each idea moved, the largest gain in recall@100 first, and the processor seconds of a run."""
    ideas = sorted(saved["rows"][1:], key=lambda row: -_gain(row))
    metrics = ("catalogue/recall@100", "catalogue_filtered/recall@100", "impressions/auc", "language/folding")
    lines = head("idea", [*metrics, "language/off_group", "processor_s"])
    for row in (saved["rows"][0], *ideas):
        cells = [_cell(row, metric) for metric in (*metrics, "language/off_group")]
        seconds = float(np.mean(row["processor_s"]))
        lines.append(line(row, row["name"], row["about"].rstrip("."), [*cells, format_decimal(seconds)]))
    return ["Each idea by what it moved:", "", *lines]


def _gain(row: Saved) -> float:
    """Returns the gain in recall@100, among the allowed items where the idea is a filter."""
    gains = [row["metrics"][f"{name}/recall@100"]["minus"] for name in ("catalogue", "catalogue_filtered")]
    return float(max(each[0] for each in gains if each is not None))


def _walk_table(saved: Saved) -> list[str]:
    """Returns the hit rate@10 of the same pairs, one difference between the exams after the other."""
    lines = head("", list(WALK.values()))
    for row in saved["rows"]:
        shares = {step["cause"]: step["share"] for step in row["walk"]}
        lines.append(line(row, row["name"], "", [format_decimal(shares[cause]) for cause in WALK]))
    return lines


def _folding_table(saved: Saved) -> list[str]:
    """Returns the folding of languages after each epoch, whichever epoch was kept."""
    rows = [row for row in saved["rows"] if row["name"] in saved["folding"]]
    epochs = max(map(len, saved["folding"].values()))
    lines = head("", [f"folding, epoch {epoch + 1}" for epoch in range(epochs)])
    for row in rows:
        values = saved["folding"][row["name"]]
        lines.append(line(row, row["name"], "", [format_decimal(each) for each in values]))
    return lines


def _stage_table(saved: Saved, stage: str) -> list[str]:
    """Returns the table of one stage: a line for each experiment and k."""
    names = ("hit_rate", "recall", "ndcg", "mrr")
    lines = head("k", [f"catalogue/{name}" for name in names])
    for row in _rows_with(stage, saved["rows"]):
        for k in KS:
            metrics = [f"catalogue/{name}@{k}" for name in names]
            lines.append(_stage_row(row, stage, f"{k}", metrics))
    name = STAGES[stage]
    return [f"{name[0].upper()}{name[1:]}:", "", *lines]


def _rows_with(stage: str, rows: Sequence[Saved]) -> list[Saved]:
    """Returns the rows that have a stage: NeuCF was trained for one of them."""
    return [row for row in rows if stage == MODEL or stage in row["beside"]]


def _stage_row(row: Saved, stage: str, third: str, metrics: Sequence[str]) -> str:
    """Returns the values of one stage of an experiment: of both stages together, or of a row beside them."""
    values = {metric: mean_of(row, metric) for metric in metrics} if stage == MODEL else row["beside"][stage]
    label = row["name"] if stage == MODEL else f"{row['name']}: {stage}"
    minus = row["model_minus"].get(stage, {})
    return line(row, label, third, [_beside(values.get(metric), minus.get(metric)) for metric in metrics])


def _beside(value: float | None, minus: Sequence[float] | None) -> str:
    """Returns a value of a row beside the model, and what both stages together gain over it."""
    if minus is None:
        return format_decimal(value)
    difference, low, high = minus
    return f"{format_decimal(value)}<br>ranker − this {format_signed(difference)} {format_interval(low, high)}"


def _sampled_table(saved: Saved) -> list[str]:
    """Returns the table of the experiments whose positives are also ranked among sampled items."""
    metrics = [metric for metric in SHOWN[saved["study"]] if metric.startswith("sampled/")]
    rows = [row for row in saved["rows"] if any(mean_of(row, metric) is not None for metric in metrics)]
    metrics = [metric for metric in metrics if any(mean_of(row, metric) is not None for row in rows)]
    lines = head("", metrics)
    for stage in STAGES:
        lines += [_stage_row(row, stage, "", metrics) for row in _rows_with(stage, rows)]
    return ["Among sampled items:", "", *lines]
