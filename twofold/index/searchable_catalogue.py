"""Items that can be searched, with their attributes and filters: those of a built index, or those that changed."""

from dataclasses import dataclass
from functools import reduce

import pyarrow as pa

from twofold.index.filters import Filters
from twofold.index.item_index import Index
from twofold.index.item_mask import ItemMask, full_mask


@dataclass(frozen=True)
class Catalogue:
    """Items that can be searched: row i of each part is one item. `present` are the items that may be returned."""

    index: Index
    attributes: pa.Table
    filters: Filters
    present: ItemMask

    def eligible(self, *conditions: str | None) -> ItemMask:
        """Returns the items that are present and satisfy every condition; `None` means no condition."""
        masks = [self.filters.eligible(condition) for condition in conditions if condition is not None]
        masks += [self.present] if not masks or self.present.count < len(self.index) else []
        return reduce(ItemMask.intersection, masks)


def whole_catalogue(index: Index, attributes: pa.Table, filters: Filters | None = None) -> Catalogue:
    """Returns the catalogue in which every item of an index may be returned; `filters` are made unless given."""
    filters = Filters(attributes, index.vectors) if filters is None else filters
    return Catalogue(index, attributes, filters, full_mask(len(index)))
