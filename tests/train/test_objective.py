"""Objectives against loops written from their definitions; every loss on the world that it should solve."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from twofold.dataset.batches import gather_batch
from twofold.dataset.dataset import load_dataset
from twofold.errors import DataError
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.window import evaluation_window
from twofold.model import losses as losses_module
from twofold.model.two_tower import build_two_tower
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import catalogue_scores
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import HardNegatives, Loss, Train
from twofold.train.batch_loss import mean_loss
from twofold.train.loop import fit
from twofold.train.negatives import HardNegativePool
from twofold.train.objective import build_objective

SCORES = {
    "cosine": {"kind": "cosine", "temperature": 0.2},
    "dot": {"kind": "dot"},
    "negative_distance": {"kind": "negative_distance"},
}
IN_BATCH = {"kind": "in_batch_softmax"}


@pytest.fixture(scope="module")
def world(checkerboard, tmp_path_factory):
    job = pipeline.Job(checkerboard, tmp_path_factory.mktemp("run"))
    return checkerboard, load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)


def loss_of(loss_config):
    return TypeAdapter(Loss).validate_python(loss_config)


def objective_of(loss_config, dataset, **changes):
    return build_objective(Train(loss=loss_of(loss_config), **changes), dataset)


def model_of(dataset, score="cosine", **changes):
    torch.manual_seed(0)
    recipe = TwoTower.model_validate(
        {"kind": "two_tower", "dim": 6, "score": SCORES[score] if isinstance(score, str) else score, **changes}
    )
    model = build_two_tower(recipe, dataset.features, dataset.vectors)
    with torch.no_grad():  # vectors of some length, where the score lets them have any
        for tower in (model.user, model.item):
            tower.layers[-1].weight *= 5
    return model


def with_rows(dataset, **columns):
    rows = dataset.examples["train"]
    records = rows.records.copy()
    for name, values in columns.items():
        records[name] = values
    return replace(dataset, examples={**dataset.examples, "train": replace(rows, records=records)})


def score_matrix(model, users, items):
    score, temperature = model.score, model.temperature
    if score == "negative_distance":
        return [[-sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for v in items] for u in users]
    return [[sum(a * b for a, b in zip(u, v, strict=True)) / temperature for v in items] for u in users]


def log_sum(terms):
    return math.log(sum(math.exp(term) for term in terms))


def naive_softmax(loss_config, logits, line, *, users, items, q, num_items, drawn):
    """One line of the softmax losses; `logits` has a column an item of the catalogue."""
    own, score, b = items[line], logits[line], len(items)
    others = [j for j in range(b) if j != line and items[j] != own and users[j] != users[line]]
    uniform = [item for item in drawn if item != own]
    if "logit_adjustment" in loss_config:
        score = [each + loss_config["logit_adjustment"] * math.log(share) for each, share in zip(score, q, strict=True)]
    kind = loss_config["kind"]
    if loss_config.get("log_q", "classic") == "corrected" or kind not in ("in_batch_softmax", "full_softmax"):
        in_batch = b if kind == "in_batch_softmax" else 0
        held = [(in_batch * each + len(drawn) / num_items) / (in_batch + len(drawn)) for each in q]
        competing = ([items[j] for j in others] if in_batch else []) + uniform
        expected = {item: len(competing) * held[item] / (1 - held[own]) for item in set(competing)}
        return log_sum([score[own], *(score[item] - math.log(expected[item]) for item in competing)]) - score[own]
    if kind == "full_softmax":
        return log_sum([score[own], *(score[item] for item in uniform)]) - score[own]

    def corrected(item):
        if loss_config["log_q"] == "none":
            return score[item]
        return score[item] - math.log((b * q[item] + len(drawn) / num_items) / (b + len(drawn)))

    return log_sum([corrected(own), *(corrected(items[j]) for j in others), *map(corrected, uniform)]) - corrected(own)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "loss_config",
    [
        *(
            {**IN_BATCH, "log_q": log_q, "uniform_negatives": count}
            for log_q in ("classic", "corrected", "none")
            for count in (0, 40)
        ),
        {"kind": "sampled_softmax", "negatives": 30},
        {"kind": "full_softmax"},
        {"kind": "full_softmax", "logit_adjustment": 0.7},
        {"kind": "bpr", "negatives": 30},
    ],
    ids=lambda loss_config: "-".join(map(str, loss_config.values())),
)  # fmt: skip
def test_a_ranking_loss_is_the_weighted_mean_of_its_definition(world, loss_config, score, monkeypatch):
    _, dataset = world
    dataset = with_rows(dataset, weight=np.random.default_rng(0).uniform(0.5, 2, len(dataset.examples["train"])))
    objective, model = objective_of(loss_config, dataset, precision="float32"), model_of(dataset, score)
    batch = gather_batch(dataset, dataset.examples["train"], objective.examples[::13][:48])
    monkeypatch.setattr(losses_module, "CHUNK_ELEMENTS", 7 * 64)  # several chunks
    users, items = batch.user_rows.tolist(), batch.item_rows.tolist()
    assert len(set(users)) < len(users)  # somebody stands there twice
    assert len(set(items)) < len(items)
    torch.manual_seed(1)
    loss, own_vectors = mean_loss(objective, model, batch)
    num_items = dataset.items.num_known
    torch.manual_seed(1)
    count = loss_config.get("uniform_negatives", loss_config.get("negatives", 0))
    drawn = (
        torch.randint(num_items, (count,)).tolist() if loss_config["kind"] != "full_softmax" else list(range(num_items))
    )
    with torch.no_grad():
        catalogue = model.item({"id": torch.arange(1, num_items + 1, dtype=torch.int32)})
        torch.testing.assert_close(own_vectors, catalogue[batch.item_rows])
        logits = score_matrix(model, model.user(batch.user).double().tolist(), catalogue.double().tolist())
    counts = np.bincount(dataset.examples["train"].item_rows[objective.examples], minlength=num_items)
    q = counts / counts.sum()
    losses = []
    for line, item in enumerate(items):
        if loss_config["kind"] == "bpr":
            differences = [logits[line][item] - logits[line][other] for other in drawn if other != item]
            losses.append(sum(math.log(1 + math.exp(-each)) for each in differences) / len(differences))
        else:
            facts = {"users": users, "items": items, "q": q, "num_items": num_items, "drawn": drawn}
            losses.append(naive_softmax(loss_config, logits, line, **facts))
    mean_weight = float(dataset.examples["train"].weight[objective.examples].mean(dtype=float))
    expected = np.mean(np.array(losses) * batch.weight.numpy()) / mean_weight
    assert loss.item() == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("kind", ["in_batch_softmax", "sampled_softmax", "full_softmax", "bpr"])
def test_a_learned_temperature_follows_the_slope_of_the_loss(world, kind):
    _, dataset = world
    learned = {"kind": "cosine", "temperature": 0.2, "learn_temperature": True}
    objective = objective_of({"kind": kind}, dataset, precision="float32", batch_size=48)
    model = model_of(dataset, score=learned)
    batch = gather_batch(dataset, dataset.examples["train"], objective.examples[::13][:48])

    def loss_at(log_temperature):
        with torch.no_grad():
            model.log_temperature.fill_(log_temperature)
        torch.manual_seed(1)
        return mean_loss(objective, model, batch)[0]

    at, step = math.log(0.2), 1e-2
    loss_at(at).backward()
    slope = (loss_at(at + step) - loss_at(at - step)) / (2 * step)
    assert abs(slope) > 0.01
    assert model.log_temperature.grad.item() == pytest.approx(slope.item(), rel=0.02)
    fixed = model_of(dataset, score=SCORES["cosine"])
    torch.manual_seed(1)
    torch.testing.assert_close(mean_loss(objective, fixed, batch)[0], loss_at(at))


def mined_for(dataset, batch):
    """Three, two or no items a user, each of them some rank's."""
    users = np.unique(batch.user_rows.numpy())
    item_rows = (users[:, None] * 7 + np.array([1, 2, 3])) % dataset.items.num_known
    counts = np.array([3, 2, 0])[np.arange(len(users)) % 3]
    item_rows[np.arange(3) >= counts[:, None]] = -1
    return HardNegativePool(users, item_rows.astype(np.int32), counts)


