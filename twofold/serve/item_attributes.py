"""Attributes of items as encoded JSON, made once per item: most of the time of a described reply is spent on them."""

from typing import Final

import msgspec
import numpy as np
from jaxtyping import Integer
from msgspec import Raw

from twofold.index.live import Snapshot

MAX_ENCODED: Final = 100_000  # items whose encoded attributes are kept: some 30 MB

encode_json: Final = msgspec.json.Encoder(decimal_format="number").encode


class EncodedAttributes:
    """The encoded attributes of the items of one bundle; safe to share between threads."""

    def __init__(self) -> None:
        """Starts empty: the attributes of an item are encoded when they are first requested."""
        self._encoded: dict[int, Raw] = {}

    def of(self, items: Snapshot, item_rows: Integer[np.ndarray, "k"]) -> list[Raw]:
        """Returns the columns of the items table without the id, one JSON object per item row.

        Items that were changed while serving are encoded each time.
        """
        rows, encoded_rows = item_rows.tolist(), self._encoded
        if len(items.changed_rows) == 0 and all(row in encoded_rows for row in rows):
            return [encoded_rows[row] for row in rows]
        is_changed = items.is_changed(item_rows)
        changed = set(item_rows[is_changed].tolist())
        found = {row: encoded for row in rows if row not in changed and (encoded := self._encoded.get(row)) is not None}
        missing = [row for row in dict.fromkeys(rows) if row not in found]
        for row, attributes in zip(missing, items.attributes_of(np.array(missing, np.int64)), strict=True):
            del attributes["item_id"]
            found[row] = Raw(encode_json(attributes))
            if row not in changed:
                self._keep(row, found[row])
        return [found[row] for row in rows]

    def _keep(self, row: int, encoded: Raw) -> None:
        if len(self._encoded) >= MAX_ENCODED:
            self._encoded = {}
        self._encoded[row] = encoded
