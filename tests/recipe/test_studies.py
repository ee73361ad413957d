"""The studies under recipes/: each experiment differs from its base by what its notes say, and can be prepared."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.ingest.world_events import World, write_world
from twofold.pipeline import run as pipeline
from twofold.prepare.run_plan import prepare
from twofold.recipe.diff import recipe_differences
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe

STUDIES = Path(__file__).parents[2] / "recipes" / "studies"
EXPERIMENTS = sorted(path.relative_to(STUDIES) for path in STUDIES.glob("*/*.yaml") if path.stem != "base")
IN_THE_WORLD = [path for path in EXPERIMENTS if path.parent.name != "two-stages"]
A, B, C, P = "features/a{:02}.yaml", "gap/b{:02}.yaml", "watch-time/c{:02}.yaml", "watch-time/prod-{}.yaml"
D, E = "two-stages/d{:02}.yaml", "practice/e{:02}.yaml"
CONTENT, PICTURES = "features.vectors.content", "features.vectors.pictures"
IDS = {"features.item.id", "features.item.creator_id"}
PERFORMANCE = {"features.item.item_id_like_168h", "features.item.creator_id_like_168h"}
RATES = {
    f"features.{key}_168h"
    for key in ("user.user_id_click", "user.user_id_watch", "item.item_id_click", "item.creator_id_click")
}


def both(name: str) -> set[str]:
    """Returns the fields of the feature for both histories."""
    return {name.format("positives"), name.format("negatives")}


def over_vectors(name: str) -> set[str]:
    """Returns the fields that differ in a recipe whose towers both read these vectors."""
    return {f"features.vectors.{name}", f"features.item.{name}", *both(f"features.user.{{}}_{name}")}


FIFTEEN_DAYS = {
    *("prepare.split.train.first", "prepare.sample.users", "prepare.positive_share"),
    "prepare.filters.1.max_events",
}
WATCHED = {"prepare.positive", "prepare.weight"}
LIKED = {"prepare.positive", "prepare.positive_share"}
REGRESSED = {"prepare.positive", "prepare.target", "train.loss"}
CLUSTERED = (
    {CONTENT, "features.item.content", *RATES, *both("features.user.{}_clusters_content")},
    {"features.user.activity", "features.item.id", *PERFORMANCE},
)
SGD = {"train.optimizer", "train.batch_size", "train.learning_rate"}
SAMPLED = {"evaluate.sampled.0", "evaluate.sampled.1"}
LEAVE_ONE_OUT = {"prepare.positive", "prepare.split.test", "prepare.split.validation"}
# experiment → fields added, removed, changed (weight and target are null in the base, so they are changed)
SAID: dict[str, tuple[set[str], set[str], set[str]]] = {
    A.format(1): ({PICTURES, "features.item.pictures"}, {"features.user.handset_maker"}, FIFTEEN_DAYS),
    A.format(2): (
        {PICTURES, "features.item.pictures"}, {"features.user.handset_maker"}, FIFTEEN_DAYS | {"prepare.weight"},
    ),
    A.format(3): (over_vectors("content"), IDS, WATCHED),
    A.format(4): (over_vectors("pictures"), IDS, WATCHED),
    A.format(5): (over_vectors("content"), set(), WATCHED),
    A.format(6): (over_vectors("pictures"), set(), WATCHED),
    A.format(7): (
        {CONTENT, "features.item.content", *RATES, *both("features.user.{}_concat_content")},
        {"features.user.activity", "features.item.id", *PERFORMANCE}, LIKED,
    ),
    A.format(8): (*CLUSTERED, LIKED),
    A.format(9): (CLUSTERED[0], CLUSTERED[1], LIKED | {"retriever.output_norm"}),
    A.format(10): (CLUSTERED[0], CLUSTERED[1], LIKED | {"retriever.output_norm"}),
    A.format(11): (over_vectors("content"), {"features.item.id"}, WATCHED | {"retriever.output_norm"}),
    B.format(1): (set(), set(), {"retriever.dim"}),
    B.format(2): (
        {"features.user.language"}, set(),
        {"retriever.separate_towers_by", "retriever.route_users", "train.batch_size"},
    ),
    "gap/b03a.yaml": (set(), set(), {"features.item.id.num_buckets"}),
    "gap/b03b.yaml": (
        set(), set(), {"features.item.id.num_buckets", *both("features.user.{}.share_item_embedding")},
    ),
    B.format(4): (set(), set(), {"train.hard_negatives"}),
    B.format(5): (set(), set(), {"train.batch_size", "train.micro_batch_size", "train.learning_rate"}),
    B.format(6): (set(), set(), {"train.group_by", "train.shuffle_batches", "train.batch_size"}),
    B.format(7): ({"index.recent_counts.engagement_15d"}, set(), {"index.where"}),
    B.format(8): (set(), set(), {"retriever.score"}),
    B.format(9): (
        set(), set(), {"train.group_by", "train.shuffle_batches", "train.batch_size", "train.loss.uniform_negatives"},
    ),
    B.format(10): (set(), set(), {"train.loss"}),
    B.format(11): (set(), set(), {"train.loss.log_q"}),
    B.format(12): (set(), set(), {"train.loss.log_q", "train.loss.uniform_negatives"}),
    C.format(1): ({"prepare.labels.wtg"}, set(), {"prepare.positive"}),
    C.format(2): ({"prepare.labels.wtg"}, set(), {"prepare.positive"}),
    C.format(3): ({"prepare.labels.wtg"}, set(), {"prepare.positive"}),
    C.format(4): ({"prepare.labels.wtg"}, set(), {"prepare.positive", "train.adversary"}),
    C.format(5): ({"prepare.labels.wtg"}, set(), REGRESSED),
    C.format(6): ({"prepare.labels.wtg"}, set(), REGRESSED | {"features.item.age.hidden_dim"}),
    C.format(7): ({"prepare.labels.gain"}, set(), {"prepare.positive", "features.item.age.hidden_dim"}),
    C.format(8): ({"prepare.labels.wtg"}, set(), {"prepare.positive", "features.item.age.hidden_dim"}),
    C.format(9): ({"prepare.labels.wtg"}, set(), {"prepare.positive", "train.loss.gamma"}),
    E.format(1): (set(), set(), {"prepare.positive_share"}),
    E.format(2): (set(), set(), {"train.loss"}),
    E.format(3): (set(), set(), {"train.loss"}),
    E.format(4): (set(), set(), {"train.loss", "train.hard_negatives"}),
    E.format(5): (set(), set(), SGD | {"train.epochs"}),
    E.format(6): (set(), set(), SGD),
    E.format(7): (set(), set(), SGD - {"train.batch_size"}),
    E.format(8): ({"features.user.positives"}, {"features.user.id"}, {"retriever"}),
    D.format(1): (set(), set(), {"train.batch_size"}),  # of data only file names count, since content has a digest
    D.format(2): (SAMPLED, set(), LEAVE_ONE_OUT),
    D.format(3): (SAMPLED, set(), LEAVE_ONE_OUT | {"train.batch_size"}),
    D.format(4): (set(), set(), {"train.batch_size"}),
    P.format("p90"): ({"prepare.derive.watch_fraction"}, set(), {"prepare.positive"}),
    P.format("dnn"): ({"prepare.derive.watch_fraction"}, set(), {"prepare.positive", "retriever.hidden"}),
}  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slice of the world that the recipes name."""
    folder = tmp_path_factory.mktemp("world") / "world"
    write_world(folder, World(rows=40_000, users=300, items=400, creators=60, content_dim=160, length_style=0.7))
    return folder


