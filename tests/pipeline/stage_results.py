"""Summaries of what the stages write for fixed inputs, and the command that records them.

    python -m tests.pipeline.stage_results

writes `stage_results.json`. It refuses a stage whose results changed while neither its version nor its inputs did.
Summaries are equal on every machine: ids, counts and texts are hashed, and floats, whose last digits depend on the
processor, are summed up and compared with a tolerance.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from tests.prepare.spark_cases import ODD_ITEMS, odd_log
from tests.worlds import world_recipe, write_world
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import item_attributes, load_dataset
from twofold.digest import digest_of
from twofold.evaluate.baselines import positives_before
from twofold.evaluate.evaluate_window import evaluate_window, evaluation_options
from twofold.evaluate.headline_metrics import deciding_metrics
from twofold.evaluate.peer_tuning import tune_peers
from twofold.evaluate.window import evaluation_window
from twofold.explain.run_probes import probe_records, probe_run
from twofold.index.item_index import build_index, save_index
from twofold.pipeline.stage_versions import STAGE_VERSIONS
from twofold.prepare.run_plan import prepare
from twofold.ragged import Ragged
from twofold.serve.bundle import save_context

RECORD: Final = Path(__file__).with_name("stage_results.json")
TOLERANCE: Final = 1e-5  # of the sum of the absolute values; float32 has 1e-7, a decomposition about 1e-6
NOT_RECORDED: Final = {
    "train": "the last digits of a trained weight depend on the processor, and training multiplies them",
    "train/ranker": "as train",
    "recommend": "the order of the lists follows trained weights",
}
WORDING: Final = {"name", "verdict", "meaning", "tie_rule", "interval"}  # sentences and headings, not results
Summary = dict[str, list[Any]]
"""Per file: a hash of everything that is no float, the sum of the absolute floats, and their weighted sum."""


# --- summaries --------------------------------------------------------------------------------------------------------


def summary_of(values: Any) -> list[Any]:
    """Summarizes the leaves of nested lists and dicts."""
    exact, floats = hashlib.sha256(), []
    for path, leaf in _leaves(values, ""):
        if isinstance(leaf, float) and math.isfinite(leaf):
            floats.append(leaf)
            leaf = "float"
        exact.update(f"{path}={leaf!r}\n".encode())
    numbers = np.array(floats)
    weighted = numbers @ (1 + np.arange(len(numbers)) % 17)  # so that exchanged values are seen
    return [exact.hexdigest()[:16], float(f"{np.abs(numbers).sum():.9g}"), float(f"{weighted:.9g}")]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    match value:
        case dict():
            for key in sorted(value.keys() - WORDING):
                yield from _leaves(value[key], f"{path}/{key}")
        case list() | tuple():
            for each in value:
                yield from _leaves(each, path)
            yield path, f"length {len(value)}"
        case _:
            yield path, value


def folder_summary(folder: Path) -> Summary:
    """Summarizes every file of a folder by its content, whatever its compression."""
    return {
        str(path.relative_to(folder)): summary_of(_content(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _content(path: Path) -> Any:
    match path.suffix:
        case ".parquet":
            table = pq.ParquetFile(path).read()
            return {name: [str(table[name].type), table[name].to_pylist()] for name in table.column_names}
        case ".arrow":
            table = pa.ipc.open_file(path).read_all()
            return {name: [str(table[name].type), table[name].to_pylist()] for name in table.column_names}
        case ".npy":
            array = np.load(path)
            return [str(array.dtype), array.shape, array.tolist()]
        case ".npz":
            with np.load(path) as arrays:
                return {name: array.tolist() for name, array in arrays.items()}
        case ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        case ".onnx":
            return onnx.printer.to_text(onnx.load(path, load_external_data=False))
        case _:
            raise ValueError(f"{path.name}: this kind of file has no summary yet; add one to {Path(__file__).name}")


def changed_files(recorded: Summary, found: Summary) -> list[str]:
    """Returns the names of the files that differ; empty if none does."""
    return sorted(
        name
        for name in recorded.keys() | found.keys()
        if name not in recorded or name not in found or not _is_close(recorded[name], found[name])
    )


def _is_close(recorded: list[Any], found: list[Any]) -> bool:
    slack = TOLERANCE * max(recorded[1], found[1])
    return bool(
        recorded[0] == found[0] and abs(recorded[1] - found[1]) <= slack and abs(recorded[2] - found[2]) <= 17 * slack
    )


# --- the stages on fixed inputs ---------------------------------------------------------------------------------------

PREPARE: Final[Mapping[str, Any]] = {
    "derive": {"fraction": "watch_s / length_s"},
    "labels": {
        "gain_5s": {"kind": "wtg", "buckets": {"kind": "width", "seconds": 5}, "shrink": 0},
        "gain": {"kind": "wtg", "buckets": {"kind": "equal_frequency", "n": 20}},
        "item_gain": {"kind": "wtg", "buckets": {"kind": "item", "creator": "creator"}},
        "done_gain": {"kind": "wtg", "buckets": {"kind": "equal_frequency", "n": 5}, "quantity": "completion"},
        "done": {"kind": "pcc"},
        "share": {"kind": "quantile"},
        "long": {"kind": "long_view"},
        "below": {"kind": "below_mean"},
    },
    "positive": "long OR liked OR gain_5s > 1.5 OR note IN ('it''s', '')",
    "negative": "below AND item_gain < 0 OR done_gain < -1 OR fraction < 0.2",
    "weight": "CASE WHEN liked THEN 3 WHEN done > 0.8 THEN 1.2 ELSE LEAST(SQRT(watch_s), 8) END",
    "target": "LEAST(GREATEST(COALESCE(gain, item_gain), -3), 3)",
    "outcomes": {"watch": "share", "long": "long"},
    "filters": [{"kind": "items", "min_events": 2}, {"kind": "users", "min_events": 3, "min_positives": 1}],
    "filter_rounds": 2,
    "sample": {"users": 0.8},
    "positive_share": 0.9,
    "counters": {
        "item_id": {"rates": {"like": "liked"}, "means": {"watch": "watch_s"}},
        "creator": {"rates": {"like": "liked"}},
    },
}


def prepare_results(folder: Path) -> tuple[str, Summary]:
    """Runs `prepare` with most kinds of label, rule, filter and counter on a log of odd values."""
    log = write_world(folder / "log", odd_log(0), ODD_ITEMS)
    recipe = world_recipe(log)
    parts = {"prepare": recipe.prepare.model_dump(mode="json", exclude_unset=True) | PREPARE}
    recipe = recipe.model_validate(recipe.model_dump(exclude_unset=True) | parts)
    facts = prepare(recipe, folder)
    inputs = {"parts": parts, "log": folder_summary(folder / "log")}
    written = {name: each for name, each in folder_summary(folder).items() if not name.startswith("log/")}
    return digest_of(inputs), written | {"facts": summary_of(json.loads(json.dumps(facts)))}


def dataset_results(folder: Path) -> tuple[str, Summary]:
    """Runs `dataset` with every kind of feature on prepared files that are written without the preparation."""
    prepared = folder / "prepare"
    inputs, facts = _build_dataset(folder)
    written = folder_summary(folder / "dataset") | {"facts": summary_of(facts)}
    return digest_of([inputs, folder_summary(prepared)]), written


def _build_dataset(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    (folder / "prepare").mkdir(parents=True)
    write_prepared(folder / "prepare", random_events(0))
    facts = build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return FEATURES.model_dump(mode="json", exclude_unset=True), facts


def evaluate_results(folder: Path) -> tuple[str, Summary]:
    """Evaluates fixed scores and the baselines on the test window; iALS, whose last digits vary, is left out."""
    _build_dataset(folder)
    arrays = load_dataset(folder / "dataset")
    window = evaluation_window(arrays, "test")
    tables = (item_attributes(folder / "dataset"), pq.read_table(folder / "prepare" / "users.parquet"))
    validation = evaluation_window(arrays, "validation")
    options = replace(
        evaluation_options(arrays, window, tables=tables, with_target=True, columns=()),
        tuning=tune_peers(
            validation,
            positives_before(arrays, validation, first_at=None),
            metrics=deciding_metrics(window.num_items),
        ),
    )
    scores = np.sin(np.arange(len(window.user_rows) * window.num_items, dtype=np.float64) ** 2)
    scores = scores.reshape(len(window.user_rows), -1).astype(np.float32)
    facts = dict.fromkeys(("recipe", "recipe_digest", "commit", "hardware", "precision"), "") | {
        "versions": {},
        "seconds": {},
    }
    result = evaluate_window(
        window,
        lambda users: scores[users].copy(),
        positives_before(arrays, window, first_at=None),
        batch_size=8,
        facts=facts,
        options=options,
    )
    report = _without_ials(json.loads(json.dumps(asdict(result.report))))
    for unstable in ("facts", "left_out", "beats_all", "badge", "headlines", "baselines"):
        report.pop(unstable)
    assert not report["slices"]["base"].startswith("iALS")
    inputs = [folder_summary(folder / "dataset"), summary_of(scores.tolist())]
    return digest_of(inputs), {name: summary_of(section) for name, section in report.items() if name not in WORDING}


def _without_ials(value: Any) -> Any:
    match value:
        case dict():
            return {name: _without_ials(each) for name, each in value.items()}
        case list():
            return [_without_ials(each) for each in value if not _is_ials(each)]
        case _:
            return value


def _is_ials(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("name")).startswith("iALS")


def index_results(folder: Path) -> tuple[str, Summary]:
    """Writes the index of fixed vectors and the copied parts of the dataset: all of a bundle but the user tower."""
    _build_dataset(folder)
    out = folder / "index"
    out.mkdir()
    save_index(build_index(_vectors(22), score="cosine"), out)
    save_context(folder / "dataset", out, as_of=1_000_000, where="language IS NOT NULL")
    return digest_of(folder_summary(folder / "dataset")), folder_summary(out)


def explain_results(folder: Path) -> tuple[str, Summary]:
    """Runs the probes on fixed vectors and lists. The gap and the map need a trained model."""
    _build_dataset(folder)
    arrays = load_dataset(folder / "dataset")
    lists = Ragged(np.arange(14 * 5) * 7 % 22, np.arange(15) * 5)
    attributes = item_attributes(folder / "dataset")
    probes = probe_run(arrays, _vectors(22), lists, attributes=attributes, columns=("creator",))
    records = json.loads(json.dumps(probe_records(probes)))
    return digest_of(folder_summary(folder / "dataset")), {"probes": summary_of(records)}


def _vectors(items: int) -> np.ndarray:
    """Returns vectors of length 1 that no random generator drew."""
    vectors = np.sin(np.arange(items * 4, dtype=np.float64) ** 2).reshape(items, 4)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


RESULTS: Final[Mapping[str, Callable[[Path], tuple[str, Summary]]]] = {
    "prepare": prepare_results,
    "dataset": dataset_results,
    "evaluate": evaluate_results,
    "index": index_results,
    "explain": explain_results,
}


# --- the record -------------------------------------------------------------------------------------------------------


def complaint(stage: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Returns what must be done about a stage whose record is not what was found; `None` means nothing."""
    changed = changed_files(recorded["results"], found["results"])
    if not changed and recorded["version"] == found["version"]:
        return None
    record = "record the results with `python -m tests.pipeline.stage_results`"
    if changed and recorded["version"] == found["version"] and recorded["inputs"] == found["inputs"]:
        return (
            f"the stage {stage} writes other results for the same inputs ({', '.join(changed)}), but its version is "
            f"still {found['version']}: runs made before would be used again. Raise {stage!r} in "
            f"twofold/pipeline/stage_versions.py with a comment that says what changed, then {record}."
        )
    return f"the results, inputs or version of the stage {stage} are not those of {RECORD.name}: {record}."


def find_results(stage: str, folder: Path) -> dict[str, Any]:
    """Runs a stage on its fixed inputs in a new folder."""
    inputs, results = RESULTS[stage](folder)
    return {"version": STAGE_VERSIONS[stage], "inputs": inputs[:16], "results": results}


def main() -> None:
    """Records the results of every stage, or says which version must be raised first."""
    recorded = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for stage in RESULTS:
        with TemporaryDirectory() as folder:
            found = find_results(stage, Path(folder))
        message = complaint(stage, recorded[stage], found) if stage in recorded else None
        if message is not None and message.startswith("the stage"):
            sys.exit(message)
        if message is not None or stage not in recorded:
            recorded[stage] = found
    lines = {
        stage: ",\n".join(f"   {json.dumps(name)}: {json.dumps(each)}" for name, each in found["results"].items())
        for stage, found in recorded.items()
    }
    heads = {
        stage: f'"version": {found["version"]}, "inputs": "{found["inputs"]}"' for stage, found in recorded.items()
    }
    stages = (f' {json.dumps(stage)}: {{{heads[stage]}, "results": {{\n{lines[stage]}\n }}}}' for stage in recorded)
    RECORD.write_text("{\n" + ",\n".join(stages) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
