"""The stage `explain`: why the lists are as they are."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

from twofold.dataset.dataset import item_attributes
from twofold.dataset.vocabulary import Vocabulary
from twofold.explain.diversity import read_lists
from twofold.explain.gap import measure_gap
from twofold.explain.map import MapUsers
from twofold.explain.map_page import map_run
from twofold.explain.run_probes import probe_records, probe_run
from twofold.index.item_index import load_index
from twofold.page.run_page import write_run_page
from twofold.pipeline.adapters import ServedIndex, gap_case, probe_new_items, window_of
from twofold.pipeline.job import Job
from twofold.pipeline.trained_models import load_models
from twofold.progress import heartbeat
from twofold.run_folder import Stage, write_json

_NO_MAP: Final = {"missing": "This run has no map, because its recipe has evaluate.brief: true."}


def explain(job: Job, dataset: Stage, retriever: Stage, indexed: Stage, recommended: Stage) -> Stage:
    """Writes gap.json (from training batches to served lists), probes.json (with warnings) and the map.

    The page of the run is written again beside the stages.
    """
    inputs: dict[str, Any] = {
        "index": indexed.digest,
        "recommend": recommended.digest,
        "columns": job.recipe.slice_columns,
    }
    inputs |= {"brief": True} if job.recipe.evaluate.brief else {}
    work = heartbeat("explain")(partial(_explain, job, dataset, retriever, indexed, recommended))
    explained = job.run_stage("explain", inputs, work)
    write_run_page(job.folder)
    return explained


def _explain(
    job: Job, dataset: Stage, retriever: Stage, indexed: Stage, recommended: Stage, out: Path
) -> Mapping[str, Any]:
    models = load_models(job, dataset, retriever)
    arrays, batch_size = models.data.retriever, max(job.recipe.train.batch_size, 2)
    window = window_of(job.recipe, arrays, "test")
    index, items = load_index(indexed.folder), Vocabulary.load(indexed.folder / "items.parquet")
    served = ServedIndex(index, items, indexed.facts["as_of"])
    case = gap_case(models.retriever, arrays, window, served=served, settings=job.recipe.train)
    gap = measure_gap(case, batch_size=batch_size, k=min(10, batch_size - 1))
    write_json(out / "gap.json", asdict(gap))
    lists = read_lists(recommended.folder / "recommendations.parquet", arrays)
    attributes = item_attributes(dataset.folder)
    probes = probe_run(arrays, index.vectors, lists, attributes=attributes, columns=job.recipe.slice_columns)
    records = probe_records((*probes, probe_new_items(models.retriever, arrays, window, case)))
    write_json(out / "probes.json", records)
    users = MapUsers(arrays.users.ids_of(window.user_rows), case.stored.queries, case.stored.items)
    drawn = _NO_MAP if job.recipe.evaluate.brief else map_run(out, index.vectors, attributes, users=users)
    return {"probes": records, "gap": asdict(gap), "map": drawn}
