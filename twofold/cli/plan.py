"""The command `plan`: what a run costs, before there is a log of that size."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from twofold.cli.options import Settings
from twofold.recipe.load import load_recipe
from twofold.render.numbers import plural


def plan(
    recipe: Annotated[Path, typer.Argument(help="Path of a recipe; its files need not exist.")],
    settings: Settings,
    rows: Annotated[float, typer.Option(min=1, help="Number of events of the log: 3e9.")],
    users: Annotated[float, typer.Option(min=1, help="Number of users: 1e8.")],
    items: Annotated[float, typer.Option(min=1, help="Number of items: 1e7.")],
    machines: Annotated[int, typer.Option(min=1, help="Machines that Spark prepares and ranks train on.")] = 1,
    cores: Annotated[int, typer.Option(min=1, help="Cores of a machine.")] = 16,
    memory_gb: Annotated[float, typer.Option(min=1, help="Memory of a machine, in GB.")] = 64.0,
    disk_gb: Annotated[float, typer.Option(min=1, help="Disk of a machine, in GB.")] = 1000.0,
) -> None:
    """Estimate time, memory and disk of each stage for a log of this size, and what breaks first."""
    from twofold.cost_plan import Scale, limits, stage_costs

    scale = Scale(rows, users, items, machines, cores, memory_gb, disk_gb)
    costs = stage_costs(load_recipe(recipe, overrides=settings), scale)
    columns = ("stage", "processor hours", "GPU hours", "GB memory a machine", "GB disk a machine", "on")
    table = Table(*columns, box=SIMPLE_HEAD)
    for cost in costs:
        gpu = f"{cost.gpu_h:,.2f}" if cost.gpu_h else ""
        sizes = f"{cost.processor_h:,.2f}", gpu, f"{cost.memory_gb:,.1f}", f"{cost.disk_gb:,.1f}"
        table.add_row(cost.name, *sizes, plural(cost.machines, "machine"))
    Console(soft_wrap=True).print(table)
    found = limits(scale, costs)
    broken = [limit for limit in found if limit.times > 1]
    for limit in broken:
        print(f"breaks: {limit.name} is {limit.times:,.1f} times what there is")
    if not broken:
        print(f"nothing breaks; the tightest is {found[0].name}, at {found[0].times:.0%}")
    print(
        "from logs of 1 to 6 M rows on 2 cores (benchmarks/scale.json); GPU hours are computed from products of "
        "matrices, not measured; labels and counters about double prepare"
    )
