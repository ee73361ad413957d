"""Usual names of columns in logs, as sets of words without case, separators and units."""

from typing import Final

from twofold.ingest.table_profile import words


def name_set(text: str) -> frozenset[str]:
    """Returns the words of a text as a set of names."""
    return frozenset(text.split())


_THINGS: Final = name_set(
    "video movie film photo product business article news book track song show episode clip content post doc document "
    "note ad recipe game app course job poi place venue listing gmap offer stock podcast advert vacancy hotel property "
    "lesson dish meal anime manga beer wine restaurant attraction question exercise"
)
_PEOPLE: Final = name_set(
    "listener reader candidate applicant player subscriber shopper client buyer consumer student learner guest "
    "household patron person"
)
_KEYS: Final = name_set("id uuid guid no nr num number key code ref reference hash")
"""Last words of the names of keys: stock_code is the id of a stock item."""
# The three required roles: sets from the most to the least likely names; names within a set are equally likely.
USER: Final = (
    name_set("userid uid"),
    name_set("user memberid customerid visitorid reviewerid accountid viewerid listenerid profileid"),
    name_set("member customer visitor reviewer account viewer")
    | {f"{person}{end}" for person in _PEOPLE for end in ("", "id")},
    name_set("sessionid session deviceid"),
)
ITEM: Final = (
    name_set("itemid iid"),
    name_set("item asin vid isbn sku") | {f"{thing}id" for thing in _THINGS},
    name_set("parentasin") | _THINGS,
)
CREATOR: Final = name_set("artistid artist albumid album authorid author creatorid creator channelid channel")
"""Names of items in a log that names nothing smaller, such as one of plays by artist."""
TIME: Final = (
    name_set("at ts time timestamp datetime unixtime eventtime eventtimestamp eventts eventat"),
    name_set(
        "date createdat eventdate watchedat viewedat playedat clickedat ratedat purchasedat listenedat reviewtime "
        "unixreviewtime interactiontime starttime begintime logtime requesttime servertime"
    ),
)
# Signals that an item was liked; that it was seen or opened; ratings; the column with the kind of event.
LIKED: Final = name_set(
    "like liked love loved upvote upvoted thumbsup share shared forward forwarded follow followed favorite favorited "
    "favourite fav collect collected save saved bookmark bookmarked download downloaded longview purchase purchased "
    "buy bought order ordered transaction addtocart cart subscribe subscribed finish finished label"
)
SEEN: Final = name_set("click clicked view viewed play played open opened watched valid validread")
RATING: Final = name_set("rating ratings stars star overall score userrating reviewrating")
EVENT: Final = name_set("event eventtype eventname action actiontype behavior behaviortype behaviour interaction type")
WATCH: Final = name_set(
    "playtime playduration playedtime playingtime played watch watched watchtime watchduration watchingtime dwell "
    "dwelltime viewtime viewduration viewingtime listen listened listentime timespent staytime"
)
LENGTH: Final = name_set("duration length runtime len dur playlength") | {
    f"{thing}{word}" for thing in _THINGS | {"item", "media", "total"} for word in ("duration", "length", "len", "dur")
}
QUANTITY: Final = name_set("quantity qty units amount pieces")
SHARE: Final = name_set("watchratio watchfraction watchpercent watchpct playedratiopct playratio completion")
# For an items file: the upload time; single words in names of event counts, and in names of groups.
UPLOADED: Final = name_set(
    "uploadedat uploadtime uploaddt uploaddate uploadts uploaded created createdat createtime createts published "
    "publishedat publishtime publishdate publishts pubtime pubdate released releasedate releasedat releasetime "
    "releasets postedat posted postedon postts publishedon createdon listedat listedon added "
    "addedat dateadded firstseen onlinesince launchdate"
)
# For the live page: headings, second lines, pictures and links of items.
TITLE: Final = name_set("title name headline caption label") | {
    f"{thing}{word}" for thing in _THINGS | {"item"} for word in ("title", "name")
}
SUBTITLE: Final = name_set("artist artistname author authorname brand creator genres genre categories category")
IMAGE: Final = name_set("image imageurl img imgurl picture pictureurl poster posterurl thumbnail thumb cover coverurl")
LINK: Final = name_set("url link href permalink") | {f"{thing}url" for thing in _THINGS | {"item"}}
COUNTS: Final = name_set(
    "cnt count counts num views likes clicks plays play shows show shares comments downloads popularity popular ctr "
    "avg average mean votes vote rating ratings score rank sales hot stay progress complete purchases orders sold "
    "buyers transactions bookings installs returns refunds revenue gmv spend spent reviews reviewers impressions "
    "visits visitors sessions interactions opens reads listens listeners streams watches viewers saves carts "
    "favorites favourites bookmarks wishlists collects forwards reposts upvotes downvotes followers fans subscribers"
)
GROUPS: Final = name_set(
    "id type category categories genre genres lang language city country region brand author artist creator channel "
    "publisher music status code tag tab level label group cluster class kind gender occupation zip feat"
)
# Unit words in a name, and the SQL that converts to seconds.
TO_SECONDS: Final = {
    **dict.fromkeys(("us", "usec", "micros", "microseconds"), " / 1000000"),
    **dict.fromkeys(("ms", "msec", "millis", "milliseconds"), " / 1000"),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), ""),
    **dict.fromkeys(("min", "mins", "minutes"), " * 60"),
}


def normalized_name(name: str) -> str:
    """Joins the words of a name, without the `is` of a flag and the unit of a number, as in the sets above."""
    kept = [word for word in words(name) if word not in TO_SECONDS]
    return "".join(kept[1:] if kept[:1] == ["is"] else kept)


def key_name(name: str) -> str:
    """Joins the words of a name, with `id` in place of another last word of keys.

    >>> key_name("StockCode"), key_name("listener_uuid"), key_name("user")
    ('stockid', 'listenerid', 'user')
    """
    found = words(name)
    return "".join([*found[:-1], "id"] if len(found) > 1 and found[-1] in _KEYS else found)


def is_length(name: str) -> bool:
    """Returns whether a column's name is that of an item's length: duration, video_length, or video_ms."""
    bare = normalized_name(name)
    return bare in LENGTH or bare in _THINGS | {"item", "media", "total"} and has_unit(name)


def is_watch_time(name: str) -> bool:
    """Returns whether a column's name is that of the time for which an item was watched: watch_time, or play_ms."""
    bare = normalized_name(name)
    return not is_length(name) and (bare in WATCH or bare in SEEN and has_unit(name))


def has_unit(name: str) -> bool:
    """Returns whether a column's name ends in a unit of time, as video_ms."""
    return words(name)[-1] in TO_SECONDS if words(name) else False
