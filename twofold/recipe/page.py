"""Page section of a recipe: the columns of the items that the live page of the service shows."""

from __future__ import annotations

from twofold.recipe.section import Section


class Page(Section):
    """Columns of the items for the live page of the service. They do not change the results of a run."""

    title: str | None = None
    """Column of the heading of an item. `null` means its id."""
    subtitle: str | None = None
    """Column of the line under the heading. `null` means the first attributes."""
    image: str | None = None
    """Column of the address of a picture (http or https). `null` means a drawn tile."""
    link: str | None = None
    """Column of the address that the heading leads to."""
