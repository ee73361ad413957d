"""Speed of evaluation: full ranking with all metrics, compared with matrix product and top k, ranx and RecTools.

    python benchmarks/evaluate.py [PYTHON_WITH_RECTOOLS]

Claims: a full ranking of 7,500 items with every metric at 8 cuts within twice the time of the machine's own matrix
product and top k; 20 times ranx's users a second and 3 times RecTools', whose metrics are given our ranked lists; 1 M
items × 10 k users in 4 GB; 1,000 resamples of 30 metrics over 100 k users in 2 s.

The parts run in turn, three rounds, and the fastest counts, because cores are shared. ranx runs twice. From the same
scores: it gets every unseen item's score and ranks them. From our ranked lists: our time for ranking is added to its
time. RecTools' metrics need ranks, so our time for ranking is added too. The time of ranx includes its dictionaries,
but not the table of scores and its compilation.
RecTools forces numpy below 2, so it needs a Python of its own (`python -m venv`, `pip install rectools`); without one
it is left out, which the file states. Writes `evaluate.json` beside this file.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
USERS, ITEMS, DIM, RELEVANT, SEEN = 6_000, 7_500, 64, 5, 50
PEER_USERS, SCORED_USERS = 1_000, 200
MANY_USERS, MANY_ITEMS = 10_000, 1_000_000
KS = (1, 5, 10, 20, 50, 100, 200, 500)
PEER_METRICS = ("recall", "hit_rate", "ndcg", "mrr", "map")


def build(users: int, items: int, seed: int = 0):
    """A window of users with 5 positives each and 50 seen items, and vectors."""
    from twofold.evaluate.window import EvaluationWindow
    from twofold.ragged import Ragged
    from twofold.topk import Products

    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(items, RELEVANT + SEEN, replace=False) for _ in range(users)])
    relevant, seen = rows[:, :RELEVANT], rows[:, RELEVANT:]
    lists = {
        name: Ragged(part.reshape(-1), np.arange(users + 1) * part.shape[1])
        for name, part in (("relevant", relevant), ("seen", seen), ("candidates", relevant))
    }
    window = EvaluationWindow(
        name="test",
        user_rows=np.arange(users),
        query_at=np.zeros(users, np.int64),
        labels=np.ones(relevant.size, bool),
        num_items=items,
        is_cold=np.zeros(items, bool),
        track="time_free",
        **lists,
    )
    queries, factors = (rng.normal(size=(lines, DIM)).astype(np.float32) for lines in (users, items))
    return window, Products(queries, factors)


def machine(products, k: int) -> None:
    """Runs only the matrix product and torch's top k, in blocks of a good size."""
    import torch

    items = torch.from_numpy(products.items)
    for first in range(0, len(products.queries), 512):
        torch.topk(torch.from_numpy(products.queries[first : first + 512]) @ items.T, k)


