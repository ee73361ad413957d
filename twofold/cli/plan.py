"""The command `plan`: what a run costs, before there is a log of that size."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from twofold.cli.options import Settings
from twofold.recipe.load import load_recipe
from twofold.render.numbers import plural

if TYPE_CHECKING:
    from twofold.cost_plan import Scale
    from twofold.recipe.schema import Recipe


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
    from twofold.cost_plan import Scale, left_out, limits, stage_costs

    scale = Scale(rows, users, items, machines, cores, memory_gb, disk_gb)
    loaded = load_recipe(recipe, overrides=settings)
    costs = stage_costs(loaded, scale)
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
        "from runs of 10 and 30 M rows on 2 cores (benchmarks/scale.json); GPU hours are computed from products of "
        "matrices, not measured; labels and counters about double prepare"
    )
    if (rest := left_out(loaded)) is not None:
        print(rest)
    _print_limited_rows(loaded, scale)


def _print_limited_rows(recipe: "Recipe", scale: "Scale") -> None:
    """Says how many rows ids can have where the recipe limits them."""
    from twofold.cost_plan import EXAMPLES_A_ROW, rows_at_most

    features, examples = recipe.features, scale.rows * EXAMPLES_A_ROW
    for name, limits, ids in (("items", features.item_ids, scale.items), ("users", features.user_ids, scale.users)):
        if limits is not None:
            most = rows_at_most(limits, ids, examples)
            print(
                f"{name}: at most {most:,.0f} of {ids:,.0f} have rows in tables of ids ({examples:,.0f} examples, at "
                f"least {limits.min_count:,} each, and {limits.shared_rows:,} shared rows); the limit by age depends "
                f"on the log"
            )
