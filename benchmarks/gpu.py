"""Training on a GPU, or the same on the CPU: speed, waits, share of the device's products, and equal weights.

    python benchmarks/gpu.py [--device cuda] [--rows 3000000] [--batch-size 8192] [--seconds 400] [--out FILE]

One command of at most nine minutes. Each part is saved when it ends, and a repeated command does only the parts that
FILE lacks; a part that fails is saved with its error. Parts:

- machine: speed of a square product in bfloat16, TF32 and float32, and of a copy
- histories, sequence: steps of a two-tower whose user is means of 100 ids, or a causal sequence of 200 events
- equal: weights after 20 steps on the device and on the CPU, and the loss of each step
- compiled: forward and backward pass of the sequence encoder, as it is and through torch.compile

A step's waits are the time in which Python waits for a batch, and for the losses that are read once in 50 steps; the
rest is the time to queue the work. No GPU has run this yet. On the CPU, the default where there is no GPU, the sizes
are those of a test. Writes `gpu.json` beside this file.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from twofold.dataset.batches import Batch, epoch_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import Dataset, load_dataset
from twofold.ingest.world_events import World, write_world
from twofold.model.sequence import SequenceEncoder
from twofold.model.two_tower import TwoTower, build_two_tower
from twofold.prepare.run_plan import prepare
from twofold.recipe.features import Features
from twofold.recipe.schema import Recipe
from twofold.recipe.train import Train
from twofold.train.batch_loss import mean_loss
from twofold.train.device import STEPS_PER_READ, DeviceName, open_device, prefetched
from twofold.train.distributed import ProcessGroup
from twofold.train.objective import build_objective
from twofold.train.optimizer import build_optimizer, clip_gradients

HERE = Path(__file__).parent
HISTORIES = [{"kind": "history", "events": events, "max_length": 100} for events in ("positives", "negatives")]
SEQUENCE = [{"kind": "sequence", "max_length": 200, "num_layers": 2, "num_heads": 2, "dropout": 0.0}]
COMPARED_STEPS = 20


@dataclass(frozen=True)
class Size:
    """Sizes of the parts: the full ones, or those that a test runs on a CPU."""

    rows: int
    batch_size: int
    product: int
    steps: int


def machine(device: torch.device, size: Size) -> dict[str, float]:
    """Returns 10^12 operations per second of a square product for each precision, and 10^9 bytes per second copied."""
    found = {}
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"), ("tf32", torch.float32, "high"), ("float32", torch.float32, "highest"),
    ):  # fmt: skip
        torch.set_float32_matmul_precision(precision)
        left = torch.randn(size.product, size.product, device=device, dtype=dtype)
        seconds = seconds_of(lambda left=left: left @ left, device, repeats=5)
        found[f"{name}_tflops"] = round(2 * size.product**3 / seconds / 1e12, 3)
    values = torch.zeros(size.product * size.product, device=device)
    found["copy_gb_s"] = round(2 * values.nbytes / seconds_of(values.clone, device, repeats=5) / 1e9, 1)
    return found


def steps(dataset: Dataset, recipe: Recipe, device: torch.device, size: Size, *, products: float) -> dict[str, float]:
    """Trains and returns the speed of a step, its waits and its share of the device's products."""
    training = Training(dataset, recipe, device)
    batches, waits, reads = training.batches(), 0.0, 0.0
    training.step(next(batches))
    with FlopCounterMode(display=False) as counter:
        training.step(next(batches))
    synchronize(device)
    began, events, losses = time.perf_counter(), 0, []
    for number in range(size.steps):
        started = time.perf_counter()
        batch = next(batches)
        waits += time.perf_counter() - started
        events += sum(int(values.count_nonzero()) for name, values in batch.on_host.user.items() if is_ids(name))
        losses.append(training.step(batch))
        if (number + 1) % STEPS_PER_READ == 0 or number + 1 == size.steps:
            started = time.perf_counter()
            torch.stack(losses).tolist()
            reads, losses = reads + time.perf_counter() - started, []
    seconds = time.perf_counter() - began
    return {
        "examples_per_s": round(size.steps * recipe.train.batch_size / seconds),
        "positions_per_s": round(events / seconds),
        "ms_per_step": round(1e3 * seconds / size.steps, 3),
        "ms_waiting_for_batches": round(1e3 * waits / size.steps, 3),
        "ms_waiting_for_losses": round(1e3 * reads / size.steps, 3),
        "flops_per_step": counter.get_total_flops(),
        "share_of_products": round(counter.get_total_flops() * size.steps / seconds / (products * 1e12), 4),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else 0.0,
    }


def is_ids(name: str) -> bool:
    """Returns whether a user input holds the ids of a history or sequence."""
    return name.startswith(("positives", "negatives")) and "." not in name