def fastest_s(parts: dict[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Returns the least seconds of each part, measured in turn."""
    found: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            started = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - started)
    return {name: min(times) for name, times in found.items()}


# --- peers: they start from our ranked lists --------------------------------------------------------------------------


def ranked_lists(window, products) -> np.ndarray:
    """Returns our 500 best unseen items of the first users."""
    from twofold.evaluate.scores import rank_products, user_chunks

    parts = [rank_products(products, part, KS[-1], excluded=window.seen.part(part)) for part in user_chunks(PEER_USERS)]
    return np.concatenate(parts)


def evaluate_lists_with_ranx(lists: np.ndarray, relevant: np.ndarray) -> None:
    """Computes all metrics from ranked lists."""
    score = {rank: float(KS[-1] - rank) for rank in range(KS[-1])}
    run = {
        str(user): {str(item): score[rank] for rank, item in enumerate(own)} for user, own in enumerate(lists.tolist())
    }
    _evaluate_with_ranx(run, relevant)


def evaluate_scores_with_ranx(scores: np.ndarray, seen: np.ndarray, relevant: np.ndarray) -> None:
    """Ranks and computes all metrics from the scores of all items."""
    names = [str(item) for item in range(scores.shape[1])]
    run = {}
    for user, (own, met) in enumerate(zip(scores.tolist(), seen.tolist(), strict=True)):
        run[str(user)] = given = dict(zip(names, own, strict=True))
        for item in met:
            del given[names[item]]
    _evaluate_with_ranx(run, relevant)


def _evaluate_with_ranx(run: dict[str, dict[str, float]], relevant: np.ndarray) -> None:
    import ranx

    wanted = {str(user): {str(item): 1 for item in own} for user, own in enumerate(relevant.tolist())}
    ranx.evaluate(ranx.Qrels(wanted), ranx.Run(run), [f"{name}@{k}" for name in PEER_METRICS for k in KS])


def evaluate_with_rectools(folder: str) -> float:
    """Returns the seconds of RecTools' metrics; runs in its own environment."""
    import pandas as pd
    from rectools.metrics import MAP, MRR, NDCG, HitRate, Recall, calc_metrics

    saved = np.load(Path(folder) / "lists.npz")
    lists, relevant = saved["lists"], saved["relevant"]
    users = np.arange(len(lists))
    reco = pd.DataFrame(
        {
            "user_id": users.repeat(lists.shape[1]),
            "item_id": lists.reshape(-1),
            "rank": np.tile(np.arange(1, lists.shape[1] + 1), len(lists)),
        }
    )
    seen = pd.DataFrame({"user_id": users.repeat(relevant.shape[1]), "item_id": relevant.reshape(-1)})
    metrics = {f"{kind.__name__}@{k}": kind(k=k) for kind in (Recall, HitRate, NDCG, MRR, MAP) for k in KS}
    times = []
    for _ in range(2):
        started = time.perf_counter()
        calc_metrics(metrics, reco, interactions=seen)
        times.append(time.perf_counter() - started)
    return min(times)


def rectools_s(python: str, lists: np.ndarray, relevant: np.ndarray) -> float:
    """`evaluate_with_rectools` in the Python that has it."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "lists.npz", lists=lists, relevant=relevant)
        done = subprocess.run([python, __file__, "--rectools", folder], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def version_of_rectools(python: str) -> str:
    """Returns the version in RecTools' own Python."""
    command = [python, "-c", "from importlib.metadata import version; print(version('rectools'))"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# --- large ------------------------------------------------------------------------------------------------------------


def evaluate_many() -> dict[str, float]:
    """1 M items × 10 k users: seconds, the process's peak, and product and top k of 512 of the users in proportion."""
    from twofold.evaluate.catalogue import evaluate_catalogue

    window, products = build(MANY_USERS, MANY_ITEMS)
    started = time.perf_counter()
    evaluate_catalogue(window, products, ks=KS)
    seconds = time.perf_counter() - started
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))
    started = time.perf_counter()
    machine(type(products)(products.queries[:512], products.items), KS[-1])
    bare = (time.perf_counter() - started) * MANY_USERS / 512
    return {"seconds": round(seconds, 1), "peak_gb": round(peak, 2), "bare_seconds": round(bare, 1)}


def main(rectools: str | None = None) -> None:
    """Runs everything, prints the claims, saves the numbers."""
    from twofold.evaluate.catalogue import evaluate_catalogue
    from twofold.evaluate.significance import mean_intervals

    window, products = build(USERS, ITEMS)
    values = np.random.default_rng(0).random((100_000, 30))
    relevant = window.relevant.values.reshape(USERS, -1)[:PEER_USERS]
    lists = ranked_lists(window, products)
    scores, seen = products(slice(0, SCORED_USERS)), window.seen.values.reshape(USERS, -1)[:SCORED_USERS]
    evaluate_lists_with_ranx(lists[:10], relevant[:10])  # compiles
    seconds = fastest_s(
        {
            "all metrics": lambda: evaluate_catalogue(window, products, ks=KS),
            "product and top k": lambda: machine(products, KS[-1]),
            "ranking of the peers' users": lambda: ranked_lists(window, products),
            "ranx, lists": lambda: evaluate_lists_with_ranx(lists, relevant),
            "ranx, scores": lambda: evaluate_scores_with_ranx(scores, seen, relevant[:SCORED_USERS]),
            "intervals": lambda: mean_intervals(values),
        }
    )
    many = subprocess.run([sys.executable, __file__, "--many"], check=True, stdout=subprocess.PIPE, text=True)
    large = json.loads(many.stdout.splitlines()[-1])
    ours = USERS / seconds["all metrics"]
    ranking = seconds["ranking of the peers' users"]
    claims = {
        "users/s, 7,500 items, all metrics": ours,
        "over the machine's own product and top k (at most 2)": seconds["all metrics"] / seconds["product and top k"],
        "over ranx, from the same scores (at least 20)": ours * seconds["ranx, scores"] / SCORED_USERS,
        "over ranx given our lists, ranking included": ours * (ranking + seconds["ranx, lists"]) / PEER_USERS,
        "1 M items x 10 k users, s": large["seconds"],
        "the same over the machine's own product and top k (at most 2)": large["seconds"] / large["bare_seconds"],
        "its peak, GB (at most 4)": large["peak_gb"],
        "intervals of 30 metrics over 100 k users, s (at most 0.2)": seconds["intervals"],
    }
    if rectools is not None:
        seconds["RecTools"] = rectools_s(rectools, lists, relevant)
        claims["over RecTools, ranking included (at least 3)"] = ours * (ranking + seconds["RecTools"]) / PEER_USERS
    claims = {claim: round(value, 2) for claim, value in claims.items()}
    facts = {"cores": os.cpu_count(), "numpy": np.__version__, "torch": version("torch"), "ranx": version("ranx")}
    facts |= {
        "rectools": "left out: no Python that has it was named" if rectools is None else version_of_rectools(rectools)
    }
    saved = facts | {
        "claims": claims,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "many": large,
    }
    (HERE / "evaluate.json").write_text(json.dumps(saved, indent=1) + "\n")
    for claim, value in claims.items():
        print(f"{value:>12,}  {claim}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rectools"]:
        print(evaluate_with_rectools(sys.argv[2]))
    elif sys.argv[1:2] == ["--many"]:
        print(json.dumps(evaluate_many()))
    else:
        main(*sys.argv[1:2])