def over(world: Path, path: Path) -> Recipe:
    """The experiment over the slice, in which no item has the hundred views that the whole world asks for, and no batch
    thousands of rows.
    """
    names = {"events": "events", "items": "items.parquet", "users": "users.parquet"}
    settings = [f"data.{name}={world / file}" for name, file in names.items()]
    settings.append("prepare.filters.0.min_events=3")
    study = load_recipe(STUDIES / path)
    if study.name.startswith("practice"):
        settings.append("prepare.sample.users=1")
    if study.train.batch_size == 1:  # a step for each of a few examples
        settings.append("prepare.sample.users=0.1")
    train, is_apart = study.train, study.train.group_by or getattr(study.retriever, "separate_towers_by", None)
    if is_apart or train.batch_size >= 1024:  # more than a step or two an epoch
        settings.append(f"train.batch_size={32 if is_apart else 256}")
    if train.micro_batch_size is not None:
        settings.append("train.micro_batch_size=64")
    if train.hard_negatives is not None:
        settings += ["train.hard_negatives.skip=20", "train.hard_negatives.top=100"]
    return load_recipe(STUDIES / path, overrides=settings)


def test_every_experiment_is_told_of() -> None:
    assert {str(path) for path in EXPERIMENTS} == set(SAID)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_an_experiment_differs_from_its_base_by_what_its_notes_say(path: Path) -> None:
    base, own = load_recipe(STUDIES / path.parent / "base.yaml"), load_recipe(STUDIES / path)
    found: dict[str, set[str]] = {"added": set(), "removed": set(), "changed": set()}
    for change in recipe_differences(base, own):
        if not change.field.endswith("(order)") and change.field not in ("name", "about"):
            found[change.kind].add(change.field)
    assert tuple(found.values()) == SAID[str(path)]


