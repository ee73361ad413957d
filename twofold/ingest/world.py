"""The planted truth of a synthetic log: its parameters, users and items, and the true interest of users in items.

All random numbers derive from `World.seed`. Memory does not depend on the number of rows: about 100 bytes per user and
300 per item. The formulas are in `FORMULAS`, which is written beside the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64, Int32, Int64

from twofold.errors import RequestError
from twofold.tables import DAY_MS

FIRST_USER_ID: Final = 1_001
FIRST_ITEM_ID: Final = 5_000_000_001  # above 2^32, so that code which narrows an id fails here
MOST_EVENTS_A_DAY: Final = 200  # of a mean user; ten times that, the most active ones, still fit into a day
MEDIAN_LENGTH_S: Final = 20.0
_LENGTH_SIGMA: Final = 0.9  # of the log
_STYLE_IN_CONTENT: Final = 3.0  # beside topics and look, whose lengths are about 2

Ids: TypeAlias = Sequence[int] | np.ndarray

_CENTRES, _USERS, _ITEMS, EVENTS, _PICTURES, _STYLES = range(6)  # streams of random numbers
_AT_HOME: Final = 0.8  # share of users who live where their language is spoken
_SECOND_TAG: Final = 0.3  # share of items with a second topic
_MEAN_AGE_DAYS: Final = 30.0  # of the items there are on the first day
_EVERGREEN: Final = 0.1  # share of the popularity that does not depend on age
_DAILY_RHYTHM: Final = np.exp(1.5 * np.cos(np.arange(24) * np.pi / 12))

# How users watch.
MEAN_SESSION: Final = 8
SWIPE_MS: Final = 1_000  # between two impressions
WATCH_NOISE: Final = 0.6
MOST_REPLAYS: Final = 4
LONG_MS: Final = 18_000
RATES: Final = {"liked": 0.3, "shared": 0.06, "downloaded": 0.03}

FORMULAS: Final = {
    "interest": "sigmoid(user.latent · item.latent + item.quality), latents and quality in truth/",
    "latents": "user: language + two favourite topics + own taste; item: language + its topics + look + the rest. "
    "Users meet items of other languages rarely, and like them less.",
    "content": "topics and look, turned and blurred, of norm 1; neither language, nor quality, nor the rest",
    "pictures": "a creator's look far above the topics, turned and blurred, of norm 1",
    "length_s": f"log-normal, median {MEDIAN_LENGTH_S:g}, sigma {_LENGTH_SIGMA}; a share length_style of the variance "
    "of the log is the creator's, and content shows that part along one direction",
    "exposure": "an item is seen with a chance in proportion to its popularity that day, among the items of the user's "
    "language (of another one in a share 1 - own_language), never before uploaded_at; taste has no say in it",
    "popularity": f"appeal × f(age at noon in days / peak_age_days) ^ drift, f(x) = {_EVERGREEN} + {1 - _EVERGREEN} × "
    "x × exp(1 - x), age at least 1/4; appeal = rank ^ -zipf, the rank being in part that of the quality",
    "watch_s": f"interest × length_s × length_effect × exp({WATCH_NOISE} z), z standard normal; "
    f"at most {MOST_REPLAYS} × length_s",
    "length_effect": f"(length_s / {MEDIAN_LENGTH_S:g}) ^ -length_bias; "
    "a bias of 0 plants none, with 1 the seconds do not depend on length",
    "actions": "chances: clicked = interest, "
    + ", ".join(f"{name} = {rate} × interest ^ 2" for name, rate in RATES.items()),
    "long_view": f"watch_s >= the lesser of length_s and {LONG_MS // 1000}",
    "times": f"sessions of {MEAN_SESSION} impressions in the mean, begun in an hour drawn from the user's activity; "
    "the next one waits for its end; a session stays in the file of the day it began, even past midnight",
    "attributes": f"a share {_AT_HOME} of users live in a city of their language, whose number modulo the number of "
    "languages it is; the others anywhere. The handset maker tells nothing.",
    "noise": "a third each: exact copies of the row before, length_s of 0, watch_s of NULL; flags stay as they are",
}


@dataclass(frozen=True)
class World:
    """A short-video service in numbers. A count of 0 is derived from `rows`; RequestError if numbers contradict others.

    `World(rows=1_000_000)` has 10,000 users, 12,000 items and 1,500 creators.
    """

    rows: int
    users: int = 0
    items: int = 0
    creators: int = 0
    days: int = 28
    first_day: date = date(2024, 1, 1)
    languages: int = 6
    cities: int = 40
    handset_makers: int = 8
    topics: int = 12
    dim: int = 16
    """Dimension of the latent vectors."""
    content_dim: int = 32
    own_language: float = 0.95
    """Share of impressions in the user's language."""
    new_items: float = 0.02
    """Share of the catalogue that is uploaded on each day."""
    zipf: float = 0.6
    """Inequality of the items' appeal, which is rank ^ -zipf."""
    drift: float = 1.0
    """Strength with which popularity rises and decays with age; 0 means not at all."""
    length_bias: float = 0.5
    """Fraction watched ~ length ^ -length_bias."""
    length_style: float = 0.0
    """Share of the variance of log length that creators have and content shows; with 0, nothing tells the length."""
    noise: float = 0.0
    """Share of rows that are corrupted."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Derives the counts that are 0, then checks that the numbers are consistent."""
        object.__setattr__(self, "users", self.users or min(-(-self.rows // 100), 1_000_000))
        object.__setattr__(self, "items", self.items or round(12 * max(self.rows, 0) ** 0.5))
        object.__setattr__(self, "creators", self.creators or max(self.items // 8, self.languages))
        counts = "rows users items creators days languages cities handset_makers topics dim content_dim"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise RequestError(f"World: {name} is {getattr(self, name):,}; a world needs at least 1.")
        for name, most in (("own_language", 1.0), ("length_bias", 1.0), ("noise", 0.5), ("zipf", 2.0), ("drift", 5.0),
                           ("length_style", 1.0)):  # fmt: skip
            if not 0 <= getattr(self, name) <= most:
                raise RequestError(f"World: {name} is {getattr(self, name)}; it lies between 0 and {most:g}.")
        if self.seed < 0:
            raise RequestError(f"World: seed is {self.seed}; take 0 or more.")
        self._check_proportions()

    @property
    def new_a_day(self) -> int:
        """Items uploaded on each day."""
        return max(1, round(self.items * self.new_items))

    @property
    def num_old(self) -> int:
        """Items uploaded before the first day."""
        return self.items - self.days * self.new_a_day

    @property
    def first_ms(self) -> int:
        """The first day's midnight, in UTC milliseconds."""
        return int(datetime.combine(self.first_day, time(), UTC).timestamp()) * 1000

    def draws(self, *stream: int) -> np.random.Generator:
        """Returns a random generator per stream, so that the order of work changes nothing. SFC64 is the fastest."""
        return np.random.Generator(np.random.SFC64([self.seed, *stream]))

    def _check_proportions(self) -> None:
        if self.users > self.rows:
            raise RequestError(f"World: {self.users:,} users but {self.rows:,} rows; take at least one row per user.")
        if self.days > self.rows:
            raise RequestError(f"World: {self.days:,} days but {self.rows:,} rows; take at least one row per day.")
        if self.rows > MOST_EVENTS_A_DAY * self.users * self.days:
            raise RequestError(
                f"World: {self.rows:,} rows are {self.rows / self.users / self.days:,.0f} a user and day; "
                f"{MOST_EVENTS_A_DAY} at most can be watched. Take more users or days."
            )
        if self.creators < self.languages:
            raise RequestError(
                f"World: {self.creators:,} creators for {self.languages} languages; each language needs one."
            )
        if not 0 <= self.new_items < 1 or self.num_old < self.languages:
            raise RequestError(
                f"World: new_items {self.new_items} uploads {self.new_a_day:,} of {self.items:,} items on each of "
                f"{self.days} days, which leaves too few for the first day. Take more items or a lower share."
            )


@dataclass(frozen=True)
class Users:
    """Users by row; `reach` is the share of all sessions that the users up to this one have, `peak_hour` is UTC."""

    language: Int32[np.ndarray, "users"]
    city: Int32[np.ndarray, "users"]
    handset_maker: Int32[np.ndarray, "users"]
    peak_hour: Int32[np.ndarray, "users"]
    reach: Float64[np.ndarray, "users"]
    latent: Float32[np.ndarray, "users dim"]

    def activity(self, rows: slice) -> Float32[np.ndarray, "_ 24"]:
        """Returns the share of sessions that some users begin in each hour of the day (UTC)."""
        hours = (np.arange(24) - self.peak_hour[rows, None]) % 24
        return daily_rhythm().astype(np.float32)[hours]


@dataclass(frozen=True)
class Items:
    """Items by row, in the order of their upload; `topics` holds -1 where there is no second one."""

    language: Int32[np.ndarray, "items"]
    topics: Int32[np.ndarray, "items 2"]
    creator: Int32[np.ndarray, "items"]
    length_ms: Int32[np.ndarray, "items"]
    uploaded_at: Int64[np.ndarray, "items"]
    appeal: Float32[np.ndarray, "items"]
    peak_age_days: Float32[np.ndarray, "items"]
    length_effect: Float32[np.ndarray, "items"]
    quality: Float32[np.ndarray, "items"]
    latent: Float32[np.ndarray, "items dim"]
    content: Float32[np.ndarray, "items _"]
    pictures: Float32[np.ndarray, "items _"]

    def popularity(self, day_ms: int, drift: float) -> Float64[np.ndarray, "items"]:
        """Returns the weight of each item on the day that begins at `day_ms`; 0 if not uploaded by its end."""
        age_days = np.maximum(day_ms + DAY_MS // 2 - self.uploaded_at, DAY_MS // 4) / DAY_MS
        share = age_days / self.peak_age_days
        freshness = _EVERGREEN + (1 - _EVERGREEN) * share * np.exp(1 - share)
        return np.where(self.uploaded_at < day_ms + DAY_MS, self.appeal * freshness**drift, 0.0)


def daily_rhythm() -> Float64[np.ndarray, "24"]:
    """Returns the share of a user's sessions by hours after the busiest one."""
    return _DAILY_RHYTHM / _DAILY_RHYTHM.sum()


def plant_users(world: World) -> Users:
    """Draws the users: heavy-tailed activity (log-normal, at most ten times the mean), a language, two topics."""
    draw, num = world.draws(_USERS), world.users
    language = _unequal(draw, world.languages, num)
    languages, topics = _centres(world)
    favourite = _unequal(draw, world.topics, (num, 2))
    own = draw.standard_normal((num, world.dim), dtype=np.float32) / np.float32(world.dim**0.5)
    latent = 1.2 * languages[language] + 2 * topics[favourite[:, 0]] + topics[favourite[:, 1]] + 3 * own
    # A city's number modulo the number of languages is the language spoken there.
    here = language + world.languages * draw.integers(max(1, world.cities // world.languages), size=num)
    anywhere = draw.integers(world.cities, size=num)
    city = np.where(draw.random(num) < _AT_HOME, here % world.cities, anywhere)
    reach = np.minimum(draw.lognormal(sigma=1.0, size=num), 10 * np.exp(0.5)).cumsum()
    peak_hour = np.rint(draw.normal(15, 3, size=num)) % 24  # evening, east of Greenwich
    maker = _unequal(draw, world.handset_makers, num)
    return Users(language, city.astype(np.int32), maker, peak_hour.astype(np.int32), reach / reach[-1], latent)


def plant_items(world: World) -> Items:
    """Draws the items; every language has at least one before the first day."""
    draw, num = world.draws(_ITEMS), world.items
    languages, centres = _centres(world)
    creator, language, look, quality = _creations(world, draw)
    topics = _unequal(draw, world.topics, (num, 2))
    topics[(draw.random(num) > _SECOND_TAG) | (topics[:, 0] == topics[:, 1]), 1] = -1
    theme = centres[topics[:, 0]] + 0.5 * centres[topics[:, 1]] * (topics[:, 1:] >= 0)
    rest = draw.standard_normal((num, world.dim), dtype=np.float32) / np.float32(2 * world.dim**0.5)
    factor, style = _length_style(world, creator, draw.lognormal(sigma=_LENGTH_SIGMA, size=num))
    length_ms = 1000 * np.clip(MEDIAN_LENGTH_S * factor, 3, 600)
    fresh = world.first_ms + (np.arange(world.num_old, num) - world.num_old) // world.new_a_day * DAY_MS
    fresh += draw.integers(DAY_MS, size=len(fresh))
    aged = world.first_ms - 1 - (draw.exponential(_MEAN_AGE_DAYS * DAY_MS, size=world.num_old)).astype(np.int64)
    rank = 1 + np.argsort(np.argsort(-quality - draw.normal(size=num)))
    turn = draw.standard_normal((world.dim, world.content_dim), dtype=np.float32)
    blur = draw.standard_normal((num, world.content_dim), dtype=np.float32) / np.float32(2)
    content = (theme + look) @ turn + blur + style
    camera = world.draws(_PICTURES)
    seen = (theme / 4 + 2 * look) @ camera.standard_normal((world.dim, world.content_dim), dtype=np.float32)
    pictures = seen + camera.standard_normal((num, world.content_dim), dtype=np.float32) / np.float32(2)
    return Items(
        language=language,
        topics=topics,
        creator=creator,
        length_ms=np.rint(length_ms).astype(np.int32),
        uploaded_at=np.sort(np.concatenate([aged, fresh])),
        appeal=(rank**-world.zipf).astype(np.float32),
        peak_age_days=(1.5 * draw.lognormal(sigma=0.7, size=num)).astype(np.float32),
        length_effect=((length_ms / 1000 / MEDIAN_LENGTH_S) ** -world.length_bias).astype(np.float32),
        quality=quality.astype(np.float32),
        latent=languages[language] + theme + look + rest,
        content=content / np.linalg.norm(content, axis=1, keepdims=True),
        pictures=pictures / np.linalg.norm(pictures, axis=1, keepdims=True),
    )


def _length_style(
    world: World, creator: Int32[np.ndarray, "items"], own: Float64[np.ndarray, "items"]
) -> tuple[Float64[np.ndarray, "items"], Float32[np.ndarray, "_ _"]]:
    """Returns the factor of each item's length, and what is added to its content vector; `own` is the factor without a
    creator's style.
    """
    if world.length_style == 0:
        return own, np.zeros((1, world.content_dim), np.float32)
    draw, share = world.draws(_STYLES), world.length_style
    style = draw.standard_normal(world.creators)[creator] * share**0.5
    direction = draw.standard_normal(world.content_dim)
    shown = np.outer(style, _STYLE_IN_CONTENT * direction).astype(np.float32)
    return np.exp((1 - share) ** 0.5 * np.log(own) + _LENGTH_SIGMA * style), shown


def true_interest(folder: Path, user_ids: Ids, item_ids: Ids) -> Float32[np.ndarray, "_"]:
    """Returns the planted interest, 0 to 1, of each user in the item of the same pair, for the world in a folder.

    RequestError if the folder holds no finished world, or an id is not in it.
    """
    if not (folder / "truth" / "world.json").is_file():
        raise RequestError(f"{folder} holds no finished world: truth/world.json, which is written last, is missing.")
    users, user_rows = _planted(folder, "user", FIRST_USER_ID, user_ids)
    items, item_rows = _planted(folder, "item", FIRST_ITEM_ID, item_ids)
    quality = items["quality"].to_numpy()[item_rows]
    return interest_of(_matrix(users["latent"])[user_rows], _matrix(items["latent"])[item_rows], quality)


def interest_of(
    users: Float32[np.ndarray, "pairs dim"],
    items: Float32[np.ndarray, "pairs dim"],
    quality: Float32[np.ndarray, "_"],
) -> Float32[np.ndarray, "_"]:
    """Returns, pair by pair, the probability that a user with that latent vector likes that item."""
    return 1 / (1 + np.exp(-(np.einsum("rd,rd->r", users, items) + quality)))


def _planted(folder: Path, kind: str, first_id: int, ids: Ids) -> tuple[pa.Table, Int64[np.ndarray, "_"]]:
    """Returns the planted table of all users or items, and the row numbers of the requested ids."""
    table = pq.read_table(folder / "truth" / f"{kind}s.parquet")
    rows = np.asarray(ids, dtype=np.int64) - first_id
    unknown = rows[(rows < 0) | (rows >= len(table))]
    if len(unknown):
        raise RequestError(
            f"{kind}_id {unknown[0] + first_id} is not of the world in {folder}: "
            f"there they run from {first_id} to {first_id + len(table) - 1}."
        )
    return table, rows


def _matrix(vectors: pa.ChunkedArray) -> Float32[np.ndarray, "pairs dim"]:
    return vectors.combine_chunks().flatten().to_numpy().reshape(len(vectors), -1)


def _centres(world: World) -> tuple[Float32[np.ndarray, "_ dim"], Float32[np.ndarray, "_ dim"]]:
    """Returns a direction of norm 1 for each language and each topic."""
    drawn = world.draws(_CENTRES).standard_normal((world.languages + world.topics, world.dim), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn[: world.languages], drawn[world.languages :]


def _creations(world: World, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draws each item's creator (a few create many), and the language, look and quality that depend on the creator."""
    creator = _unequal(draw, world.creators, world.items)
    creator[: world.languages] = np.arange(world.languages)
    spoken = _unequal(draw, world.languages, world.creators)
    spoken[: world.languages] = np.arange(world.languages)
    look = draw.standard_normal((world.creators, world.dim), dtype=np.float32)[creator]
    look += draw.standard_normal((world.items, world.dim), dtype=np.float32)
    look /= np.float32(3 * world.dim**0.5)
    quality = -2.6 + 0.4 * draw.normal(size=world.creators)[creator] + 0.4 * draw.normal(size=world.items)
    return creator, spoken[creator], look, quality


def _unequal(draw: np.random.Generator, num: int, size: int | tuple[int, ...]) -> np.ndarray:
    """Draws numbers below `num` with shares that fall as 1 / √rank."""
    shares = (1 + np.arange(num)) ** -0.5
    return draw.choice(num, size=size, p=shares / shares.sum()).astype(np.int32)
