"""Usual names of columns in interaction logs, from which roles are guessed."""

import re
from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_THINGS: Final = _words(
    "video movie film photo product business article news book track song show episode clip content post doc document "
    "note ad recipe game app course job poi place venue listing gmap offer"
)
# The three that are needed. From the likeliest name to the least; within one set all are equally likely.
USER: Final = (
    _words("userid uid"),
    _words("user memberid customerid visitorid reviewerid accountid viewerid listenerid profileid"),
    _words("member customer visitor reviewer account viewer sessionid session deviceid"),
)
ITEM: Final = (
    _words("itemid iid"),
    _words("item asin vid isbn sku") | {f"{thing}id" for thing in _THINGS},
    _words("parentasin") | _THINGS,
)
TIME: Final = (
    _words("at ts time timestamp datetime unixtime eventtime eventtimestamp eventts eventat"),
    _words(
        "date createdat eventdate watchedat viewedat playedat clickedat ratedat purchasedat listenedat reviewtime "
        "unixreviewtime interactiontime starttime begintime logtime requesttime servertime"
    ),
)
# Signs that an item was wanted; that it was met at all; ratings; the column that says which kind of event a row is.
LIKED: Final = _words(
    "like liked love loved upvote upvoted thumbsup share shared forward forwarded follow followed favorite favorited "
    "favourite fav collect collected save saved bookmark bookmarked download downloaded longview purchase purchased "
    "buy bought order ordered transaction addtocart cart subscribe subscribed finish finished label"
)
MET: Final = _words("click clicked view viewed play played open opened watched valid validread")
RATING: Final = _words("rating ratings stars star overall score userrating reviewrating")
EVENT: Final = _words("event eventtype eventname action actiontype behavior behaviortype behaviour interaction type")
WATCH: Final = _words(
    "playtime playduration playedtime playingtime played watch watched watchtime watchduration watchingtime dwell "
    "dwelltime viewtime viewduration viewingtime listen listened listentime timespent staytime"
)
LENGTH: Final = _words("duration length runtime") | {
    f"{thing}{word}" for thing in _THINGS | {"item", "media", "total"} for word in ("duration", "length")
}
SHARE: Final = _words("watchratio watchfraction watchpercent watchpct playedratiopct playratio completion")
# Of an items file: since when there is an item; single words of what counts events, and of what names a group.
UPLOADED: Final = _words(
    "uploadedat uploadtime uploaddt uploaddate createdat createtime publishedat publishtime publishdate pubtime "
    "releasedate releasedat releasetime postedat"
)
COUNTS: Final = _words(
    "cnt count counts num views likes clicks plays play shows show shares comments downloads popularity popular ctr "
    "avg average mean votes vote rating ratings score rank sales hot stay progress complete"
)
GROUPS: Final = _words(
    "id type category categories genre genres lang language city country region brand author artist creator channel "
    "publisher music status code tag tab level label group cluster class kind gender occupation zip feat"
)
# What a name says its numbers count, and what makes seconds of it.
TO_SECONDS: Final = {
    **dict.fromkeys(("us", "usec", "micros", "microseconds"), " / 1000000"),
    **dict.fromkeys(("ms", "msec", "millis", "milliseconds"), " / 1000"),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), ""),
    **dict.fromkeys(("min", "mins", "minutes"), " * 60"),
}


def words(name: str) -> list[str]:
    """Splits a column's name into words: `userId`, `user-id` and RecBole's `user_id:token` give user and id."""
    bare = re.sub(r":(token|float)(_seq)?$", "", name)
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", bare)
    return re.findall(r"[^\W_]+", spaced.casefold())


def normalized_name(name: str) -> str:
    """Joins the words of a name, without the `is` of a flag and the unit of a number, as in the sets above."""
    kept = [word for word in words(name) if word not in TO_SECONDS]
    return "".join(kept[1:] if kept[:1] == ["is"] else kept)
