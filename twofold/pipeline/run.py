"""Every stage in order, on one screen: read this first.

`run` is the whole pipeline. A stage is a function from complete stages to a complete stage; each one below is found,
not made again, when nothing it depends on has changed (`bundle.run_stage`).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from twofold.digest import file_digest
from twofold.environment import commit, hardware
from twofold.errors import RunError
from twofold.recipe.load import dump_recipe, load_recipe, recipe_differences, recipe_digest
from twofold.recipe.schema import Recipe
from twofold.recipe.train import Ials, Regression, TwoTower
from twofold.run_folder import Stage, locked, open_stage, run_stage, write_json

if TYPE_CHECKING:
    from twofold.evaluate.results import Report
    from twofold.model.second_stage import SecondStage
    from twofold.prepare.duckdb_engine import OpenEngine
    from twofold.train.loop import Setup


@dataclass(frozen=True)
class Job:
    """A recipe, the folder its run lives in; what prepares its log: DuckDB, unless something else is given; what its
    training runs on: this process alone, on the processor; and who hears of validations, and may end it by raising.
    """

    recipe: Recipe
    folder: Path
    engine: "OpenEngine | None" = None
    setup: "Setup | None" = None
    hear: Callable[[float], None] = lambda value: None


def run(
    recipe: Recipe,
    *,
    runs: Path = Path("runs"),
    name: str | None = None,
    replace: bool = False,
    engine: "OpenEngine | None" = None,
    tell: Callable[[Stage], None] = lambda stage: None,
) -> Job:
    """Takes a log to judged recommendations; returns the job, whose folder then holds every stage.

    `tell` hears of each stage as it is complete.
    """
    return run_job(Job(recipe, runs / (name or recipe.name), engine), replace=replace, tell=tell)


def run_job(job: Job, *, replace: bool = False, tell: Callable[[Stage], None] = lambda stage: None) -> Job:
    """The same of a job, which also says what its training runs on."""
    with locked(job.folder):
        claim_folder(job, replace=replace)
        tell(prepared := prepare(job))
        tell(dataset := build_dataset(job, prepared))
        tell(trained := train(job, dataset))
        if (ranked := train_ranker(job, dataset, trained)) is not None:
            tell(ranked)
        tell(evaluate(job, prepared, dataset, trained))
        tell(indexed := index(job, dataset, trained))
        tell(recommended := recommend(job, indexed))
        tell(explain(job, indexed, recommended))
    return job


def prepare(job: Job) -> Stage:
    """The log → rows, events, items, users and the funnel."""
    from twofold.prepare.check import check_recipe
    from twofold.prepare.duckdb_engine import duckdb_engine
    from twofold.prepare.run_plan import prepare as work

    source = check_recipe(job.recipe)
    inputs = {
        "prepare": job.recipe.prepare.model_dump(mode="json"),
        "data": source.fingerprint(),
        **job.recipe.data.model_dump(mode="json", include={"columns", "at_unit"}),
    }
    engine = job.engine or duckdb_engine
    return run_stage(job.folder, "prepare", inputs=inputs, work=lambda out: work(job.recipe, out, engine))


def build_dataset(job: Job, prepared: Stage) -> Stage:
    """Tables → arrays, with everything fitted on the training window."""
    from twofold.dataset.dataset import build_dataset as work

    features = job.recipe.all_features
    inputs = {"prepare": prepared.digest, "features": features.model_dump(mode="json")}
    offset = job.recipe.prepare.utc_offset_h
    return run_stage(
        job.folder,
        "dataset",
        inputs=inputs,
        work=lambda out: work(prepared.folder, features, out, utc_offset_h=offset),
    )


def train(job: Job, dataset: Stage) -> Stage:
    """Arrays → the weights of the best epoch on the validation window."""

    def work(out: Path) -> Mapping[str, Any]:
        _signal_ranks(job, isinstance(job.recipe.retriever, TwoTower))
        return _train(job, dataset.folder, out)

    parts = job.recipe.model_dump(mode="json", include={"retriever", "train"})
    trained = run_stage(job.folder, "train", inputs={"dataset": dataset.digest, **parts}, work=work)
    if trained.was_reused:
        _signal_ranks(job, False)
    return trained


def run_worker_rank(job: Job) -> None:
    """What the ranks of a training do that are not the first: wait until it has the arrays, then take their part of
    every batch. It alone prepares, writes and judges.
    """
    if _signal_ranks(job, False):
        _train(job, job.folder / "dataset", job.folder / "train.partial")


def _signal_ranks(job: Job, to_work: bool) -> bool:
    """What the first rank says: whether there is work for all."""
    if job.setup is None:
        return to_work
    from twofold.train.distributed import broadcast_from_rank0

    return bool(broadcast_from_rank0(job.setup.ranks, lambda: float(to_work)))


def _train(job: Job, dataset: Path, out: Path) -> Mapping[str, Any]:
    from twofold.dataset.dataset import load_dataset
    from twofold.evaluate.catalogue import evaluate_catalogue
    from twofold.evaluate.evaluate_window import primary_k
    from twofold.evaluate.window import evaluation_window
    from twofold.model.multi_tower import build_towers
    from twofold.model.retriever import Model
    from twofold.pipeline.adapters import scores_of
    from twofold.train.loop import SINGLE_PROCESS_CPU, fit

    arrays = load_dataset(dataset, job.recipe.features)
    window = evaluation_window(arrays, "validation")
    k = primary_k(len(arrays.items))

    def validate(model: Model) -> float:
        found = evaluate_catalogue(window, scores_of(model, arrays, window), ks=(k,)).mean(f"catalogue/recall@{k}")
        job.hear(found)
        return found

    asked, settings = job.recipe.retriever, job.recipe.train
    match asked:
        case TwoTower():
            towers = partial(build_towers, asked, arrays)
            return fit(towers, arrays, settings, validate=validate, out=out, setup=job.setup or SINGLE_PROCESS_CPU)
        case Ials():
            from twofold.train.als import fit_factors

            return fit_factors(arrays, asked, seed=settings.seed, validate=validate, out=out)
        case _:
            assert_never(asked)


def train_ranker(job: Job, dataset: Stage, trained: Stage) -> Stage | None:
    """What the retriever finds → the weights of the ranker, of its best epoch on validation; None without a ranker.

    It lies in the folder of the retriever that it was taught by, and goes with it.
    """
    from twofold.evaluate.catalogue import evaluate_catalogue
    from twofold.evaluate.evaluate_window import primary_metric_of
    from twofold.evaluate.window import evaluation_window
    from twofold.model.ranker import load_stages
    from twofold.model.retriever import load_model
    from twofold.pipeline.adapters import two_stages
    from twofold.train.ranker import fit_second_stage

    asked = job.recipe.ranker
    if asked is None:
        return None

    def work(out: Path) -> Mapping[str, Any]:
        arrays = load_stages(dataset.folder, job.recipe.features, job.recipe.ranker_features)
        model = load_model(job.recipe.retriever, arrays.retriever, trained.folder)
        window = evaluation_window(arrays.retriever, "validation")
        metric = primary_metric_of(window.num_items, is_two_stages=True)

        def validate(ranker: "SecondStage") -> float:
            scores = two_stages(model, ranker, arrays, window)
            return evaluate_catalogue(window, scores, ks=(int(metric.partition("@")[2]),)).mean(metric)

        return fit_second_stage(model, arrays, asked=asked, validate=validate, out=out)

    inputs = {"train": trained.digest, "dataset": dataset.digest, "ranker": asked.model_dump(mode="json")}
    return run_stage(job.folder, "train/ranker", inputs=inputs, work=work)


def evaluate(job: Job, prepared: Stage, dataset: Stage, trained: Stage) -> Stage:
    """The model and the baselines on the test window → report.json, report.html, and the values of single users."""
    import pyarrow.parquet as pq

    from twofold.dataset.dataset import item_attributes
    from twofold.dataset.recent_counts import with_counts
    from twofold.evaluate.baselines import positives_before
    from twofold.evaluate.evaluate_window import evaluate_window, evaluation_options
    from twofold.evaluate.per_user_values import save_values
    from twofold.evaluate.report_page import write_report
    from twofold.evaluate.results import MODEL
    from twofold.evaluate.sampled import negatives_of
    from twofold.evaluate.window import evaluation_window
    from twofold.model.ranker import load_stages
    from twofold.model.retriever import describe_model, load_model
    from twofold.model.second_stage import describe_second_stage, load_second_stage
    from twofold.pipeline.adapters import allowed_items, judged_heads, score_sources

    ranked = train_ranker(job, dataset, trained)

    def work(out: Path) -> Mapping[str, Any]:
        stages = load_stages(dataset.folder, job.recipe.features, job.recipe.ranker_features)
        arrays = stages.retriever
        window = evaluation_window(arrays, "test")
        model = load_model(job.recipe.retriever, arrays, trained.folder)
        ranker = load_second_stage(job.recipe.ranker, stages, ranked, retriever=model)
        bounds = job.recipe.prepare.bounds_ms("test")
        items = with_counts(
            item_attributes(dataset.folder), arrays, job.recipe.index.recent_counts, as_of=int(window.query_at.min())
        )
        positives = positives_before(arrays, window, first_at=bounds[0] if bounds else None)
        options = evaluation_options(
            arrays,
            window,
            tables=(items, pq.read_table(prepared.folder / "users.parquet")),
            with_target=isinstance(job.recipe.train.loss, Regression),
            utc_offset_h=job.recipe.prepare.utc_offset_h,
            columns=job.recipe.slice_columns,
        )
        only = allowed_items(items, job.recipe.index.where)
        asked, published = job.recipe.evaluate.sampled, job.recipe.data.published_negatives
        sampled = negatives_of(asked, window, arrays, positives=positives, published=published)
        rows, kept = score_sources(model, ranker, stages, window), prepared.folder / "fitted"
        heads = judged_heads(model, ranker, stages, window, prepare=job.recipe.prepare, fitted=kept)
        parts = describe_model(model) + ([] if ranker is None else describe_second_stage(ranker))
        judged = evaluate_window(
            window,
            rows.pop(MODEL),
            positives,
            batch_size=job.recipe.train.batch_size,
            facts=_facts(job, (prepared, dataset, trained)) | {"model": [asdict(part) for part in parts]},
            options=replace(options, allowed_items=only, sampled=sampled, others=rows, heads=heads),
        )
        write_report(judged.report, out)
        save_values(judged, window, out, users=arrays.users, items=arrays.items, slicings=options.slicings)
        return {"metrics": judged.report.metrics_of("model")}

    inputs = {**_models(dataset, trained, ranked), **_allowed_items(job), **_evaluation_inputs(job)}
    return run_stage(job.folder, "evaluate", inputs=inputs, work=work)


def index(job: Job, dataset: Stage, trained: Stage) -> Stage:
    """The bundle: user tower, item vectors, attributes, histories; the only thing serving opens."""
    from twofold.dataset.dataset import item_attributes
    from twofold.dataset.recent_counts import with_counts
    from twofold.index.item_index import build_index, save_index
    from twofold.model.ranker import load_stages
    from twofold.model.retriever import as_products, item_vectors, load_model, save_user_side
    from twofold.model.second_stage import load_second_stage, save_second_stage
    from twofold.pipeline.adapters import allowed_items, some_queries
    from twofold.serve.bundle import save_context

    ranked = train_ranker(job, dataset, trained)

    def work(out: Path) -> Mapping[str, Any]:
        stages = load_stages(dataset.folder, job.recipe.features, job.recipe.ranker_features)
        arrays = stages.retriever
        model = load_model(job.recipe.retriever, arrays, trained.folder)
        as_of, asked = dataset.facts["last_event_at"] + 1, job.recipe.index
        attributes = with_counts(item_attributes(dataset.folder), arrays, asked.recent_counts, as_of=as_of)
        only = allowed_items(attributes, asked.where)
        vectors = item_vectors(model, arrays, as_of)
        if (ranker := load_second_stage(job.recipe.ranker, stages, ranked, retriever=model)) is not None:
            save_second_stage(ranker, stages, as_products(model, vectors[:0], vectors)[1], at=as_of, folder=out)
        made = build_index(vectors, score=model.score, queries=some_queries(model, arrays, as_of))
        save_index(made, out)
        save_user_side(model, out)
        save_context(dataset.folder, out, as_of=as_of, attributes=attributes, where=asked.where)
        passing = {} if only is None else {"passing": int(only.allowed.sum())}
        return {"items": len(vectors), "dim": int(vectors.shape[1]), "as_of": as_of, **passing, **made.facts}

    inputs = {**_models(dataset, trained, ranked), **_allowed_items(job)}
    return run_stage(job.folder, "index", inputs=inputs, work=work)


def recommend(job: Job, indexed: Stage) -> Stage:
    """The bundle → recommendations.parquet: the best unseen items of every user of the log."""
    from twofold.serve.recommender import load

    def work(out: Path) -> Mapping[str, Any]:
        rows = load(job.folder).recommend_all(job.recipe.recommend_k, out / "recommendations.parquet")
        return {"rows": rows, "k": job.recipe.recommend_k}

    inputs = {"index": indexed.digest, "k": job.recipe.recommend_k}
    return run_stage(job.folder, "recommend", inputs=inputs, work=work)


def explain(job: Job, indexed: Stage, recommended: Stage) -> Stage:
    """Vectors, lists and the trained model → gap.json, why batches look better; probes.json, with alarms; the map.

    The card of the run is written beside the stages.
    """
    from twofold.dataset.dataset import item_attributes, load_dataset
    from twofold.dataset.vocabulary import Vocabulary
    from twofold.evaluate.window import evaluation_window
    from twofold.explain.card import write_card
    from twofold.explain.gap import measure_gap
    from twofold.explain.map import MapUsers
    from twofold.explain.map_page import map_run
    from twofold.explain.run_probes import probe_records, probe_run, read_lists
    from twofold.index.item_index import load_index
    from twofold.model.retriever import load_model
    from twofold.pipeline.adapters import gap_case, probe_masked

    def work(out: Path) -> Mapping[str, Any]:
        dataset, trained = (open_stage(job.folder, name) for name in ("dataset", "train"))
        arrays, batch_size = load_dataset(dataset.folder, job.recipe.features), job.recipe.train.batch_size
        window = evaluation_window(arrays, "test")
        model = load_model(job.recipe.retriever, arrays, trained.folder)
        served, listed = load_index(indexed.folder), Vocabulary.load(indexed.folder / "items.parquet")
        case = gap_case(model, arrays, window, index=served, listed=listed)
        gap = measure_gap(case, batch_size=batch_size, k=min(10, batch_size - 1))
        write_json(out / "gap.json", asdict(gap))
        lists = read_lists(recommended.folder / "recommendations.parquet", arrays)
        attributes = item_attributes(dataset.folder)
        probes = probe_run(arrays, served.vectors, lists, attributes=attributes, columns=job.recipe.slice_columns)
        probes += probe_masked(model, arrays, window, case)
        records = probe_records(probes)
        write_json(out / "probes.json", records)
        users = MapUsers(arrays.users.ids_of(window.user_rows), case.stored.queries, case.stored.items)
        drawn = map_run(out, served.vectors, attributes, users=users)
        return {"probes": records, "gap": asdict(gap), "map": drawn}

    inputs = {"index": indexed.digest, "recommend": recommended.digest, "columns": job.recipe.slice_columns}
    explained = run_stage(job.folder, "explain", inputs=inputs, work=work)
    write_card(job.folder)
    return explained


# --- what the stages above share --------------------------------------------------------------------------------------


def reopen(folder: Path) -> Job:
    """The job of a run folder, with the recipe it holds."""
    held = folder / "recipe.yaml"
    if not held.exists():
        raise RunError(f"{folder} is no run folder: it holds no recipe.yaml. List the runs with `twofold runs`.")
    return Job(load_recipe(held), folder)


def up_to_training(job: Job) -> tuple[Stage, Stage, Stage]:
    """The first three stages, found or made."""
    prepared = prepare(job)
    dataset = build_dataset(job, prepared)
    return prepared, dataset, train(job, dataset)


def claim_folder(job: Job, *, replace: bool) -> None:
    """Writes the recipe into the run folder; refuses a folder that holds a run of another recipe."""
    held = job.folder / "recipe.yaml"
    if held.exists() and not replace:
        old = load_recipe(held)
        changes = recipe_differences(old, job.recipe)
        if changes:
            listed = "; ".join(f"{change.field}: {change.old} → {change.new}" for change in changes[:5])
            more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
            raise RunError(
                f"{job.folder} holds a run of another recipe. It differs in {listed}{more}. Keep it and choose another "
                f"folder with --run NAME, or give up its results with --replace."
            )
    held.write_text(dump_recipe(job.recipe))
    write_json(job.folder / "run.json", {"recipe_digest": recipe_digest(job.recipe), "twofold": version("twofold")})


def report_of(folder: Path) -> "Report":
    """The report of a judged run."""
    from twofold.evaluate.results import load_report

    return load_report(open_stage(folder, "evaluate").folder / "report.json")


def _models(dataset: Stage, trained: Stage, ranked: Stage | None) -> dict[str, Any]:
    """What judging and serving depend on."""
    return {"dataset": dataset.digest, "train": trained.digest} | ({} if ranked is None else {"ranker": ranked.digest})


def _allowed_items(job: Job) -> dict[str, Any]:
    """What judging and serving depend on besides the model, where the recipe says so."""
    asked = job.recipe.index.model_dump(mode="json", exclude_defaults=True)
    return {"index": asked} if asked else {}


def _evaluation_inputs(job: Job) -> dict[str, Any]:
    """What a report depends on besides, where the recipe asks for more."""
    asked = job.recipe.evaluate.model_dump(mode="json", exclude_defaults=True)
    if not asked:
        return {}
    published = job.recipe.data.published_negatives
    return {"evaluate": asked, "sampled_negatives": None if published is None else file_digest(published)}


def _facts(job: Job, stages: tuple[Stage, ...]) -> dict[str, Any]:
    """What a report states of where it comes from; the stages are preparation, dataset and training."""
    return {
        "recipe": job.recipe.name,
        "recipe_digest": recipe_digest(job.recipe),
        "commit": commit(),
        "hardware": hardware(),
        "precision": stages[2].facts.get("precision", "float32"),
        "versions": {name: version(name) for name in ("twofold", "torch", "numpy", "duckdb")},
        "seconds": {stage.folder.name: round(stage.seconds, 1) for stage in stages},
        "funnel": stages[0].facts["funnel"],
    }