class Training:
    """A model, its optimizer and its batches on a device; equal on all devices before the first step."""

    def __init__(self, dataset: Dataset, recipe: Recipe, device: torch.device) -> None:
        """Builds the model on the CPU from one seed and moves it."""
        torch.manual_seed(0)
        assert recipe.retriever.kind == "two_tower"
        self.recipe, self.device = recipe, device
        self.objective = build_objective(recipe.train, dataset, ranks=ProcessGroup(device))
        self.model: TwoTower = build_two_tower(recipe.retriever, dataset.features, dataset.vectors).to(device)
        self.optimizer = build_optimizer(
            self.model, learning_rate=recipe.train.learning_rate, size=self.objective.step_size
        )
        self.number = 0

    def batches(self) -> Iterator[Batch]:
        """Yields the batches of one epoch after another."""
        data, order = self.objective.dataset, self.objective.order
        epochs = (epoch_batches(data, data.examples["train"], order, seed=(0, each), first=0) for each in count())
        return prefetched(chain.from_iterable(epochs), self.device)

    def step(self, batch: Batch) -> Tensor:
        """Takes a step and returns its loss, which stays on the device."""
        torch.manual_seed(self.number)
        self.number += 1
        loss, _ = mean_loss(self.objective, self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(self.optimizer, most=None)
        self.optimizer.step()
        return loss.detach()


def equal(dataset: Dataset, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Returns how far weights and losses on the device are from those on the CPU after the same steps, in float32."""
    weights, losses = [], []
    exact = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "float32"})})
    torch.set_float32_matmul_precision("highest")
    for place in (torch.device("cpu"), device):
        training = Training(dataset, exact, place)
        steps_taken = [training.step(batch) for batch in islice(training.batches(), COMPARED_STEPS)]
        losses.append(torch.stack(steps_taken).cpu())
        weights.append({name: values.detach().cpu() for name, values in training.model.named_parameters()})
    differences = {
        name: float((weights[1][name] - values).norm() / values.norm().clamp(min=1e-12))
        for name, values in weights[0].items()
    }
    worst = max(differences, key=lambda name: differences[name])
    return {
        "steps": COMPARED_STEPS,
        "largest_relative_difference_of_a_loss": float(((losses[1] - losses[0]) / losses[0]).abs().max()),
        "largest_relative_difference_of_a_parameter": differences[worst],
        "parameter": worst,
    }


def compiled(device: torch.device, size: Size) -> dict[str, float]:
    """Returns positions per second of the sequence encoder, forward and backward, as it is and compiled."""
    encoder = SequenceEncoder(64, length=200, num_layers=2, num_heads=2, dropout=0.0).to(device)
    events = torch.randn(max(size.batch_size // 64, 2), 200, 64, device=device)
    found = {}
    for name, run in (("eager", encoder), ("compiled", torch.compile(encoder))):
        with torch.autocast(device.type, torch.bfloat16):
            seconds = seconds_of(lambda run=run: run(events).float().square().sum().backward(), device, repeats=10)
        found[f"{name}_positions_per_s"] = round(len(events) * 200 / seconds)
    return found | {"gain": round(found["compiled_positions_per_s"] / found["eager_positions_per_s"], 2)}


def seconds_of(work: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """Returns the time of one call, after two calls that are not timed."""
    for _ in range(2):
        work()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - began) / repeats


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def recipe_of(folder: Path, user: list[dict[str, Any]], batch_size: int) -> Recipe:
    """Returns the recipe of `prepare.py` with other features of the user, one epoch and this batch size."""
    from prepare import recipe

    tree = recipe(folder).model_dump(mode="json")
    tree["features"]["user"] = user
    tree["train"] = Train(batch_size=batch_size, epochs=1).model_dump(mode="json")
    return Recipe.model_validate(tree)


def dataset_of(folder: Path, name: str, recipe: Recipe) -> Dataset:
    """Builds the data set of a recipe from the world in the folder, which is prepared once."""
    if not (folder / "prepare").exists():
        (folder / "prepare").mkdir()
        prepare(recipe, folder / "prepare")
    (folder / name).mkdir()
    features = Features.model_validate(recipe.features.model_dump(mode="json"))
    build_dataset(folder / "prepare", features, folder / name, time_zone="UTC")
    return load_dataset(folder / name)


def main(name: DeviceName, size: Size, seconds: float, out: Path) -> None:
    """Runs the parts that the file lacks, as long as there is time, and saves each."""
    began, device = time.monotonic(), open_device(name)
    saved: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    saved |= {"device": torch.cuda.get_device_name() if name == "cuda" else platform.machine(), "size": vars(size)}
    saved["versions"] = {package: version(package) for package in ("twofold", "torch")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_world(folder / "world", World(rows=size.rows))
        recipes = {
            each: recipe_of(folder / "world", user, size.batch_size)
            for each, user in (("histories", HISTORIES), ("sequence", SEQUENCE))
        }
        data = {each: dataset_of(folder, each, recipe) for each, recipe in recipes.items()}

        def products() -> float:
            return float(saved["machine"]["bfloat16_tflops"])

        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "machine": partial(machine, device, size),
            "equal": partial(equal, data["histories"], recipes["histories"], device),
            "histories": lambda: steps(data["histories"], recipes["histories"], device, size, products=products()),
            "sequence": lambda: steps(data["sequence"], recipes["sequence"], device, size, products=products()),
            "compiled": partial(compiled, device, size),
        }
        for part, work in parts.items():
            if part in saved and "error" not in saved[part]:
                continue
            if time.monotonic() - began > seconds:
                print(f"{part}: no time left; run the command again", flush=True)
                continue
            try:
                saved[part] = work()
            except Exception as error:  # noqa: BLE001 - the other parts are worth having
                saved[part] = {"error": f"{type(error).__name__}: {error}"[:500]}
            print(f"{part}: {saved[part]}", flush=True)
            out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_gpu else "cpu")
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    given = parser.parse_args()
    small, full = Size(30_000, 256, 256, 3), Size(given.rows, given.batch_size, product=8192, steps=200)
    main(given.device, small if given.device == "cpu" else full, given.seconds, given.out)
