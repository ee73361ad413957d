"""Labels of a recipe's `prepare` section that are computed from watch time and length, and fitted on training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twofold.recipe.section import Section


class WidthBuckets(Section):
    """Buckets of item length with equal width."""

    kind: Literal["width"]
    seconds: float = Field(gt=0)
    """Width of a bucket, in seconds."""


class EqualFrequencyBuckets(Section):
    """Buckets of item length with about equally many training events; items of equal length share a bucket."""

    kind: Literal["equal_frequency"]
    n: int = Field(default=30, ge=1, le=10_000)
    """Number of buckets."""


class ItemBuckets(Section):
    """Each item as its own bucket, with shrinkage for items with few views: toward the creator, then the length bucket,
    then all. The mean label of every item is then near 0, so the label does not tell how good an item is.
    """

    kind: Literal["item"]
    creator: str | None = None
    """Column of the creator. `null` means an item is shrunk directly toward its length bucket."""
    n: int = Field(default=30, ge=1, le=10_000)
    """Number of equal-frequency length buckets."""


Buckets = Annotated[WidthBuckets | EqualFrequencyBuckets | ItemBuckets, Field(discriminator="kind")]


class WatchTimeGain(Section):
    """Watch-time gain (WTG): (watch_s - mean) / std over the training events of the same bucket; or the same of
    completion (PCC gain).
    """

    kind: Literal["wtg"]
    buckets: Buckets
    """Groups of items whose mean and standard deviation are used."""
    quantity: Literal["watch_s", "completion"] = "watch_s"
    """Quantity that is standardized: the seconds watched, or the share that was watched, min(watch_s, length_s) /
    length_s."""
    shrink: float = Field(default=10.0, ge=0)
    """Shrinkage: number of events of the wider group that are added to the mean and variance of a bucket. 10 is a
    guess, not measured.
    """


class Completion(Section):
    """Completion (PCC), the share that was watched: min(watch_s, length_s) / length_s."""

    kind: Literal["pcc"]


class WatchQuantile(Section):
    """Watch-time quantile (D2Q; Zhan et al., KDD 2022): share of the training events of similar item length that were
    watched for less time; ties count half.
    """

    kind: Literal["quantile"]
    n: int = Field(default=30, ge=1, le=10_000)
    """Number of equal-frequency length buckets."""


class LongView(Section):
    """Long view: watched to the end, or for at least 18 s if the item is longer."""

    kind: Literal["long_view"]


class BelowMean(Section):
    """TRUE where a value is below its mean over the training events with the same key, such as the item. Values are
    compared in whole thousandths, exactly.
    """

    kind: Literal["below_mean"]
    column: str = "watch_s"
    """Column that is averaged."""
    key: str = "item_id"
    """Column whose equal values form a group."""


Label = Annotated[
    WatchTimeGain | Completion | WatchQuantile | LongView | BelowMean,
    Field(discriminator="kind"),
]
