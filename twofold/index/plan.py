"""How a search goes about it: decided from how many items are eligible, before anything is searched.

| eligible | search |
|---|---|
| few, up to an eighth | `pool`: those rows alone, exact; a hot filter's stand end to end |
| more, and the index has lists | `lists`: so deep that, among what is found, enough are eligible; counted afterwards |
| else | `all`: everything is scored and the others are overwritten, exact |

Where the count afterwards finds too few, as under a filter that keeps what this query is far from, the line is searched
again as if there were no lists. An approximate search that is told the filter instead, and trusts full lists, finds .2
to .6 of the right items under such filters; HNSW finds a handful.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from twofold.index.item_mask import ItemMask
from twofold.index.ivf import IvfIndex

DEEPER: Final = 1.25  # times those to be passed over if the eligible were spread evenly: the nearest rarely are


@dataclass(frozen=True)
class Plan:
    """What is scored; with lists, how many candidates a line are taken and in how many lists they are looked for."""

    how: Literal["pool", "all", "lists"]
    depth: int = 0
    probes: int = 0


def plan_search(items: int, wanted: int, *, eligible: ItemMask | None = None, lists: IvfIndex | None = None) -> Plan:
    """The plan for lines that need `wanted` candidates each; without lists it is an exact one."""
    if eligible is not None and eligible.pool is not None:
        return Plan("pool")
    share = 1.0 if eligible is None else eligible.count / items
    depth = ceil(wanted * (1 + DEEPER * (1 - share) / share))
    probes = None if lists is None else lists.probes(depth)
    return Plan("all") if probes is None else Plan("lists", min(depth, items), probes)
