"""Makes the Parquet files of `data/kuairand-pure` from the published pieces of KuaiRand-Pure.

    python data/make_kuairand_pure.py FOLDER

FOLDER holds the five published pieces named in `PIECES` and the licence text. Rows and their order stay as published,
exact duplicates, zero lengths and all; only whole columns are left out (README.md says which, and why).
"""

import shutil
import sys
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

# published piece -> shipped file, and the columns that are kept (none named: all of them)
PIECES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "kuairand-pure-log-0425-0508.parquet": ("log.parquet", ()),
    "kuairand-pure-train-tail50-0409-0424.parquet": ("tails.parquet", ()),
    "kuairand-pure-train-users.parquet": ("tails_users.parquet", ()),
    "kuairand-pure-users.parquet": ("users.parquet", ()),
    # The other 52 columns are `upload_date`, a copy of `upload_dt`, and 51 platform aggregates over an unknown period
    # that reaches past the log: as features they would tell the model its own future.
    "kuairand-pure-items.parquet": (
        "items.parquet",
        (
            "video_id",
            "author_id",
            "video_type",
            "upload_dt",
            "upload_type",
            "visible_status",
            "video_duration",
            "server_width",
            "server_height",
            "music_id",
            "music_type",
            "tag",
        ),
    ),
}


def make(published: Path, shipped: Path) -> None:
    """Writes the shipped files, the same bytes for the same pieces and the same pyarrow."""
    shipped.mkdir(parents=True, exist_ok=True)
    for piece, (name, columns) in PIECES.items():
        table = pq.read_table(published / piece, columns=list(columns) or None)
        pq.write_table(table.replace_schema_metadata(None), shipped / name, compression="zstd", compression_level=19)
    shutil.copyfile(published / "LICENSE", shipped / "LICENSE")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python data/make_kuairand_pure.py FOLDER  (the folder of the published pieces)")
    make(Path(sys.argv[1]), Path(__file__).parent / "kuairand-pure")