@pytest.mark.parametrize("path", [A.format(2), A.format(8), C.format(6), C.format(8)])
def test_an_experiment_becomes_rows_and_arrays(path: str, world: Path, tmp_path: Path) -> None:
    recipe = over(world, Path(path))
    (tmp_path / "prepare").mkdir()
    facts = prepare(recipe, tmp_path / "prepare")
    share = recipe.prepare.positive_share
    if share is not None:
        assert facts["splits"]["train"]["positive_share"] == pytest.approx(share, abs=0.03)
    (tmp_path / "dataset").mkdir()
    build_dataset(tmp_path / "prepare", recipe.features, tmp_path / "dataset", time_zone="UTC")
    rows = load_dataset(tmp_path / "dataset").examples["train"]
    assert len(rows) == facts["splits"]["train"]["rows"]
    if "a02" in path:
        assert set(np.unique(rows.weight)) <= set(np.array([1, 1.2, 1.5, 2, 2.5, 3], np.float32))
    if "c06" in path:
        assert np.abs(rows.target[~np.isnan(rows.target)]).max() <= 3
        # The report of the label is of rows that fitted nothing: gain leans little to short or long. Here lengths are
        # planted, and watch time itself leans far more.
        assert abs(facts["labels"]["target_with_length"]) < 0.2
    assert pq.read_metadata(tmp_path / "prepare" / "items.parquet").num_rows == 400


@pytest.mark.slow
@pytest.mark.parametrize("path", IN_THE_WORLD, ids=str)
def test_every_experiment_can_be_trained(path: Path, world: Path, tmp_path: Path) -> None:
    recipe = over(world, path)
    _, _, trained, _ = pipeline.up_to_training(pipeline.Job(recipe, tmp_path))
    if recipe.retriever.kind == "ials":
        assert trained.facts["epochs"][0]["validation"] > 0
        return
    losses = [epoch["loss"] for epoch in trained.facts["epochs"]]
    assert losses[-1] < losses[0] or len(losses) == 1


def test_every_opening_says_what_is_expected_and_what_the_notes_claimed() -> None:
    """Experiments that are not in the notes say so."""
    for path in EXPERIMENTS:
        text = (STUDIES / path).read_text(encoding="utf-8")
        opening = "".join(line for line in text.splitlines() if line.startswith("#"))
        assert "# expected " in opening, path
        assert "# claimed " in opening or "Not in the notes" in opening or path.stem.startswith("prod-"), path
