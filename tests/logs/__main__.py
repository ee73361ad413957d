"""Writes one of the synthetic logs of the tutorials: `python -m tests.logs shop FOLDER`."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.logs.music import write_music
from tests.logs.news import write_news
from tests.logs.ratings import write_ratings
from tests.logs.shop import write_shop
from tests.logs.video import write_video

WRITERS: Mapping[str, Callable[..., list[str]]] = {
    "shop": write_shop,
    "music": write_music,
    "video": write_video,
    "ratings": write_ratings,
    "news": write_news,
}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in WRITERS:
        sys.exit(f"usage: python -m tests.logs {'|'.join(WRITERS)} FOLDER")
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    print("twofold recipe new", *WRITERS[sys.argv[1]](folder))