@pytest.mark.parametrize("easy", [8, 0])
@pytest.mark.parametrize(
    "loss_config",
    [
        *({**IN_BATCH, "log_q": log_q, "uniform_negatives": 10} for log_q in ("classic", "corrected", "none")),
        {"kind": "sampled_softmax", "negatives": 16},
        {"kind": "bpr", "negatives": 16},
    ],
    ids=lambda loss_config: "-".join(map(str, loss_config.values())),
)  # fmt: skip
def test_mined_items_compete_with_their_own_line_alone(world, loss_config, easy, monkeypatch):
    _, dataset = world
    hard = HardNegatives(skip=1, top=6, easy_per_hard=easy)
    objective, model = objective_of(loss_config, dataset, batch_size=24, hard_negatives=hard), model_of(dataset)
    batch = gather_batch(dataset, dataset.examples["train"], objective.examples[::13][:24])
    objective = replace(objective, hard_pool=mined_for(dataset, batch))
    monkeypatch.setattr(losses_module, "CHUNK_ELEMENTS", 7 * 64)
    torch.manual_seed(1)
    loss, _ = mean_loss(objective, model, batch)
    torch.manual_seed(1)
    num_items, others = dataset.items.num_known, 16 if "negatives" in loss_config else 23 + 10
    drawn = torch.randint(num_items, (loss_config.get("negatives", 10),)).tolist()
    each = round(others / 8) if easy else others
    mined, of = objective.hard_pool.draw(batch.user_rows, each)
    with torch.no_grad():
        catalogue = model.item({"id": torch.arange(1, num_items + 1, dtype=torch.int32)})
        logits = score_matrix(model, model.user(batch.user).double().tolist(), catalogue.double().tolist())
    counts = np.bincount(dataset.examples["train"].item_rows[objective.examples], minlength=num_items)
    facts = {"users": batch.user_rows.tolist(), "items": batch.item_rows.tolist(), "q": counts / counts.sum()}
    facts |= {"num_items": num_items, "drawn": drawn}
    losses = [
        naive_with_mined(
            loss_config, logits, line, facts, mined=mined[line].tolist(), of=int(of[line]), is_alone=easy == 0
        )
        for line in range(24)
    ]
    assert loss.item() == pytest.approx(np.mean(losses), rel=2e-4)


