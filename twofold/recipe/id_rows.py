"""Rows of tables of ids: which ids have one of their own."""

from __future__ import annotations

from pydantic import Field

from twofold.recipe.section import Section


class IdRows(Section):
    """Ids that have a row of their own in tables of ids. Without it, each id of the training examples has one, and the
    tables grow with the log.
    """

    min_count: int = Field(default=1, ge=1)
    """An id with fewer training examples has no row of its own."""
    max_age_days: int | None = Field(default=None, ge=1)
    """An id whose newest training example is more than this number of days older than the newest of all has no row of
    its own. `null` means any age.
    """
    shared_rows: int = Field(default=0, ge=0)
    """Number of rows that the ids without a row of their own share: the n-th of them, in rising order, has row n modulo
    this number. 0 means that they read the `unknown` embedding, which is then trained, and that histories leave them
    out.
    """
