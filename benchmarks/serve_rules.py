"""Measures what rules after ranking and additions for repeats add to a request.

    python benchmarks/serve_rules.py [rounds]     (default: 40)

The bundle is that of `serve.py` with the history-mean tower (30,000 items of 64 dimensions, k 100): without rules, with
each kind of rule, with all kinds together (200 candidates), and with additions for the 50 newest positives, where items
that were met are recommended again. One process serves all variants in turn, without HTTP, so that other work on the
machine moves all of them; figures are medians over the rounds of the processor time per request. Writes
`serve_rules.json` beside this file.
"""

import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from serve_bundle import write_run  # noqa: E402

from twofold.dataset.malloc import keep_freed_memory  # noqa: E402
from twofold.index.rule_columns import rule_columns  # noqa: E402
from twofold.model.history_additions import HistoryAdditions  # noqa: E402
from twofold.recipe.rerank import Rerank  # noqa: E402
from twofold.reranking import RuleItems  # noqa: E402
from twofold.serve.bundle import BundleRules  # noqa: E402
from twofold.serve.event_store import open_histories  # noqa: E402
from twofold.serve.live_bundle import LiveBundle, LiveRules, open_live_bundle  # noqa: E402
from twofold.serve.prometheus import ServiceMetrics  # noqa: E402
from twofold.serve.schemas import Recommend  # noqa: E402
from twofold.serve.service import Service  # noqa: E402

K: Final = 100
TOGETHER: Final = (16, 1)
RULES: Final[dict[str, dict[str, Any]]] = {
    "limit": {"kind": "limit", "column": "language", "at_most": 3, "window": 8},
    "boost": {"kind": "boost", "when": "length_s < 15", "add": 0.2},
    "quota": {"kind": "quota", "when": "language = 'hi'", "at_least": 3, "first": 20},
    "pin": {"kind": "pin", "item": 12, "place": 3},
    "mmr": {"kind": "mmr", "trade_off": 0.3},
}


def variants(live_bundle: LiveBundle) -> dict[str, LiveBundle]:
    """Returns the bundle without rules, with each kind, with all, and with additions for repeats."""

    def ruled(rules: list[dict[str, Any]]) -> LiveBundle:
        config, bundle = Rerank.model_validate({"rules": rules}), live_bundle.bundle
        columns = rule_columns(config.rules, bundle.attributes)
        own = BundleRules(config, RuleItems(columns, lambda rows: bundle.index.vectors[rows]))
        return replace(live_bundle, bundle=replace(bundle, rules=own), rules=LiveRules(own))

    again = replace(live_bundle.bundle, include_seen=True)
    return {
        "plain": live_bundle,
        **{name: ruled([rule]) for name, rule in RULES.items()},
        "all kinds": ruled([*RULES.values()]),
        "seen items again": replace(live_bundle, bundle=again),
        "repeats": replace(live_bundle, bundle=replace(again, added=HistoryAdditions(50, repeats=0.1))),
    }


async def measure(services: dict[str, Service], rounds: int) -> dict[str, dict[str, float]]:
    """Returns the µs of processor time per request of each variant, with 16 requests at once and with one."""
    spent: dict[tuple[str, int], list[float]] = {(name, count): [] for name in services for count in TOGETHER}
    for number in range(rounds + 2):
        for name, service in services.items():
            for count in TOGETHER:
                bodies = [Recommend(user_id=1 + (number * 7919 + 31 * each) % 20_000, k=K) for each in range(count)]
                gc.collect()
                started = time.process_time()
                for _ in range(3):
                    await asyncio.gather(*map(service.recommend, bodies))
                if number >= 2:  # the first rounds fill caches
                    spent[name, count].append(1e6 * (time.process_time() - started) / 3 / count)
    return {name: {f"{count} at once": round(median(spent[name, count]), 1) for count in TOGETHER} for name in services}


def main(rounds: int = 40) -> None:
    """Measures all variants, and prints and writes the figures."""
    with tempfile.TemporaryDirectory() as folder, keep_freed_memory():
        live_bundle = open_live_bundle(write_run(Path(folder) / "mean"))
        services = {
            name: Service(each, Path(folder), open_histories(Path(folder) / "events.db"), ServiceMetrics())
            for name, each in variants(live_bundle).items()
        }
        figures = asyncio.run(measure(services, rounds))
    plain = figures["plain"]
    added = {
        name: {count: round(micros - plain[count], 1) for count, micros in each.items()}
        for name, each in figures.items()
    }
    saved = {"k": K, "rounds": rounds, "load_average": os.getloadavg(), "cpu_us": figures, "more_than_plain_us": added}
    (Path(__file__).parent / "serve_rules.json").write_text(json.dumps(saved, indent=1) + "\n")
    print(json.dumps(saved, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