def naive_with_mined(loss_config, logits, line, facts, *, mined, of, is_alone):
    """One line: the softmax of the loss, and the mined ones as if all `of` ranks took part once more."""
    score, own, each = logits[line], facts["items"][line], len(mined)
    mined = mined if of else []
    if loss_config["kind"] == "bpr":
        others = [] if is_alone else [other for other in facts["drawn"] if other != own]
        losses = [math.log(1 + math.exp(score[other] - score[own])) for other in others + mined]
        return sum(losses) / max(len(losses), 1)
    own_term, weight = score[own], 1.0 if loss_config.get("log_q") == "none" else of / each
    if loss_config.get("log_q") == "classic" and not is_alone:
        columns = len(facts["items"]) + len(facts["drawn"])
        own_count = len(facts["items"]) * facts["q"][own] + len(facts["drawn"]) / facts["num_items"]
        own_term, weight = own_term - math.log(own_count / columns), weight * columns
    before = 0.0 if is_alone else naive_softmax(loss_config, logits, line, **facts)
    return log_sum([before + own_term, *(score[item] + math.log(weight) for item in mined)]) - own_term


@pytest.mark.slow
def test_over_many_draws_the_mined_ranks_count_twice(world):
    """exp(loss) · exp(own) sums up the exponentials of own, all others, and those of the user's ranks once more."""
    _, dataset = world
    loss_config, hard = {"kind": "sampled_softmax", "negatives": 32}, HardNegatives(skip=1, top=6, easy_per_hard=16)
    objective, model = objective_of(loss_config, dataset, batch_size=6, hard_negatives=hard), model_of(dataset)
    (batch,) = (gather_batch(dataset, dataset.examples["train"], objective.examples[[5]]),)
    objective = replace(objective, hard_pool=mined_for(dataset, batch))
    ranks = objective.hard_pool.item_rows[0].tolist()
    assert min(ranks) >= 0
    with torch.no_grad():
        catalogue = model.item({"id": torch.arange(1, dataset.items.num_known + 1, dtype=torch.int32)})
        logits = (model.user(batch.user) @ catalogue.T)[0].double() / model.temperature
        torch.manual_seed(0)
        sums = [float(mean_loss(objective, model, batch)[0].exp()) for _ in range(600)]
    expected = logits.exp().sum() + logits[ranks].exp().sum()
    spread = np.std(sums) / 600**0.5
    assert abs(np.mean(sums) - float(expected / logits[batch.item_rows[0]].exp())) < 4 * spread


@pytest.mark.parametrize("loss_config", [{"kind": "bce", "gamma": 1.5}, {"kind": "regression", "error": "mse"}])
def test_a_pointwise_loss_reads_every_row_by_itself(world, loss_config):
    _, dataset = world
    draw = np.random.default_rng(0)
    rows = len(dataset.examples["train"])
    dataset = with_rows(dataset, weight=draw.uniform(0.5, 2, rows), target=draw.normal(size=rows))
    objective, model = objective_of(loss_config, dataset), model_of(dataset, "dot")
    assert objective.examples.tolist() == list(range(rows))
    batch = gather_batch(dataset, dataset.examples["train"], objective.examples[::211])
    assert 0 < batch.label.sum() < len(batch.label)
    loss, _ = mean_loss(objective, model, batch)
    with torch.no_grad():
        logits = (model.user(batch.user) * model.item(batch.item)).sum(dim=1).tolist()
    losses = []
    for logit, label, target in zip(logits, batch.label.tolist(), batch.target.tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit)) if label else 1 / (1 + math.exp(logit))
        losses.append(-((1 - p) ** 1.5) * math.log(p) if loss_config["kind"] == "bce" else (logit - target) ** 2)
    mean_weight = float(dataset.examples["train"].weight.mean(dtype=float))
    assert loss.item() == pytest.approx(np.mean(np.array(losses) * batch.weight.numpy()) / mean_weight, rel=1e-4)


def test_a_regression_leaves_out_rows_without_a_target(world):
    _, dataset = world
    targets = np.arange(len(dataset.examples["train"]), dtype=np.float32)
    targets[::3] = np.nan
    objective = objective_of({"kind": "regression"}, with_rows(dataset, target=targets))
    assert objective.examples.tolist() == [line for line in range(len(targets)) if line % 3]


@pytest.mark.parametrize(
    ("loss_config", "columns", "message"),
    [
        (IN_BATCH, {"label": False}, r"holds 0 positive events; a loss of kind in_batch_softmax .*prepare.positive"),
        ({"kind": "regression"}, {"target": np.nan}, r"holds 0 events with a target; .*Check prepare.target"),
        ({"kind": "bce"}, {"weight": 0}, r"mean weight of the 4,\d+ training examples is 0.*Check prepare.weight"),
    ],
)
def test_nothing_to_learn_is_refused(world, loss_config, columns, message):
    with pytest.raises(DataError, match=message):
        objective_of(loss_config, with_rows(world[1], **columns))


# --- worlds -----------------------------------------------------------------------------------------------------------

SOLVERS = [
    ({**IN_BATCH, "log_q": "corrected"}, "cosine", {}),
    ({**IN_BATCH, "uniform_negatives": 32}, "negative_distance", {}),
    (IN_BATCH, "dot", {"output_norm": "batch_norm"}),
    ({"kind": "sampled_softmax", "negatives": 32}, "cosine", {"hidden": (64,), "dropout": 0.1}),
    ({"kind": "full_softmax"}, "cosine", {"output_norm": "batch_norm"}),
    ({"kind": "bpr"}, "dot", {}),
    ({"kind": "bpr"}, "negative_distance", {"output_norm": "l2"}),
    ({"kind": "bce"}, "dot", {}),
    ({"kind": "bce", "gamma": 2}, "cosine", {}),
    ({"kind": "regression"}, "dot", {}),
    ({"kind": "regression", "error": "mse"}, "cosine", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("loss_config", "score", "changes"), SOLVERS, ids=lambda value: str(value).replace(" ", ""))
def test_the_checkerboard_is_solved(world, loss_config, score, changes, tmp_path):
    recipe, dataset = world
    window = evaluation_window(dataset, "test")
    asked_model = TwoTower.model_validate(
        {"kind": "two_tower", "dim": 8, "score": SCORES[score] if isinstance(score, str) else score, **changes}
    )
    kept = []

    def validate(model):
        scores = catalogue_scores(model, dataset, window)
        kept.append(evaluate_catalogue(window, scores, ks=(1,)).mean("catalogue/hit_rate@1"))
        return kept[-1]

    settings = recipe.train.model_copy(update={"loss": loss_of(loss_config), "epochs": 6})
    fit(
        lambda: build_two_tower(asked_model, dataset.features, dataset.vectors),
        dataset,
        settings,
        validate=validate,
        out=tmp_path,
    )
    assert max(kept) == 1.0
